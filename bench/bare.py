"""Build and run the bare loops (bare.c) that rows are compared with."""

from __future__ import annotations

import os
import statistics
import subprocess
from pathlib import Path

import numpy as np
from impl import MIB, scatter, tail
from measure_pair import SEEDS, VOLUME

HERE = Path(__file__).resolve().parent
Samples = dict[str, list[float]]


def threads() -> int:
    """As many as an agent takes by default."""
    return min(4, os.cpu_count() or 1)


def build(folder: Path) -> Path:
    program = folder / "bare"
    command = [os.environ.get("CC", "cc"), "-O3", "-std=gnu11", "-pthread"]
    command += ["-D_GNU_SOURCE", str(HERE / "bare.c"), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def _run(
    program: Path, kind: str, size: int, block: int, passes: int
) -> list[float]:
    """Seconds of each pass, over the very blocks that the rows move."""
    pairs = np.empty((size // block, 2), np.uint64)
    for column, seed in enumerate(SEEDS):
        pairs[:, column] = scatter(size // block, seed) * block
    command = [str(program), kind, str(block), str(threads()), str(passes)]
    done = subprocess.run(
        command, input=pairs.tobytes(), stdout=subprocess.PIPE, check=True
    )
    return [float(line) for line in done.stdout.split()]


def bandwidth(program: Path, kind: str, block: int, quick: bool) -> Samples:
    size = VOLUME // 8 if quick else VOLUME
    seconds = _run(program, kind, size, block, 3 if quick else 8)
    return {"gbs": [size / value / 1e9 for value in seconds[1:]]}


def latency(program: Path, block: int, quick: bool) -> Samples:
    count = 500 if quick else 5000
    seconds = _run(program, "latency", MIB, block, count)
    return {"us": [statistics.median(seconds[count // 10 :]) * 1e6]}


def wakes(program: Path, busy_us: int, quick: bool) -> Samples:
    """What it costs to wake a sleeping thread: as tail() has it."""
    command = [str(program), "wake", str(busy_us), "50" if quick else "500"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return tail([float(line) for line in done.stdout.split()])
