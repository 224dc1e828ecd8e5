"""What comes before the first copy: compiling the kernel, and mapping memory
of another process."""

from __future__ import annotations

import base64
import ctypes
import os
import tempfile
import time
from typing import TYPE_CHECKING, Any

from . import driver
from .driver import IpcHandle
from .memory import KINDS, MIB, Mapped
from .pair import Other, Pair
from .report import Figures, Options, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

# Kind, and what one handle of it maps.
MAPPED = {
    "cudaMalloc": None,
    "expandable, 20 MiB": 20 * MIB,
    "expandable, 2 MiB": 2 * MIB,
}


def size(options: Options) -> int:
    """For all kinds; a multiple of 20 MiB."""
    return options.pick(1020, 40) * MIB


def handles(kind: str, options: Options) -> int:
    chunk = MAPPED[kind]
    return 1 if chunk is None else size(options) // chunk


def rows(options: Options) -> list[Row]:
    found = [
        Row("cold", "first registration, kernel not compiled", "ms", False),
        Row("warm", "first registration, kernel compiled before", "ms", False),
    ]
    for kind in MAPPED:
        count = handles(kind, options)
        what = f"mapping memory of a peer, {kind}"
        found += [
            Row(f"{kind}_each", f"{what}, each of {count}", "us", False),
            Row(f"{kind}_gib", f"{what}, a GiB", "ms", False),
        ]
    return found


def become_ready(cache: str) -> dict[str, Any]:
    """How long a new process takes until it can copy, and by what."""
    other = Other({**os.environ, "CUDA_CACHE_PATH": cache})
    found: dict[str, Any] = other.ask("ready")
    other.close()
    return found


def map_ours(pair: Pair, kind: str) -> float:
    """How many seconds longer the first transfer takes than later ones."""
    memory = pair.make("cudaMalloc", kind, size(pair.options))
    handle = pair.here.handle("READ", memory, [(0, 0, 4096)])
    seconds = []
    for _ in range(20):
        started = time.monotonic()
        pair.here.run(handle)
        seconds.append(time.monotonic() - started)
    handle.release()
    pair.end()
    return seconds[0] - min(seconds[1:])


def map_legacy(pair: Pair) -> float:
    """The same by the driver alone: a handle of cuIpcGetMemHandle()."""
    gpu = pair.here.gpu
    pair.other.ask("make", kind="cudaMalloc", size=size(pair.options))
    text = pair.other.ask("export")["handle"]
    handle = IpcHandle.from_buffer_copy(base64.b64decode(text))
    started = time.monotonic()
    address = gpu.number("cuIpcOpenMemHandle_v2", handle, 1)
    seconds = time.monotonic() - started
    gpu.call("cuIpcCloseMemHandle", address)
    pair.other.ask("end")
    return seconds


def map_created(pair: Pair, kind: str) -> float:
    """The same for memory of cuMemCreate().  A process may import what it has
    exported itself."""
    gpu = pair.here.gpu
    memory: Any = KINDS[kind](gpu, size(pair.options))
    assert isinstance(memory, Mapped)
    started = time.monotonic()
    place = gpu.number("cuMemAddressReserve", memory.size, 0, 0, 0)
    for offset in range(0, memory.size, memory.chunk):
        handle = gpu.number(
            "cuMemRetainAllocationHandle", memory.address + offset
        )
        fd = ctypes.c_int()
        gpu.call(
            "cuMemExportToShareableHandle",
            ctypes.byref(fd),
            handle,
            driver.POSIX_FD,
            0,
        )
        gpu.call("cuMemRelease", handle)
        imported = gpu.number(
            "cuMemImportFromShareableHandle",
            ctypes.c_void_p(fd.value),
            driver.POSIX_FD,
        )
        os.close(fd.value)
        memory.map_handle(place + offset, imported)
    memory.allow_access(place)
    seconds = time.monotonic() - started
    gpu.call("cuMemUnmap", place, memory.size)
    gpu.call("cuMemAddressFree", place, memory.size)
    memory.free()
    return seconds


def measure(options: Options) -> Iterator[tuple[str, Figures, str]]:
    with tempfile.TemporaryDirectory() as cache:
        for name in ("cold", "warm"):
            found = become_ready(cache)
            note = f"copies by {found['copies_by']}"
            yield name, {"ours": found["seconds"] * 1000}, note
    pair = Pair(options)
    for kind, chunk in MAPPED.items():
        figures = {
            "ours": map_ours(pair, kind),
            "floor": map_legacy(pair)
            if chunk is None
            else map_created(pair, kind),
        }
        each = 1e6 / handles(kind, options)
        yield f"{kind}_each", {k: v * each for k, v in figures.items()}, ""
        gib = 1e3 * (1 << 30) / size(options)
        yield f"{kind}_gib", {k: v * gib for k, v in figures.items()}, ""
    pair.close()
