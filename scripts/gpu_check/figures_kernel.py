"""The copy kernel by the number of its blocks (VLLM_NIXL_CUDA_CTAS), for
blocks of several sizes and numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .memory import KIB, MIB
from .report import Figures, Options, Row
from .sides import Sides, best, size_text

if TYPE_CHECKING:
    from collections.abc import Iterator


def grids(options: Options) -> list[int]:
    return [4, 16] if options.quick else [4, 8, 16, 32, 64, 132]


def shapes(options: Options) -> list[tuple[int, int]]:
    """Size and number of blocks."""
    if options.quick:
        return [(16 * KIB, 100)]
    return [
        (block, count)
        for block in (4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB)
        for count in (1_000, 10_000, 100_000)
        if block * count <= size(options)
    ]


def size(options: Options) -> int:
    return options.pick(2048, 8) * MIB


def rows(options: Options) -> list[Row]:
    return [
        Row(
            f"{grid}_{block}_{count}",
            f"kernel of {grid}, {count} blocks of {size_text(block)}",
            "GB/s",
        )
        for grid in grids(options)
        for block, count in shapes(options)
    ]


def measure(options: Options) -> Iterator[tuple[str, Figures, str]]:
    for grid in grids(options):
        sides = Sides(
            options,
            {"size": size(options), "memory": "gpu", "peer_memory": "gpu"},
            stock=False,
            env={"VLLM_NIXL_CUDA_CTAS": str(grid)},
        )
        for block, count in shapes(options):
            samples = sides.sample(
                op="READ",
                block=block,
                batch=count,
                seconds=0.02 if options.quick else 0.1,
            )
            yield f"{grid}_{block}_{count}", best(samples), sides.note()
        sides.close()
