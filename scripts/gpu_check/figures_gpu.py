"""Blocks of GPU memory between two processes on one GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .memory import KIB, MIB, OPERATIONS
from .report import Figures, Options, Row
from .sides import LARGE, Sides, best, size_text

if TYPE_CHECKING:
    from collections.abc import Iterator

MANY_BLOCK, MANY = 4 * KIB, 100_000


def blocks(options: Options) -> list[int]:
    few = [16 * KIB, 64 * KIB]
    return few if options.quick else [4 * KIB, *few, 256 * KIB, MIB]


def many(options: Options) -> int:
    return options.pick(MANY, 1000)


def rows(options: Options) -> list[Row]:
    found = [
        Row(
            f"{operation}_{block}",
            f"{operation}, scattered {size_text(block)}",
            "GB/s",
            floor_min=0.6 if block >= LARGE else None,
            stock_min=20 if block == 16 * KIB else None,
        )
        for block in blocks(options)
        for operation in OPERATIONS
    ]
    posts = f"transfer() of {many(options)} blocks of {size_text(MANY_BLOCK)}"
    return [
        *found,
        Row("post_p50", f"{posts}, p50", "ms", False, at_most=0.1),
        Row("post_p99", f"{posts}, p99", "ms", False),
        Row("make_p50", f"making it, {many(options)} blocks", "ms", False),
        Row("many", f"READ of {many(options)} blocks", "GB/s"),
        Row("cpu", "CPU time of both sides for that", "s/GiB", False),
    ]


def measure(options: Options) -> Iterator[tuple[str, Figures, str]]:
    size = options.pick(1024, 8) * MIB
    sides = Sides(
        options, {"size": size, "memory": "gpu", "peer_memory": "gpu"}
    )
    seconds = 0.02 if options.quick else 0.3
    yield from sides.measure_blocks(blocks(options), OPERATIONS, 0.3)
    samples = sides.sample(
        op="READ", block=MANY_BLOCK, batch=many(options), seconds=seconds
    )
    for part in ("post_p50", "post_p99", "make_p50"):
        step, percentile = part.split("_")
        key = {"post": "post_us", "make": "prep_us"}[step]
        figures = {
            name: min(sample[key][percentile] for sample in found) / 1000
            for name, found in samples.items()
            if name != "floor"
        }
        yield part, figures, sides.note()
    yield "many", best(samples), sides.note()
    cpu = {
        name: min(float(sample["cpu_s_per_gib"]) for sample in found)
        for name, found in samples.items()
        if name != "floor"
    }
    yield "cpu", cpu, sides.note()
    sides.close()
