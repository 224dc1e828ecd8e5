"""Our agents over UCX alone: its threads sleep, wake and copy in the context
of the memory."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from .pair import Pair, two_processes
from .report import Checks, SkippedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .report import Options

checks = Checks()


@contextlib.contextmanager
def scene(options: Options) -> Iterator[Pair]:
    os.environ["VLLM_NIXL_SAME_HOST"] = "0"
    with two_processes(options) as pair:
        yield pair


@checks.add("GPU memory by UCX, with pauses in which its threads sleep")
def move(pair: Pair) -> str:
    if pair.options.fake:
        raise SkippedError("the fake driver lacks what UCX needs")
    if "ucx" not in pair.here.agent.describe():
        raise SkippedError("libucp was not found")
    rounds = pair.options.pick(10, 2)
    memory = pair.make("cudaMalloc", "cudaMalloc")
    pair.meet()
    for number in range(rounds):
        pair.move_both_ways(memory)
        pair.other.ask("notify", message=f"{number}")
        pair.here.expect(b"%d" % number)
    pair.end()
    return f"{rounds} rounds"
