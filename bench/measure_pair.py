"""Rows that measure two processes of one host."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
from vllm_nixl._bench.impl import MIB, scatter
from vllm_nixl._bench.reader import SEEDS, Reader

Samples = dict[str, list[float]]

VOLUME = 256 * MIB  # also of the bare loops (compare.py)


def _bandwidth(impl: Any, block: int, shared: bool, quick: bool) -> Samples:
    size = VOLUME // 8 if quick else VOLUME
    mine, theirs = (scatter(size // block, seed) for seed in SEEDS)
    memory = "shared" if shared else "private"
    with Reader(impl, size, peer_memory=memory) as reader:
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
        reader.peer.order("echo", seconds=60, count=count)
        seconds = []
        for number in range(count):
            started = time.perf_counter()
            agent.send_notif("peer", b"%d" % number)
            while not agent.get_new_notifs():
                if time.perf_counter() - started > 30:
                    raise TimeoutError("no notification returned")
            seconds.append(time.perf_counter() - started)
    return {"us": [statistics.median(seconds[count // 10 :]) * 1e6]}
