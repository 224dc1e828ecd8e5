"""Rows that measure two processes of one host."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
from impl import MIB, Memory, blocks, prepare, scatter
from peer import Peer

Samples = dict[str, list[float]]

VOLUME = 256 * MIB
SEEDS = (11, 12)  # for the local and the remote order, also in bare.py


class Reader:
    """The side of this process: an agent, memory, and a peer."""

    def __init__(
        self,
        impl: Any,
        size: int,
        shared: bool = False,
        threads: int | None = None,
        python: str | None = None,
    ) -> None:
        """`python`: the Python of a stock peer; None: a peer like `impl`."""
        self.impl = impl
        self.peer = Peer(
            "stock" if python else impl.name, size, shared, python
        )
        self.memory = Memory(size)
        self.post_seconds: list[float] = []
        self.agent = impl.agent("reader", threads)
        self.agent.register_memory(self.memory.region(), "DRAM")
        self.peer.introduce(self.agent)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.peer.close()

    def handle(
        self, block: int, mine: Any, theirs: Any, operation: str = "READ"
    ) -> Any:
        size = self.memory.size
        local = prepare(
            self.agent,
            "NIXL_INIT_AGENT",
            blocks(self.memory.address, size, block),
        )
        remote = prepare(
            self.agent, "peer", blocks(self.peer.address, size, block)
        )
        return self.agent.make_prepped_xfer(
            operation, local, mine, remote, theirs
        )

    def run(self, handle: Any) -> float:
        started = time.perf_counter()
        state = self.agent.transfer(handle)
        self.post_seconds.append(time.perf_counter() - started)
        self.impl.finish(self.agent, handle, state)
        return time.perf_counter() - started

    def check(self, block: int, mine: Any, theirs: Any) -> None:
        """Check the data: each word of the peer's memory is its index."""
        words = block // 8
        found = self.memory.words().reshape(-1, words)[mine]
        wanted = theirs.astype(np.uint64)[:, None] * np.uint64(words)
        wanted = wanted + np.arange(words, dtype=np.uint64)
        if not np.array_equal(found, wanted):
            raise RuntimeError("the received bytes are wrong")


def _bandwidth(impl: Any, block: int, shared: bool, quick: bool) -> Samples:
    size = VOLUME // 8 if quick else VOLUME
    mine, theirs = (scatter(size // block, seed) for seed in SEEDS)
    with Reader(impl, size, shared) as reader:
        handle = reader.handle(block, mine, theirs)
        seconds = [reader.run(handle) for _ in range(3 if quick else 8)]
        reader.check(block, mine, theirs)
    return {"gbs": [size / value / 1e9 for value in seconds[1:]]}


def read_4k(impl: Any, quick: bool) -> Samples:
    return _bandwidth(impl, 4 << 10, False, quick)


def read_16k(impl: Any, quick: bool) -> Samples:
    return _bandwidth(impl, 16 << 10, False, quick)


def read_64k(impl: Any, quick: bool) -> Samples:
    return _bandwidth(impl, 64 << 10, False, quick)


def read_1m(impl: Any, quick: bool) -> Samples:
    return _bandwidth(impl, 1 << 20, False, quick)


def shared_4k(impl: Any, quick: bool) -> Samples:
    return _bandwidth(impl, 4 << 10, True, quick)


def shared_16k(impl: Any, quick: bool) -> Samples:
    return _bandwidth(impl, 16 << 10, True, quick)


def shared_64k(impl: Any, quick: bool) -> Samples:
    return _bandwidth(impl, 64 << 10, True, quick)


def shared_1m(impl: Any, quick: bool) -> Samples:
    return _bandwidth(impl, 1 << 20, True, quick)


def read_latency(impl: Any, quick: bool) -> Samples:
    """The median time of one 4 KiB block, posted repeatedly."""
    with Reader(impl, MIB) as reader:
        one, other = np.array([3]), np.array([200])
        handle = reader.handle(4096, one, other)
        count = 500 if quick else 5000
        seconds = [reader.run(handle) for _ in range(count)]
        reader.check(4096, one, other)
    return {"us": [statistics.median(seconds[count // 10 :]) * 1e6]}


def notification(impl: Any, quick: bool) -> Samples:
    """The median time of a round trip while both sides poll."""
    with Reader(impl, MIB) as reader:
        agent = reader.agent
        count = 50 if quick else (2000 if impl.ours else 200)
        reader.peer.order("echo", count=count)
        seconds = []
        for number in range(count):
            started = time.perf_counter()
            agent.send_notif("peer", b"%d" % number)
            while not agent.get_new_notifs():
                if time.perf_counter() - started > 30:
                    raise TimeoutError("no notification returned")
            seconds.append(time.perf_counter() - started)
    return {"us": [statistics.median(seconds[count // 10 :]) * 1e6]}
