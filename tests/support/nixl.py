"""Whether the stock library is available for our engine `nixl`."""

import functools
import os
import subprocess
import sys

PROBE = """
from vllm_nixl import NixlAgent, nixl_agent_config
NixlAgent("probe", nixl_agent_config(engine="nixl", backends=["POSIX"]))
"""


@functools.cache
def why_no_library():
    """The engine's own reason why it does not work here, or None."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env={**os.environ, "NIXL_LOG_LEVEL": "FATAL"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return None
    return done.stderr.strip().splitlines()[-1]
