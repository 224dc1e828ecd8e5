"""The measurements of an agent: each function takes one sample.

The first transfer of each sample warms up and is not counted.
"""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from .impl import scatter
from .owner import ECHO_END
from .reader import SEEDS, windows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .reader import Reader

GIB = 1 << 30
Sample = dict[str, Any]
clock = time.perf_counter


def microseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Average and percentiles of times."""
    found = np.asarray(seconds) * 1e6
    p50, p99, p999 = np.percentile(found, (50, 99, 99.9))
    return {
        "avg": float(found.mean()),
        "p50": float(p50),
        "p99": float(p99),
        "p99.9": float(p999),
        "longest": float(found.max()),
    }


def moved(
    prep: Sequence[float],
    post: Sequence[float],
    tx: Sequence[float],
    size: int,
    descs: int,
    cpu: float,
) -> Sample:
    """The figures of transfers of `size` bytes and `descs` descriptors.

    prep, post, tx: seconds to make each, to post it, and from then to its end
    cpu: CPU seconds of both sides during all of them
    """
    count = len(tx)
    seconds = sum(prep) + sum(post) + sum(tx)
    return {
        "iterations": count,
        "bytes": size * count,
        "seconds": seconds,
        "gbs": size * count / seconds / 1e9,
        "latency_us": seconds / (count * descs) * 1e6,
        "prep_us": microseconds(prep),
        "post_us": microseconds(post),
        "tx_us": microseconds(tx),
        "cpu_s_per_gib": cpu / (size * count / GIB),
    }


class Cpu:
    """CPU seconds of both sides since its creation."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.start = self._now()

    def _now(self) -> float:
        theirs: float = self.reader.peer.ask("cpu")["seconds"]
        return theirs + time.process_time()

    def spent(self) -> float:
        return self._now() - self.start


# -- Transfers ---------------------------------------------------------------


def transfers(
    reader: Reader,
    op: str,
    block: int,
    batch: int,
    seconds: float,
    verify: bool = False,
) -> Sample:
    """One transfer after the other, each of `batch` random blocks: it is
    made, posted, awaited and released."""
    mine, theirs = windows(reader.size, block, batch)
    if verify:
        reader.verify(op, block, mine[0], theirs[0])
    reader.written(op)
    agent, finish = reader.agent, reader.impl.finish
    make, post = agent.make_prepped_xfer, agent.transfer
    release = agent.release_xfer_handle
    local, remote = reader.sides(block)
    made, posted, ended = [], [], []

    def work(i: int) -> float:
        started = clock()
        handle = make(op, local, mine[i], remote, theirs[i])
        t1 = clock()
        state = post(handle)
        t2 = clock()
        finish(agent, handle, state)
        t3 = clock()
        release(handle)
        made.append(t1 - started)
        posted.append(t2 - t1)
        ended.append(t3 - t2)
        return t3

    work(0)
    cpu = Cpu(reader)
    deadline, number = clock() + seconds, 0
    while True:
        number += 1
        if work(number % len(mine)) > deadline:
            break
    return moved(
        made[1:], posted[1:], ended[1:], block * batch, batch, cpu.spent()
    )


def latency(
    reader: Reader, op: str, block: int, seconds: float, verify: bool = False
) -> Sample:
    """One block, posted again and again: from the post to the end."""
    count = reader.size // block
    mine, theirs = np.array([count // 3]), np.array([count * 2 // 3])
    if verify:
        reader.verify(op, block, mine, theirs)
    reader.written(op)
    handle = reader.handle(block, mine, theirs, op)
    reader.run(handle)
    cpu = Cpu(reader)
    found: list[float] = []
    deadline = clock() + seconds
    while not found or clock() < deadline:
        found.append(reader.run(handle))
    spent = cpu.spent()
    reader.agent.release_xfer_handle(handle)
    return {
        "iterations": len(found),
        "us": microseconds(found),
        "cpu_s_per_gib": spent / (block * len(found) / GIB),
    }


# -- Notifications -----------------------------------------------------------


def notifications(
    reader: Reader, sleep: bool, seconds: float, **_: Any
) -> Sample:
    """Round trips of a short notification.  `sleep`: both sides sleep until
    one arrives; otherwise both poll."""
    agent, peer = reader.agent, reader.peer
    wake = select.poll()
    if sleep:
        wake.register(agent.fileno(), select.POLLIN)
    grace = 30.0
    peer.order("echo", seconds=seconds + grace, sleep=sleep)
    number, end = 0, clock() + seconds
    found: list[float] = []
    while len(found) < 2 or clock() < end:
        number += 1
        sent = b"%d" % number
        started = clock()
        agent.send_notif(peer.agent_name, sent)
        while True:
            if sleep:
                wake.poll(100)
            back = agent.get_new_notifs()
            if back:
                break
            if clock() - started > grace:
                raise TimeoutError("no notification returned")
        found.append(clock() - started)
        if list(back.values()) != [[sent]]:
            raise RuntimeError(f"the wrong notification returned: {back}")
    agent.send_notif(peer.agent_name, ECHO_END)
    return {"iterations": len(found) - 1, "us": microseconds(found[1:])}


# -- Bursts of requests ------------------------------------------------------


def tables(
    size: int, block: int, layers: int, blocks: int, requests: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The descriptors of each request of a burst: its blocks of the first
    layer, then those of the second, and so on.

    The memory has all blocks of a layer side by side.  The block tables of
    the requests are disjoint parts of one random order.
    """
    pool = size // block // layers
    starts = np.arange(layers, dtype=np.int64)[:, None] * pool
    orders = [scatter(pool, seed) for seed in SEEDS]
    found = []
    for number in range(requests):
        part = slice(number * blocks, (number + 1) * blocks)
        mine, theirs = ((starts + order[part]).ravel() for order in orders)
        found.append((mine, theirs))
    return found


def burst(
    reader: Reader,
    op: str,
    block: int,
    layers: int,
    blocks: int,
    requests: int,
    seconds: float,
    verify: bool = False,
) -> Sample:
    """Requests that arrive at once: each is a transfer of its own; all are
    posted, then all are awaited.  Beside it the ceiling: the same bytes in
    one descriptor."""
    wanted = tables(reader.size, block, layers, blocks, requests)
    if verify:
        for mine, theirs in wanted:
            reader.verify(op, block, mine, theirs)
    reader.written(op)
    found = _bursts(reader, op, block, wanted, seconds / 2)
    whole = block * layers * blocks * requests
    ceiling = transfers(reader, op, whole, 1, seconds / 2, verify)
    found["ceiling_gbs"] = ceiling["gbs"]
    found["of_ceiling"] = found["gbs"] / ceiling["gbs"]
    found["ceiling"] = ceiling
    return found


def _bursts(
    reader: Reader,
    op: str,
    block: int,
    wanted: list[tuple[np.ndarray, np.ndarray]],
    seconds: float,
) -> Sample:
    agent, finish_all = reader.agent, reader.impl.finish_all
    make, post = agent.make_prepped_xfer, agent.transfer
    local, remote = reader.sides(block)
    made, posted, ended = [], [], []

    def work() -> float:
        started = clock()
        handles = [make(op, local, a, remote, b) for a, b in wanted]
        t1 = clock()
        states = [post(handle) for handle in handles]
        t2 = clock()
        pairs = zip(handles, states, strict=True)
        finish_all(agent, [h for h, state in pairs if state != "DONE"])
        t3 = clock()
        for handle in handles:
            agent.release_xfer_handle(handle)
        made.append(t1 - started)
        posted.append(t2 - t1)
        ended.append(t3 - t2)
        return t3

    work()
    cpu = Cpu(reader)
    deadline = clock() + seconds
    while work() < deadline:
        pass
    descs = sum(len(mine) for mine, _ in wanted)
    return moved(
        made[1:], posted[1:], ended[1:], block * descs, descs, cpu.spent()
    )


MEASUREMENTS: dict[str, Callable[..., Sample]] = {
    "transfers": transfers,
    "latency": latency,
    "notifications": notifications,
    "burst": burst,
}
