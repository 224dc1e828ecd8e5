"""Is the stock library there, for our engine `nixl`?"""

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
    """None, or why the engine does not work here, in its own words."""
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
