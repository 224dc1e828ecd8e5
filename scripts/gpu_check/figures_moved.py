"""Blocks of GPU memory that no other process can map: its owner copies them
through a window."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .memory import MIB, OPERATIONS
from .report import Figures, Options, Row
from .sides import Sides, host_blocks, size_text

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = {"gpu": "GPU memory", "pageable": "pageable memory"}


def rows(options: Options) -> list[Row]:
    return [
        Row(
            f"{kind}_{operation}_{block}",
            f"{operation} through a window, {text}, {size_text(block)}",
            "GB/s",
        )
        for kind, text in KINDS.items()
        for block in host_blocks(options)
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
        yield from sides.measure_blocks(
            host_blocks(options), OPERATIONS, 0.25, f"{kind}_"
        )
        sides.close()
