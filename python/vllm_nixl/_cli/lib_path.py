"""Where the libraries are: ours, libucp, and NIXL's.

Without an option, lists all.  With one, writes that path alone; the exit
status is 1 if there is none.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from .. import _core
from . import child, info
from .doctor.findings import Machine

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from .output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    choice = parser.add_mutually_exclusive_group()
    for name, (text, _) in _LIBRARIES.items():
        choice.add_argument(
            f"--{name}",
            dest="library",
            action="store_const",
            const=name,
            help=text,
        )


def run(options: argparse.Namespace, out: Output) -> int:
    names = [options.library] if options.library else list(_LIBRARIES)
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = _LIBRARIES[name][1]()
        except child.ChildError:
            found[name] = None
    if options.library:
        path = found[options.library]
        if path is not None:
            out.line(path)
    else:
        out.fields([(name, path or "none") for name, path in found.items()])
    out.result(dict(found))
    return int(bool(options.library) and found[options.library] is None)


def _libvnx() -> str | None:
    """libvnx, by its pkg-config file."""
    tool = shutil.which("pkg-config") or shutil.which("pkgconf")
    if tool is None:
        return None
    asked = subprocess.run(
        [tool, "--variable=libdir", "vnx"],
        capture_output=True,
        text=True,
        check=False,
    )
    file = Path(asked.stdout.strip()) / "libvnx.so"
    return str(file) if asked.returncode == 0 and file.exists() else None


def _ucx() -> str:
    path: str = info.ucx_library(Machine())["path"]
    return path


def _nixl() -> str:
    path: str = info.nixl_library(Machine())["path"]
    return path


_LIBRARIES: dict[str, tuple[str, Callable[[], str | None]]] = {
    "extension": ("the extension, vllm_nixl._core", lambda: _core.__file__),
    "capi": (
        "NIXL's C interface of this package, libnixl_capi.so",
        lambda: str(Path(_core.__file__).with_name("libnixl_capi.so")),
    ),
    "vnx": ("libvnx, the C library, by pkg-config", _libvnx),
    "ucx": ("the libucp that agents would load", _ucx),
    "nixl": ("NIXL's own libnixl_capi that agents would load", _nixl),
}
