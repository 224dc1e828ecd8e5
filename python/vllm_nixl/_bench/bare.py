"""The bare loops (bench/bare), and the measurements of points.py with them.

They run in a process of their own (worker.py): they fork.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np

from .points import Sample, moved, tables
from .reader import windows

# The second dot keeps Python from taking it for an extension module.
LIBRARY = Path(__file__).resolve().with_name("bench.bare.so")
PLAN = struct.Struct("@PQQQQQd")  # vnx_bare_plan_t of bench/bare/bare.h
# Fewer bytes than this are copied by one thread: waking a second one would
# take longer than it saves.
SPLIT_MIN = 256 << 10
ROOM = 1 << 20  # most passes of a sample


def threads() -> int:
    """The default number of threads of an agent."""
    return min(4, os.cpu_count() or 1)


def missing() -> str | None:
    """Why there are no bare loops, or None."""
    if LIBRARY.exists():
        return None
    return f"{LIBRARY.name} is not installed beside {Path(__file__).parent}"


def _library() -> Any:
    library = ctypes.CDLL(str(LIBRARY), use_errno=True)
    library.vnx_bare_open.restype = ctypes.c_void_p
    library.vnx_bare_open.argtypes = [ctypes.c_uint64, ctypes.c_int]
    library.vnx_bare_close.argtypes = [ctypes.c_void_p]
    for name, first in (
        ("copy", [ctypes.c_void_p, ctypes.c_char_p]),
        ("wake", [ctypes.c_double]),
        ("deliver", [ctypes.c_uint]),
    ):
        function = getattr(library, f"vnx_bare_{name}")
        function.restype = ctypes.c_int64
        function.argtypes = [*first, ctypes.c_void_p, ctypes.c_int64]
    return library


class Bare:
    """Two memories of `size` bytes, the other one in another process."""

    def __init__(self, size: int, shared: bool = False) -> None:
        self.size = size
        self.library = _library()
        self.memories = None
        if size:
            self.memories = self.library.vnx_bare_open(size, shared)
            if not self.memories:
                raise self._error("vnx_bare_open")

    def close(self) -> None:
        if self.memories:
            self.library.vnx_bare_close(self.memories)
            self.memories = None

    def _error(self, what: str) -> OSError:
        number = ctypes.get_errno()
        return OSError(number, f"{what}: {os.strerror(number)}")

    def _times(self, name: str, *arguments: Any, room: int) -> list[float]:
        taken = np.empty(room, np.float64)
        function = getattr(self.library, f"vnx_bare_{name}")
        count = function(*arguments, taken.ctypes.data, room)
        if count < 0:
            raise self._error(f"vnx_bare_{name}")
        found: list[float] = taken[:count].tolist()
        return found

    def copy(
        self,
        mine: Any,
        theirs: Any,
        block: int,
        batch: int,
        write: bool = False,
        seconds: float = 0.0,
        passes: int = ROOM,
    ) -> list[float]:
        """Copy these blocks, `batch` at a time; the seconds of each batch."""
        pairs = np.empty((len(mine), 2), np.uint64)
        pairs[:, 0], pairs[:, 1] = mine, theirs
        pairs *= np.uint64(block)
        count = threads() if block * batch >= SPLIT_MIN else 1
        plan = PLAN.pack(
            pairs.ctypes.data, len(pairs), block, batch, count, write, seconds
        )
        return self._times("copy", self.memories, plan, room=passes)

    def wake(self, busy_us: float, passes: int) -> list[float]:
        """Seconds that it takes to signal a sleeping thread."""
        return self._times("wake", busy_us, room=passes)

    def deliver(self, pause_us: int, passes: int) -> list[float]:
        """Seconds of a message from another process to a sleeping program
        whose connection belongs to a thread."""
        return self._times("deliver", pause_us, room=passes)

    # -- As in points.py ------------------------------------------------------

    def _moved(
        self,
        op: str,
        block: int,
        places: tuple[Any, Any],
        batch: int,
        seconds: float,
    ) -> Sample:
        write = op == "WRITE"
        self.copy(*places, block, batch, write, passes=1)
        cpu = time.process_time()
        taken = self.copy(*places, block, batch, write, seconds)
        cpu = time.process_time() - cpu
        nothing = [0.0] * len(taken)
        return moved(nothing, nothing, taken, block * batch, batch, cpu)

    def transfers(
        self, op: str, block: int, batch: int, seconds: float, **_: Any
    ) -> Sample:
        mine, theirs = map(np.concatenate, windows(self.size, block, batch))
        return self._moved(op, block, (mine, theirs), batch, seconds)

    def latency(self, op: str, block: int, seconds: float, **_: Any) -> Sample:
        count = self.size // block
        places = [count // 3], [count * 2 // 3]
        found = self._moved(op, block, places, 1, seconds)
        return {
            "iterations": found["iterations"],
            "us": found["tx_us"],
            "cpu_s_per_gib": found["cpu_s_per_gib"],
        }

    def burst(
        self,
        op: str,
        block: int,
        layers: int,
        blocks: int,
        requests: int,
        seconds: float,
        **_: Any,
    ) -> Sample:
        wanted = tables(self.size, block, layers, blocks, requests)
        mine, theirs = map(np.concatenate, zip(*wanted, strict=True))
        return self._moved(op, block, (mine, theirs), len(mine), seconds)
