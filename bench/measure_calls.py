"""Rows that measure single calls within one process."""

from __future__ import annotations

import functools
import gc
import threading
import time
import timeit
from collections.abc import Callable
from typing import Any

import numpy as np
from vllm_nixl._bench.impl import Memory, blocks, prepare, rows, scatter

Samples = dict[str, list[float]]

MILLION = 1_000_000
MANY = 100_000  # regions
PIECE = 64  # bytes of a descriptor in rows that measure only lists
SMALL = 512


class Pair:
    """Two agents of this process; the first has loaded the second."""

    def __init__(self, impl: Any, size: int) -> None:
        self.impl = impl
        self.mine, self.theirs = Memory(size), Memory(size)
        self.agent, self.other = impl.agent("A"), impl.agent("B")
        self.agent.register_memory(self.mine.region(), "DRAM")
        self.other.register_memory(self.theirs.region(), "DRAM")
        self.agent.add_remote_agent(self.other.get_agent_metadata())

    def sides(self, length: int) -> tuple[Any, Any]:
        """Prepared lists of all blocks, local and remote."""
        return tuple(
            prepare(agent, who, blocks(memory.address, memory.size, length))
            for agent, who, memory in (
                (self.agent, "NIXL_INIT_AGENT", self.mine),
                (self.agent, "B", self.theirs),
            )
        )


def timed(
    repeat: int, work: Callable[[], Any], undo: Any = None
) -> list[float]:
    """Seconds of each run after a warm-up run; `undo` is not timed."""
    found = []
    for _ in range(repeat + 1):
        started = time.perf_counter()
        result = work()
        found.append(time.perf_counter() - started)
        if undo is not None:
            undo(result)
        del result
    return found[1:]


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


def tail(seconds: list[float]) -> Samples:
    """The 99th percentile and the maximum, in microseconds."""
    ordered = sorted(seconds)
    return {
        "p99_us": [ordered[len(ordered) * 99 // 100] * 1e6],
        "longest_us": [ordered[-1] * 1e6],
    }


def scaled(seconds: list[float], factor: float) -> list[float]:
    return [value * factor for value in seconds]


def _prepare_straight(agent: Any, who: str, table: Any) -> Any:
    """Prepare in one call, without a descriptor list in between."""
    return agent.prep_xfer_dlist(who, table, "DRAM")


def _prepare_row(
    impl: Any,
    make: Callable[[int], Any],
    repeat: int,
    how: Callable[[Any, str, Any], Any] = prepare,
) -> tuple[list[float], list[float]]:
    """Milliseconds of each run, and the peak growth in MB of the first."""
    memory = Memory(MILLION * 2 * PIECE)
    agent = impl.agent("A")
    agent.register_memory(memory.region(), "DRAM")
    table = make(memory.address)

    def work() -> Any:
        return how(agent, "NIXL_INIT_AGENT", table)

    grown, handle = peak_growth(work)
    agent.release_dlist_handle(handle)
    seconds = timed(repeat, work, agent.release_dlist_handle)
    return scaled(seconds, 1e3), [grown]


def _random_table(address: int) -> np.ndarray:
    return rows(address, scatter(MILLION, 1) * (2 * PIECE), PIECE)


def _strided_table(address: int) -> np.ndarray:
    return rows(address, np.arange(MILLION) * (2 * PIECE), PIECE)


def prepare_random(impl: Any, quick: bool) -> Samples:
    """1 M descriptors in random order, from an Nx3 array."""
    return {"ms": _prepare_row(impl, _random_table, 3 if quick else 9)[0]}


def prepare_strided(impl: Any, quick: bool) -> Samples:
    """1 M descriptors at a regular stride, from an Nx3 array: through
    get_xfer_descs() as vLLM does it, and directly from the array."""
    repeat = 3 if quick else 9
    found = {}
    found["ms"], found["mb"] = _prepare_row(impl, _strided_table, repeat)
    found["straight_ms"], found["straight_mb"] = _prepare_row(
        impl, _strided_table, repeat, _prepare_straight
    )
    return found


def prepare_tuples(impl: Any, quick: bool) -> Samples:
    """200 k descriptors from a list of tuples."""

    def tuples(address: int) -> list[tuple[int, int, int]]:
        offsets = scatter(200_000, 2).tolist()
        return [(address + i * 2 * PIECE, PIECE, 0) for i in offsets]

    return {"ms": _prepare_row(impl, tuples, 3 if quick else 9)[0]}


def _many_regions(memory: Memory) -> list[tuple[int, int, int, str]]:
    """Regions with a gap after each."""
    return [
        (memory.address + at, PIECE, 0, "")
        for at in range(0, memory.size, 2 * PIECE)
    ]


def prepare_regions(impl: Any, quick: bool) -> Samples:
    """Rows in as many regions, from an Nx3 array, of this agent and of a
    peer: 100 k in order of their addresses, and 10 k in random order (stock
    takes 15 s for 100 k of these)."""
    memory = Memory(MANY * 2 * PIECE)
    agent, other = impl.agent("A"), impl.agent("B")
    agent.register_memory(_many_regions(memory), "DRAM")
    other.register_memory(_many_regions(memory), "DRAM")
    agent.add_remote_agent(other.get_agent_metadata())
    found = {}
    for order, places in (
        ("ordered", np.arange(MANY)),
        ("shuffled", scatter(MANY, 5)[: MANY // 10]),
    ):
        table = rows(memory.address, places * (2 * PIECE), PIECE)
        for side, who in (("local", "NIXL_INIT_AGENT"), ("remote", "B")):
            work = functools.partial(prepare, agent, who, table)
            seconds = timed(
                3 if quick else 9, work, agent.release_dlist_handle
            )
            found[f"{side}_{order}_ms"] = scaled(seconds, 1e3)
    return found


def _make_row(impl: Any, mine: Any, theirs: Any, repeat: int) -> list[float]:
    pair = Pair(impl, MILLION * PIECE)
    local, remote = pair.sides(PIECE)
    return timed(
        repeat,
        lambda: pair.agent.make_prepped_xfer(
            "READ", local, mine, remote, theirs
        ),
        pair.agent.release_xfer_handle,
    )


def make_contiguous(impl: Any, quick: bool) -> Samples:
    """make_prepped_xfer of 8 576 consecutive indices."""
    chosen = np.arange(1000, 1000 + 8576, dtype=np.int64)
    seconds = _make_row(impl, chosen, chosen, 50 if quick else 500)
    return {"us": scaled(seconds, 1e6)}


def make_scattered(impl: Any, quick: bool) -> Samples:
    """make_prepped_xfer of 100 k indices in random order."""
    mine, theirs = (scatter(MILLION, seed)[:100_000] for seed in (3, 4))
    seconds = _make_row(impl, mine, theirs, 5 if quick else 20)
    return {"ms": scaled(seconds, 1e3)}


def _per_call(work: Callable[[], Any], calls: int, repeat: int) -> list[float]:
    """Microseconds for each call, including the loop, after a warm-up."""
    timer = timeit.Timer(work)
    timer.timeit(calls // 10)
    return [value / calls * 1e6 for value in timer.repeat(repeat, calls)]


def make_one(impl: Any, quick: bool) -> Samples:
    """make_prepped_xfer of one index, and its release."""
    pair = Pair(impl, 1 << 20)
    local, remote = pair.sides(PIECE)
    chosen = np.array([7], np.int64)
    make, release = (
        pair.agent.make_prepped_xfer,
        pair.agent.release_xfer_handle,
    )

    def work() -> None:
        release(make("READ", local, chosen, remote, chosen))

    return {"us": _per_call(work, 5_000 if quick else 50_000, 5)}


def polls(impl: Any, quick: bool) -> Samples:
    """check_xfer_state of a completed transfer; get_new_notifs, empty."""
    pair = Pair(impl, 1 << 20)
    local, remote = pair.sides(SMALL)
    agent = pair.agent
    handle = agent.make_prepped_xfer("READ", local, [0], remote, [0])
    impl.finish(agent, handle, agent.transfer(handle))
    calls = 20_000 if quick else 200_000
    names = {"agent": agent, "handle": handle}
    found = {}
    for metric, call in (
        ("check_us", "agent.check_xfer_state(handle)"),
        ("notifs_us", "agent.get_new_notifs()"),
    ):
        timer = timeit.Timer(call, globals=names)
        timer.timeit(calls // 10)
        seconds = timer.repeat(5, calls)
        found[metric] = [value / calls * 1e6 for value in seconds]
    return found


def small_transfer(impl: Any, quick: bool) -> Samples:
    """512 bytes between two agents of a process, from make to release."""
    pair = Pair(impl, 1 << 20)
    local, remote = pair.sides(SMALL)
    agent, finish = pair.agent, impl.finish
    pair.theirs.array[:] = 7

    def work() -> None:
        handle = agent.make_prepped_xfer("READ", local, [3], remote, [5])
        finish(agent, handle, agent.transfer(handle))
        agent.release_xfer_handle(handle)

    found = _per_call(work, 2_000 if quick else 20_000, 5)
    if not (pair.mine.array[3 * SMALL : 4 * SMALL] == 7).all():
        raise RuntimeError("the bytes did not arrive")
    return {"us": found}


def _post_scattered(impl: Any, times: int) -> tuple[list[float], list[float]]:
    """Seconds on the caller's thread and seconds in total, for a transfer of
    100 k scattered pieces of 512 bytes."""
    count = 100_000
    pair = Pair(impl, count * 2 * SMALL)
    local, remote = pair.sides(SMALL)
    mine, theirs = (scatter(count * 2, seed)[:count] for seed in (5, 6))
    agent = pair.agent
    handle = agent.make_prepped_xfer("READ", local, mine, remote, theirs)
    caller, whole = [], []
    for _ in range(times + 1):
        started = time.perf_counter()
        state = agent.transfer(handle)
        returned = time.perf_counter()
        impl.finish(agent, handle, state)
        whole.append(time.perf_counter() - started)
        caller.append(returned - started)
    return caller[1:], whole[1:]


def scattered_transfer(impl: Any, quick: bool) -> Samples:
    """transfer() of 100 k scattered pieces of 512 bytes."""
    caller, whole = _post_scattered(impl, 3 if quick else 10)
    return {"caller_ms": scaled(caller, 1e3), "all_ms": scaled(whole, 1e3)}


def transfer_tail(impl: Any, quick: bool) -> Samples:
    """The longest time that transfer() of them blocks its caller."""
    return tail(_post_scattered(impl, 50 if quick else 500)[0])


class Heartbeat:
    """A thread that always needs the GIL and records its longest wait."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.running = True
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        last = time.perf_counter()
        while self.running:
            now = time.perf_counter()
            if now - last > self.longest:
                self.longest = now - last
            last = now

    def stop(self) -> float:
        self.running = False
        self.thread.join()
        return self.longest


def gil_stall(impl: Any, quick: bool) -> Samples:
    """How long another Python thread waits while 1 M rows are prepared."""
    memory = Memory(MILLION * 2 * PIECE)
    agent = impl.agent("A")
    agent.register_memory(memory.region(), "DRAM")
    table = _random_table(memory.address)
    found = []
    for _ in range(3 if quick else 9):
        heartbeat = Heartbeat()
        handle = prepare(agent, "NIXL_INIT_AGENT", table)
        found.append(heartbeat.stop())
        agent.release_dlist_handle(handle)
    return {"ms": scaled(found, 1e3)}
