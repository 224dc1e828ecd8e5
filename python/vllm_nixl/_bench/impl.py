"""One interface to both implementations, and memory for them to move.

It uses only the API that both have, except where it tests `ours`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import mmap
import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

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

    def finish_all(self, agent: Any, handles: Sequence[Any]) -> None:
        """Wait for the end of posted transfers."""
        if self.ours:
            agent.wait(handles, GRACE_S)
            return
        for handle in handles:
            self.finish(agent, handle, "PROC")


class Memory:
    """Touched pages: private, or, with `impl`, a shared buffer.

    All processes and the bare loops use 4 KiB pages, so that the allocator
    makes no difference.
    """

    kind = "DRAM"

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

    def fill(self) -> None:
        """Make each word its index."""
        words = self.words()
        words[:] = np.arange(len(words), dtype=np.uint64)

    def take(self, block: int, where: Any) -> np.ndarray:
        """The words of these blocks: a row for each."""
        found: np.ndarray = self._rows(block)[where]
        return found

    def put(self, block: int, where: Any, words: Any) -> None:
        """Set the words of these blocks."""
        self._rows(block)[where] = words

    def _rows(self, block: int) -> np.ndarray:
        used = self.size // block * block
        return self.words()[: used // 8].reshape(-1, block // 8)


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


def prepare(agent: Any, who: str, table: Any, kind: str = "DRAM") -> Any:
    return agent.prep_xfer_dlist(who, agent.get_xfer_descs(table, kind))


def scatter(count: int, seed: int) -> np.ndarray:
    """A random order of 0 .. count - 1, int64 as in vLLM."""
    return np.random.default_rng(seed).permutation(count).astype(np.int64)
