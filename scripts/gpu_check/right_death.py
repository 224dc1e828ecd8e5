"""A process that is killed takes nobody with it."""

from __future__ import annotations

import functools
import time

from vllm_nixl import nixlRemoteDisconnectError

from .endpoint import LIMIT_S
from .memory import MIB
from .pair import Pair, two_processes
from .report import Checks

scene = two_processes
checks = Checks()

KINDS = ("cudaMalloc", "expandable, 2 MiB")


def owner(pair: Pair, kind: str) -> str:
    """The owner of memory that is being copied."""
    rounds = pair.options.pick(6, 3)
    size = pair.options.pick(512, 4) * MIB
    here = pair.here
    ends = {"done": 0, "disconnected": 0}
    for number in range(rounds):
        memory = pair.make("cudaMalloc", kind, size)
        handles = [
            here.handle("READ", memory, [(0, 0, size)]) for _ in range(4)
        ]
        if number % 3 > 0:  # else the first transfer maps the memory
            here.run(handles[0])
        posted = [h for h in handles if here.agent.transfer(h) != "DONE"]
        time.sleep(number * 0.0004)
        pair.other.kill()
        ends["done"] += len(handles) - len(posted)
        for handle in posted:
            try:
                here.agent.wait([handle], LIMIT_S)
                ends["done"] += 1
            except nixlRemoteDisconnectError:
                ends["disconnected"] += 1
        for handle in handles:
            handle.release()
        pair.new_other()
        here.ask("end")
    works_afterwards(pair, kind)
    return ", ".join(f"{count} {end}" for end, count in ends.items())


def reader(pair: Pair, kind: str) -> str:
    """A process that reads memory of this one."""
    waited = 0.0
    for number in range(pair.options.pick(6, 3)):
        size = pair.options.pick(512, 4) * MIB
        here = pair.here
        mine = here.ask("make", kind=kind, size=size)
        pair.other.ask("make", kind="cudaMalloc", size=size)
        pair.meet()
        pair.other.ask("run_on", operation="READ", theirs=mine)
        time.sleep(number * 0.0004)
        pair.other.kill()
        waited = max(waited, here.ask("deregister")["seconds"])
        here.ask("free")
        pair.new_other()
    works_afterwards(pair, kind)
    return f"deregistering took {waited:.3f} s at most"


def works_afterwards(pair: Pair, kind: str) -> None:
    pair.move_both_ways(pair.make("cudaMalloc", kind))
    pair.end()


for kind in KINDS:
    text = f"SIGKILL of the owner while its memory is copied: {kind}"
    checks.add(text)(functools.partial(owner, kind=kind))
for kind in KINDS:
    text = f"SIGKILL of a process that reads our memory: {kind}"
    checks.add(text)(functools.partial(reader, kind=kind))
