"""`python -m vllm_nixl`: the command line, also installed as `vllm-nixl`."""

import sys

from ._cli.main import main

if __name__ == "__main__":
    sys.exit(main())
