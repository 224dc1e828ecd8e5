"""Run a program that uses vllm_nixl._bench where vllm_nixl is not installed.

    python alone.py PROGRAM ARGUMENTS

vllm_nixl is then a package without content, so that it neither runs nor
replaces anything in this Python.
"""

import os
import runpy
import sys


def main() -> None:
    package = type(sys)("vllm_nixl")
    here = os.path.dirname(os.path.abspath(__file__))
    package.__path__ = [os.path.dirname(here)]
    sys.modules["vllm_nixl"] = package
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
