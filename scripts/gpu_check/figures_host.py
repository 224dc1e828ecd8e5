"""Blocks between GPU memory of one process and CPU memory of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .memory import MIB
from .report import Figures, Options, Row
from .sides import LARGE, Sides, host_blocks, size_text

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = ("pinned", "pageable")
# READ is from the peer's GPU memory.
OPERATIONS = {"READ": "GPU to CPU", "WRITE": "CPU to GPU"}


def rows(options: Options) -> list[Row]:
    return [
        Row(
            f"{kind}_{operation}_{block}",
            f"{text}, {kind}, {size_text(block)}",
            "GB/s",
            floor_min=0.85 if kind == "pinned" and block >= LARGE else None,
        )
        for kind in KINDS
        for block in host_blocks(options)
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
        yield from sides.measure_blocks(
            host_blocks(options), OPERATIONS, 0.25, f"{kind}_"
        )
        sides.close()
