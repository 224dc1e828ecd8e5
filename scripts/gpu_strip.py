"""Remove from unpacked wheels what scripts/gpu_check does not need.

    gpu_strip.py SITE

Of stock NIXL it leaves the Python API, the UCX plugin, UCX's modules for GPUs
and for processes of a host, and the libraries that these are linked with.
nixl_ep (kernels for PyTorch), the other plugins, InfiniBand and the programs
are half a gigabyte.  Of numpy it leaves out tests, headers, stubs and f2py.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

# Folders and files of the wheels, and what is kept of UCX and of the plugins.
UNUSED = [
    "nixl_ep*",
    "*.data",
    "*.scripts",
    "numpy/f2py",
    "numpy/**/tests",
    "numpy/**/include",
    "numpy/**/*.pyi",
    "numpy/**/*.a",
    "nvidia",
    "nvidia_cuda_runtime_cu12-*",
]
PLUGIN = "libplugin_UCX.so"
MODULES = re.compile(r"libuc[tm]_(cuda|cma)\.so")
# UCX's module that watches allocations is linked with it.  Other clients of
# NIXL have it from PyTorch.
CUDA_RUNTIME = "nvidia/cuda_runtime/lib/libcudart.so.12"
LIBRARIES = "nixl_cu12.libs"


def libraries(site: Path) -> list[Path]:
    """Of NIXL."""
    return [
        path
        for folder in ("nixl_cu12", LIBRARIES, ".nixl_cu12.mesonpy.libs")
        for path in (site / folder).rglob("*")
        if re.search(r"\.so(\.|$)", path.name)
    ]


def is_root(path: Path) -> bool:
    """Is it loaded by name, not because another library needs it?"""
    return (
        path.parent.name == "nixl_cu12"
        or path.name == PLUGIN
        or (path.parent.name == "ucx" and MODULES.match(path.name) is not None)
    )


def needs(path: Path) -> list[str]:
    shown = subprocess.run(
        ["readelf", "-d", path], capture_output=True, text=True, check=True
    )
    return re.findall(r"\(NEEDED\).*\[(.*)\]", shown.stdout)


def used(found: list[Path]) -> set[Path]:
    """The roots, and what they need of the others."""
    by_name: dict[str, list[Path]] = {}
    for path in found:
        by_name.setdefault(path.name, []).append(path)
    kept: set[Path] = set()
    todo = [path for path in found if is_root(path)]
    while todo:
        path = todo.pop()
        if path not in kept:
            kept.add(path)
            for name in needs(path):
                todo += by_name.get(name, [])
    return kept


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def main() -> None:
    site = Path(sys.argv[1])
    shutil.copy(site / CUDA_RUNTIME, site / LIBRARIES)
    for pattern in UNUSED:
        for path in list(site.glob(pattern)):
            if path.exists():
                remove(path)
    found = libraries(site)
    kept = used(found)
    for path in found:
        if path not in kept:
            path.unlink()


if __name__ == "__main__":
    main()
