"""Tensors of PyTorch, which lie inside of its allocator's segments."""

from __future__ import annotations

import functools
import os

from .memory import MIB
from .pair import Pair, two_processes
from .report import Checks, SkippedError

scene = two_processes
checks = Checks()


def move(pair: Pair, config: str) -> None:
    """The peer has the allocator of that configuration, this side the default
    one."""
    if pair.options.fake:
        raise SkippedError("PyTorch needs a GPU")
    try:
        import torch  # noqa: F401
    except ImportError:
        raise SkippedError("PyTorch is not installed") from None
    os.environ["PYTORCH_CUDA_ALLOC_CONF"] = config
    pair.other.close()
    pair.new_other()
    for size in (300_000, 7 * MIB, 60 * MIB):
        pair.move_both_ways(pair.make("torch", "torch", size))
        pair.end()


for text, config in (
    ("a tensor amid others", "expandable_segments:False"),
    ("a tensor in expandable segments", "expandable_segments:True"),
):
    checks.add(text)(functools.partial(move, config=config))
