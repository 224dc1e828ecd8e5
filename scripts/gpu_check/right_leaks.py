"""Nothing is left behind: memory of the GPU, open files."""

from __future__ import annotations

import time

from .memory import MIB
from .pair import Pair, two_processes
from .report import Checks

scene = two_processes
checks = Checks()

KINDS = ("cudaMalloc", "expandable, 2 MiB", "cumem")
# What the driver itself may keep.
SPARE = 8 * MIB


def one_round(pair: Pair, number: int) -> None:
    kind = KINDS[number % len(KINDS)]
    memory = pair.make(kind, kind, 16 * MIB)
    pair.here.ask("run", operation="READ", theirs=memory)
    pair.end()


@checks.add("regions that come and go leave no memory and no open file")
def regions(pair: Pair) -> str:
    for number in range(len(KINDS)):
        one_round(pair, number)
    sides = (pair.here, pair.other)
    before = [side.ask("facts") for side in sides]
    rounds = pair.options.pick(60, 6)
    for number in range(rounds):
        one_round(pair, number)
    after = [side.ask("facts") for side in sides]
    lost = before[0]["free"] - after[0]["free"]
    fds = [b["fds"] - a["fds"] for a, b in zip(before, after, strict=True)]
    if lost > SPARE or max(fds) > 0:
        raise RuntimeError(
            f"after {rounds} rounds {lost} bytes of the GPU and {fds} open "
            "files are missing"
        )
    return f"{rounds} rounds, {lost} bytes"


@checks.add("a peer that comes and goes leaves no memory")
def peers(pair: Pair) -> str:
    """Its own context is gone with it."""
    one_round(pair, 0)
    pair.other.close()
    pair.new_other()
    before = pair.here.ask("facts")["free"]
    rounds = pair.options.pick(3, 2)
    for number in range(rounds):
        one_round(pair, number)
        if number % 2:
            pair.other.close()
        else:
            pair.other.kill()
        pair.new_other()
    lost = SPARE + 1
    deadline = time.monotonic() + 5  # until the driver has noticed the end
    while lost > SPARE and time.monotonic() < deadline:
        lost = before - pair.here.ask("facts")["free"]
    if lost > SPARE:
        raise RuntimeError(f"{rounds} peers left {lost} bytes of the GPU")
    return f"{rounds} peers, {lost} bytes"
