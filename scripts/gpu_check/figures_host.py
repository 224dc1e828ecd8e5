"""Blocks between GPU memory of one process and CPU memory of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .memory import KIB, MIB
from .report import Figures, Options, Row
from .sides import LARGE, Sides, best, size_text

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = ("pinned", "pageable")
# READ is from the peer's GPU memory.
OPERATIONS = {"READ": "GPU to CPU", "WRITE": "CPU to GPU"}


def blocks(options: Options) -> list[int]:
    few = [64 * KIB]
    return few if options.quick else [16 * KIB, *few, MIB]


def rows(options: Options) -> list[Row]:
    return [
        Row(
            f"{kind}_{operation}_{block}",
            f"{text}, {kind}, {size_text(block)}",
            "GB/s",
            floor_min=0.85 if kind == "pinned" and block >= LARGE else None,
        )
        for kind in KINDS
        for block in blocks(options)
        for operation, text in OPERATIONS.items()
    ]


def measure(options: Options) -> Iterator[tuple[str, Figures, str]]:
    size = options.pick(512, 8) * MIB
    for kind in KINDS:
        # Stock NIXL copies such memory over TCP, pinned or not.
        sides = Sides(
            options,
            {"size": size, "memory": kind, "peer_memory": "gpu"},
            stock=kind == "pinned",
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
