"""The process of a step.

    python -m gpu_check.step MODULE OPTIONS FIRST

OPTIONS is JSON; FIRST is the number of the first check to run.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

from vllm_nixl._bench.child import claim_stdout, end_with_parent

from .report import Options, run_checks, run_figures


def main() -> None:
    end_with_parent()
    out = claim_stdout()

    def report(**fields: Any) -> None:
        print(json.dumps(fields), file=out, flush=True)

    name, options, first = sys.argv[1:]
    chosen = Options(**json.loads(options))
    module = importlib.import_module(f"gpu_check.{name}")
    if hasattr(module, "checks"):
        run_checks(module, chosen, int(first), report)
    elif hasattr(module, "measure"):
        run_figures(module, chosen, report)
    else:
        report(machine=module.facts())


if __name__ == "__main__":
    main()
