"""Which libraries the engines would load, found without loading any.

The order is that of src/engine/native/ucx/library.c and
src/engine/nixl/library.c; a test compares both.
"""

from __future__ import annotations

import glob
import os
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

UCX_WHEELS = (
    ("NIXL wheel (cu13)", "nixl_cu13.libs/libucp-*.so*"),
    ("NIXL wheel (cu12)", "nixl_cu12.libs/libucp-*.so*"),
    ("libucx wheel", "libucx/lib/libucp.so.0"),
)
NIXL_WHEELS = ("nixl_cu13", "nixl_cu12", "nixl_rocm")
_CAPI = "libnixl_capi.so"
# torch/version.py has a line like: cuda: Optional[str] = '12.8'
_TORCH_CUDA = re.compile(r"^cuda\b[^=]*=\s*['\"](\d+)", re.MULTILINE)


class Library(NamedTuple):
    """A library that was found: the path, or a bare name for dlopen()."""

    path: str
    source: str


def in_path(pattern: str, path: Sequence[str]) -> str | None:
    """The first file that matches the pattern, folder by folder."""
    for folder in path:
        found = sorted(glob.glob(os.path.join(glob.escape(folder), pattern)))
        if found:
            return found[0]
    return None


def torch_cuda(path: Sequence[str]) -> int:
    """The CUDA major version that torch was built for; 0: none."""
    file = in_path("torch/version.py", path)
    if file is None:
        return 0
    with open(file, errors="replace") as stream:
        found = _TORCH_CUDA.search(stream.read())
    return int(found.group(1)) if found else 0


def ucx(environ: Mapping[str, str], path: Sequence[str]) -> list[Library]:
    """The files for libucp that the engine native tries, in its order."""
    named = environ.get("VLLM_NIXL_UCX_LIBRARY", "")
    if named == "none":
        return []
    if named:
        return [Library(named, "VLLM_NIXL_UCX_LIBRARY")]
    found = [
        (source, in_path(pattern, path)) for source, pattern in UCX_WHEELS
    ]
    wheels = [Library(file, source) for source, file in found if file]
    return [*wheels, Library("libucp.so.0", "system")]


def nixl(environ: Mapping[str, str], path: Sequence[str]) -> Library:
    """The libnixl_capi that the engine nixl opens."""
    named = environ.get("VLLM_NIXL_LIBRARY", "")
    if named:
        return Library(named, "VLLM_NIXL_LIBRARY")
    cuda = torch_cuda(path)
    first = (f"nixl_cu{cuda}",) if cuda else ()
    for package in (*first, *NIXL_WHEELS):
        file = in_path(f".{package}.mesonpy.libs/{_CAPI}", path)
        if file is not None:
            return Library(file, f"wheel {package.replace('_', '-')}")
    return Library(_CAPI, "system")
