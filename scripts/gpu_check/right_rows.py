"""Rows of any size at any place, and regions that begin anywhere."""

from __future__ import annotations

import functools

from .memory import MIB, OPERATIONS
from .pair import Pair, default_size, scattered, two_processes
from .report import Checks

scene = two_processes
checks = Checks()

KINDS = [
    ("cudaMalloc", "cudaMalloc"),
    ("cudaMalloc", "expandable, 2 MiB"),
    ("expandable, 2 MiB", "cumem"),
    ("pinned", "cudaMalloc"),
    ("pageable", "cudaMalloc"),
]


def odd_rows(pair: Pair, mine: str, theirs: str) -> None:
    memory = pair.make(mine, theirs)
    size = default_size(mine, theirs)
    for operation in OPERATIONS:
        for longest in (60, 5000, 70_000):
            count = pair.options.pick(2000, 300)
            pair.move(
                operation, memory, scattered(operation, size, count, longest)
            )
    pair.end()


for mine, theirs in KINDS:
    text = f"odd offsets and lengths: {mine}, the peer's {theirs}"
    run = functools.partial(odd_rows, mine=mine, theirs=theirs)
    checks.add(text)(run)


def inside(pair: Pair, kind: str) -> None:
    """The region is a part of an allocation, or of several."""
    memory = pair.make("cudaMalloc", kind, 8 * MIB)
    pair.other.ask("deregister")
    start, length = 1_700_001, 3_500_001
    pair.other.ask("register", offset=start, size=length)
    pair.load()
    for operation in OPERATIONS:
        rows = scattered(operation, length - 16, 200, 40_000)
        there = [(here, start + other, size) for here, other, size in rows]
        pair.move(operation, memory, there)
    pair.end()


for kind in ("cudaMalloc", "expandable, 2 MiB", "cumem"):
    text = f"a region inside of an allocation: {kind}"
    checks.add(text)(functools.partial(inside, kind=kind))


@checks.add("more bytes than one launch moves")
def large(pair: Pair) -> None:
    size = pair.options.pick(200, 66) * MIB
    pair.move_both_ways(pair.make("cudaMalloc", "cudaMalloc", size))
    pair.end()


@checks.add("more rows than one launch takes")
def many(pair: Pair) -> None:
    rows = pair.options.pick(100_000, 40_000)
    memory = pair.make("cudaMalloc", "cudaMalloc", 8 * MIB)
    pair.move("READ", memory, scattered("READ", 8 * MIB, rows, 100))
    pair.end()
