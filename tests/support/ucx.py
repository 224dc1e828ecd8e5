"""Locations of UCX libraries, and environments of agents that use them.

`environment(...)` is for our agents that must reach peers on this host as if
they were on another.
"""

import functools
import glob
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from support.peer import child_environment

# As in a user's environment: all transports that UCX finds, or TCP alone.
TRANSPORTS = {"default": {}, "tcp": {"UCX_TLS": "tcp"}}


def libucx_wheel():
    """The library of the libucx wheel in this Python, or None."""
    spec = importlib.util.find_spec("libucx")
    if spec is None or not spec.submodule_search_locations:
        return None
    found = Path(
        next(iter(spec.submodule_search_locations)), "lib/libucp.so.0"
    )
    return str(found) if found.exists() else None


def nixl_wheel(python):
    """The library in the NIXL wheel of another Python, or None."""
    if not python:
        return None
    probe = "import sysconfig; print(sysconfig.get_path('platlib'))"
    done = subprocess.run(
        [python, "-c", probe], capture_output=True, text=True, check=False
    )
    folder = done.stdout.strip()
    found = glob.glob(f"{folder}/nixl_cu*.libs/libucp-*.so*")
    return found[0] if found else None


def library(source):
    """The file of a source, "libucx" or "nixl"; None if it is missing."""
    if source == "libucx":
        return libucx_wheel()
    return nixl_wheel(os.environ.get("VLLM_NIXL_STOCK_PYTHON"))


def any_library():
    return library("libucx") or library("nixl")


def environment(path, transport="default"):
    """The environment of one of our agents that uses this library and no
    shared memory."""
    return {
        "VLLM_NIXL_ENGINE": "native",
        "VLLM_NIXL_SAME_HOST": "0",
        "VLLM_NIXL_UCX_LIBRARY": path,
        **TRANSPORTS[transport],
    }


@functools.cache
def why_not(path):
    """The reason why our agents cannot use that library, or None."""
    if path is None:
        return "a wheel with UCX is missing"
    probe = (
        "from support import blob; import vllm_nixl; "
        "agent = vllm_nixl.nixl_agent('probe'); "
        "found = blob.parse(agent.get_agent_metadata()); "
        "raise SystemExit(0 if b'UCX' in found.connections else 3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe],
        capture_output=True,
        text=True,
        check=False,
        env=child_environment(environment(path)),
    )
    if done.returncode == 0:
        return None
    return f"our metadata has no connection by UCX: {done.stderr.strip()}"
