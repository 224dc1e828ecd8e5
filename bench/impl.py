"""One interface to both implementations, and memory for them to move.

This module runs in the Python that has the implementation installed.  It uses
only the API that both have, except where it tests `ours`.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import mmap
import time
from collections.abc import Callable
from typing import Any

import numpy as np

MIB = 1 << 20
GRACE_S = 60.0  # every transfer here ends sooner


class Impl:
    """`ours` (vllm_nixl) or `stock` (nixl)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ours = name == "ours"
        self.module: Any = importlib.import_module(
            "vllm_nixl" if self.ours else "nixl._api"
        )
        if self.ours:
            self.version: str = self.module.__version__
            self.agent_class = self.module.NixlAgent
        else:
            self.version = importlib.metadata.version("nixl")
            self.agent_class = self.module.nixl_agent
        self.config_class = self.module.nixl_agent_config

    def agent(self, name: str, threads: int | None = None) -> Any:
        config = {} if threads is None else {"num_threads": threads}
        return self.agent_class(name, self.config_class(**config))

    def finish(self, agent: Any, handle: Any, state: str) -> None:
        """Wait for the end of a transfer in the intended way of each."""
        if state == "DONE":
            return
        if self.ours:
            agent.wait([handle], GRACE_S)
            return
        deadline = time.monotonic() + GRACE_S
        while (state := agent.check_xfer_state(handle)) == "PROC":
            if time.monotonic() > deadline:
                raise TimeoutError("the transfer did not end")
        if state != "DONE":
            raise RuntimeError(f"the transfer ended with {state}")


class Memory:
    """Touched pages: private, or, with `impl`, a shared buffer.

    All processes and the bare loops use 4 KiB pages, so that the allocator
    makes no difference.
    """

    def __init__(self, size: int, impl: Impl | None = None) -> None:
        self.size = size
        if impl is None:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            self.owner: Any = mmap.mmap(-1, size, flags=flags)
        else:
            self.owner = impl.module.shared_buffer(size)
        self.array = np.frombuffer(self.owner, np.uint8)
        self.array[:] = 0
        self.address = self.array.ctypes.data

    def region(self) -> list[tuple[int, int, int, str]]:
        return [(self.address, self.size, 0, "")]

    def words(self) -> np.ndarray:
        return self.array.view(np.uint64)


def rows(address: int, offsets: np.ndarray, length: int) -> np.ndarray:
    """An Nx3 array of descriptors."""
    table = np.empty((len(offsets), 3), np.uint64)
    table[:, 0] = np.uint64(address) + offsets.astype(np.uint64)
    table[:, 1] = length
    table[:, 2] = 0
    return table


def blocks(address: int, size: int, length: int) -> np.ndarray:
    """Every block of a memory, in order."""
    count = size // length
    return rows(address, np.arange(count, dtype=np.uint64) * length, length)


def prepare(agent: Any, who: str, table: Any) -> Any:
    return agent.prep_xfer_dlist(who, agent.get_xfer_descs(table, "DRAM"))


def scatter(count: int, seed: int) -> np.ndarray:
    """A random order of 0 .. count - 1, int64 as in vLLM."""
    return np.random.default_rng(seed).permutation(count).astype(np.int64)


def _status_kib(field: str) -> int:
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(field + ":"):
                return int(line.split()[1])
    raise KeyError(field)


def peak_growth(work: Callable[[], Any]) -> tuple[float, Any]:
    """Peak growth of the process in MB while `work` ran."""
    gc.collect()
    before = _status_kib("VmRSS")
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # reset the peak
    result = work()
    return max(0.0, (_status_kib("VmHWM") - before) * 1024 / 1e6), result


def tail(seconds: list[float]) -> dict[str, list[float]]:
    """The 99th percentile and the maximum, in microseconds."""
    ordered = sorted(seconds)
    return {
        "p99_us": [ordered[len(ordered) * 99 // 100] * 1e6],
        "longest_us": [ordered[-1] * 1e6],
    }
