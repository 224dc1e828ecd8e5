"""Blocks of GPU memory that no other process can map: its owner copies them
through a window."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .memory import KIB, MIB, OPERATIONS
from .report import Figures, Options, Row
from .sides import LARGE, Sides, best, size_text

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = {"gpu": "GPU memory", "pageable": "pageable memory"}


def blocks(options: Options) -> list[int]:
    few = [64 * KIB]
    return few if options.quick else [16 * KIB, *few, MIB]


def rows(options: Options) -> list[Row]:
    return [
        Row(
            f"{kind}_{operation}_{block}",
            f"{operation} through a window, {text}, {size_text(block)}",
            "GB/s",
        )
        for kind, text in KINDS.items()
        for block in blocks(options)
        for operation in OPERATIONS
    ]


def measure(options: Options) -> Iterator[tuple[str, Figures, str]]:
    size = options.pick(512, 8) * MIB
    for kind in KINDS:
        sides = Sides(
            options,
            {"size": size, "memory": kind, "peer_memory": "unshared"},
            stock=kind == "gpu",
            # Every byte crosses the bus, to the window and from it.
            floor={"memory": "pinned"},
        )
        for block in blocks(options):
            for operation in OPERATIONS:
                samples = sides.sample(
                    op=operation,
                    block=block,
                    batch=size // 4 // block,
                    seconds=0.02 if options.quick else 0.25,
                    verify=block >= LARGE,
                )
                name = f"{kind}_{operation}_{block}"
                yield name, best(samples), sides.note()
        sides.close()
