"""Rows that measure two processes connected by UCX, as between hosts."""

from __future__ import annotations

import os
import select
import statistics
import time
from typing import Any

import numpy as np
import peer
from measure_pair import VOLUME, Samples
from vllm_nixl._bench.impl import MIB, scatter
from vllm_nixl._bench.reader import SEEDS, Reader

BLOCKS = (16 << 10, 64 << 10, 1 << 20)


def _switch_to_ucx(transports: str | None) -> None:
    """Use UCX in both processes, with all or only these transports."""
    os.environ["VLLM_NIXL_SAME_HOST"] = "0"
    if transports is not None:
        os.environ["UCX_TLS"] = transports


def _has_ucx(impl: Any) -> bool:
    """Ours also works without a libucp; then these rows are left out."""
    return not impl.ours or "ucx" in impl.agent("probe").describe()


def _move(reader: Reader, block: int, times: int) -> Samples:
    """READ and WRITE of all blocks of this size, in random order."""
    size = reader.memory.size
    mine, theirs = (scatter(size // block, seed) for seed in SEEDS)
    reads, writes = (
        reader.handle(block, mine, theirs, operation)
        for operation in ("READ", "WRITE")
    )
    reader.post_seconds.clear()
    read_seconds = [reader.run(reads) for _ in range(times)]
    post_seconds = list(reader.post_seconds)
    # Write the content to the peer, then read it back.
    content = reader.memory.words().copy()
    write_seconds = [reader.run(writes) for _ in range(times)]
    reader.memory.array[:] = 0
    reader.run(reads)
    if not np.array_equal(reader.memory.words(), content):
        raise RuntimeError("the written bytes are wrong")
    name = f"{block >> 10}k"
    return {
        f"read_{name}": [size / value / 1e9 for value in read_seconds[1:]],
        f"write_{name}": [size / value / 1e9 for value in write_seconds[1:]],
        f"post_{name}": [value * 1e3 for value in post_seconds[1:]],
    }


def _moves(
    impl: Any, quick: bool, threads: int = 1, transports: str | None = None
) -> Samples:
    """Stock always uses its default: one worker, which the caller's thread
    and the progress thread share."""
    _switch_to_ucx(transports)
    if not _has_ucx(impl):
        return {}
    size = VOLUME // 8 if quick else VOLUME
    samples: Samples = {}
    with Reader(impl, size, threads=threads if impl.ours else None) as reader:
        first = BLOCKS[0]
        mine, theirs = (scatter(size // first, seed) for seed in SEEDS)
        reader.run(reader.handle(first, mine, theirs))
        reader.check(first, mine, theirs)
        for block in BLOCKS:
            samples.update(_move(reader, block, 3 if quick else 8))
    return samples


def ucx(impl: Any, quick: bool) -> Samples:
    return _moves(impl, quick)


def ucx_two(impl: Any, quick: bool) -> Samples:
    return _moves(impl, quick, threads=2)


def ucx_tcp(impl: Any, quick: bool) -> Samples:
    return _moves(impl, quick, transports="tcp")


def _wakes(impl: Any, count: int, python: str | None) -> list[float]:
    """Microseconds from a peer's send to the wake-up of this process.  Both
    processes read the same clock, because both run on this host."""
    found = []
    with Reader(impl, MIB, python=python, program=peer.__file__) as reader:
        agent = reader.agent
        poll = select.poll()
        poll.register(agent.fileno(), select.POLLIN)
        for _ in range(count):
            reader.peer.order("tell_time", after=0.002)
            messages: list[bytes] = []
            while not messages:
                if not poll.poll(30_000):
                    raise TimeoutError("no notification arrived")
                now = time.monotonic_ns()
                for some in agent.get_new_notifs().values():
                    messages += some
            found.append((now - int(messages[0])) / 1e3)
    return found[count // 10 :]


def ucx_wake(impl: Any, quick: bool) -> Samples:
    """The time of a notification to an agent that sleeps on its descriptor,
    from one of our agents, and from a stock agent if stock is installed."""
    _switch_to_ucx(None)
    if not _has_ucx(impl):
        return {}
    count = 50 if quick else 1000
    samples = {"us": [statistics.median(_wakes(impl, count, None))]}
    python = os.environ.get("VLLM_NIXL_STOCK_PYTHON")
    if python:
        from_stock = _wakes(impl, count, python)
        samples["from_stock_us"] = [statistics.median(from_stock)]
    return samples
