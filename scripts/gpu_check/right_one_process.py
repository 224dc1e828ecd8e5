"""Every kind of memory moves between agents of a process."""

from __future__ import annotations

import functools

from .memory import OWN
from .pair import Pair, one_process
from .report import Checks

scene = one_process
checks = Checks()


def move(pair: Pair, kind: str) -> None:
    for mine, theirs in ((kind, "cudaMalloc"), ("cudaMalloc", kind)):
        pair.move_both_ways(pair.make(mine, theirs))
        pair.end()


for kind in OWN:
    checks.add(f"agents of a process: {kind}")(
        functools.partial(move, kind=kind)
    )
