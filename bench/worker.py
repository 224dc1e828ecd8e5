"""Measure one row in this Python and print the samples as JSON.

    worker.py ours|stock ROW [--quick]

Every measurement runs in its own process, so that earlier rows and the other
implementation cannot affect it.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> int:
    name, row = sys.argv[1:3]
    out = os.fdopen(os.dup(1), "w")  # libraries print to standard output
    os.dup2(2, 1)
    quick = "--quick" in sys.argv
    if row == "import":
        # Import no other module before this.
        from measure_process import import_time

        samples, version = import_time(name, quick), ""
    else:
        import measure_calls
        import measure_pair
        import measure_process
        import measure_side_channel
        import measure_ucx
        from vllm_nixl._bench.impl import Impl

        impl = Impl(name)
        for module in (
            measure_process,
            measure_calls,
            measure_pair,
            measure_side_channel,
            measure_ucx,
        ):
            if hasattr(module, row):
                samples = getattr(module, row)(impl, quick)
        version = impl.version
    print(json.dumps({"samples": samples, "version": version}), file=out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
