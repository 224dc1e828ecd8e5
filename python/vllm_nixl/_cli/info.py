"""Versions, features, and which libraries would be used.

Loads no library into this process; `vllm-nixl doctor` tries them.
"""

from __future__ import annotations

import os
import platform
import sys
from typing import TYPE_CHECKING, Any

from .. import __version__, _core, features
from . import child, libraries, variables
from .doctor import packages
from .doctor.findings import Machine

if TYPE_CHECKING:
    import argparse

    from .output import Output

_SECONDS = 30
_PACKAGES = (
    *("numpy", "torch", "nixl", "nixl-cu12", "nixl-cu13", "nixl-rocm"),
    *("libucx-cu12", "libucx-cu13", "vllm", "sglang", "lmcache"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def run(options: argparse.Namespace, out: Output) -> int:
    machine = Machine()
    have = packages.installed(machine)
    facts: dict[str, Any] = {
        "vllm_nixl": __version__,
        "extension": _core.__file__,
        "features": dict(features),
        "python": platform.python_version(),
        "executable": sys.executable,
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        "processors": len(os.sched_getaffinity(0)),
        "libucp": _ucx(machine),
        "libnixl_capi": _nixl(machine),
        "engine": machine.environ.get("VLLM_NIXL_ENGINE") or "auto",
        "packages": {name: have[name] for name in _PACKAGES if name in have},
        "environment": variables.in_force(machine.environ),
    }
    _show(facts, out)
    out.result(facts)
    return 0


def ucx_library(machine: Machine) -> dict[str, Any]:
    """The libucp that would be loaded; ChildError: none."""
    candidates = libraries.ucx(machine.environ, machine.path)
    if not candidates:
        raise child.ChildError("switched off by VLLM_NIXL_UCX_LIBRARY=none")
    found, _ = child.run(
        "open_library",
        {
            "files": [library.path for library in candidates],
            "version": "ucp_get_version_string",
        },
        _SECONDS,
    )
    source = candidates[len(found["failures"])].source
    return {
        "path": found["path"],
        "source": source,
        "version": found["version"],
    }


def _ucx(machine: Machine) -> dict[str, Any]:
    try:
        return ucx_library(machine)
    except child.ChildError as error:
        return {"error": str(error)}


def nixl_library(machine: Machine) -> dict[str, Any]:
    """The libnixl_capi that would be loaded; ChildError: none."""
    library = libraries.nixl(machine.environ, machine.path)
    found, _ = child.run("open_library", {"files": [library.path]}, _SECONDS)
    return {"path": found["path"], "source": library.source}


def _nixl(machine: Machine) -> dict[str, Any]:
    try:
        return nixl_library(machine)
    except child.ChildError as error:
        return {"error": str(error)}


def _show(facts: dict[str, Any], out: Output) -> None:
    parts = [name for name, there in facts["features"].items() if there]
    lacks = [name for name, there in facts["features"].items() if not there]
    out.fields(
        [
            ("vllm_nixl", f"{facts['vllm_nixl']}, {facts['extension']}"),
            (
                "features",
                ", ".join(parts)
                + (f"; without {', '.join(lacks)}" if lacks else ""),
            ),
            ("python", f"{facts['python']}, {facts['executable']}"),
            (
                "system",
                f"{facts['kernel']}, {facts['machine']}, {facts['libc']}, "
                f"{facts['processors']} processors",
            ),
            ("engine", facts["engine"]),
            ("libucp", _library(facts["libucp"])),
            ("libnixl_capi", _library(facts["libnixl_capi"])),
            (
                "packages",
                ", ".join(f"{n} {v}" for n, v in facts["packages"].items())
                or "none of those that matter here",
            ),
        ]
    )
    out.heading("environment")
    rows = list(facts["environment"].items())
    out.fields(rows or [("no variable is set", "")], indent=2)


def _library(facts: dict[str, Any]) -> str:
    if "error" in facts:
        return f"none: {facts['error']}"
    version = f"{facts['version']}, " if facts.get("version") else ""
    return f"{version}{facts['path']} ({facts['source']})"
