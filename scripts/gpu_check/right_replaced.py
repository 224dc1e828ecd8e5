"""Memory that is put to sleep, replaced or freed while a peer has it."""

from __future__ import annotations

from vllm_nixl import NixlError

from .memory import MIB
from .pair import Pair, two_processes
from .report import Checks

scene = two_processes
checks = Checks()


def size_of(pair: Pair) -> int:
    return pair.options.pick(128, 8) * MIB


@checks.add("sleep and wake, deregistered meanwhile")
def sleep_and_wake(pair: Pair) -> str:
    """The GPU has the memory back while it sleeps."""
    other = pair.other
    memory = pair.make("cudaMalloc", "cumem", size_of(pair))
    for _ in range(pair.options.pick(5, 3)):
        pair.move_both_ways(memory)
        before = other.ask("facts")["free"]
        seconds = other.ask("deregister")["seconds"]
        other.ask("sleep")
        freed = other.ask("facts")["free"] - before
        if freed < 0.9 * memory["size"]:
            raise RuntimeError(f"only {freed} bytes came back")
        other.ask("wake")
        other.ask("register")
        pair.load()
    pair.move_both_ways(memory)
    pair.end()
    return f"deregistering took {seconds * 1000:.1f} ms"


@checks.add("sleep and wake without a word")
def replace(pair: Pair) -> str:
    """The region stays registered; what is read is the new memory."""
    other = pair.other
    memory = pair.make("cudaMalloc", "cumem", size_of(pair))
    changed = 0
    rounds = pair.options.pick(5, 3)
    for _ in range(rounds):
        pair.move_both_ways(memory)
        before = other.ask("facts", name="memory")["buffer_id"]
        other.ask("sleep")
        other.ask("wake")
        after = other.ask("facts", name="memory")["buffer_id"]
        changed += before != after
    pair.move_both_ways(memory)
    pair.end()
    return f"BUFFER_ID changed {changed} of {rounds} times"


@checks.add("memory that is freed before its peer has closed it")
def free_first(pair: Pair) -> str:
    """A transfer of what is gone fails, and hurts nothing else."""
    size = 4 * MIB
    memory = pair.make("cudaMalloc", "cudaMalloc", size)
    pair.move_both_ways(memory)
    handle = pair.here.handle("READ", memory, [(0, 0, size)])
    pair.other.ask("free")
    note = "the transfer was done"
    try:
        pair.here.run(handle)
    except NixlError as error:
        note = f"{type(error).__name__}"
    handle.release()
    pair.here.ask("end")
    pair.other.ask("deregister")
    pair.move_both_ways(pair.make("cudaMalloc", "cudaMalloc", size))
    pair.end()
    return note


@checks.add("other memory at the address of memory that was freed")
def reuse(pair: Pair) -> str:
    """As a caching allocator that gives back a segment and gets another."""
    memory = pair.make("cudaMalloc", "cudaMalloc", 4 * MIB)
    same = 0
    rounds = pair.options.pick(20, 5)
    for _ in range(rounds):
        pair.move_both_ways(memory)
        pair.other.ask("end")
        made = pair.other.ask("make", kind="cudaMalloc", size=4 * MIB)
        same += made["address"] == memory["address"]
        memory = made
        pair.load()
    pair.end()
    return f"{same} of {rounds} times"
