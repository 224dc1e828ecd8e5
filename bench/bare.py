"""Build and run the bare loops: bare.c and bare_wake.c."""

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
    """The default number of threads of an agent."""
    return min(4, os.cpu_count() or 1)


def build(folder: Path) -> Path:
    """Build both programs in `folder`, which the functions below take."""
    for name in ("bare", "bare_wake"):
        command = [os.environ.get("CC", "cc"), "-O3", "-std=gnu11"]
        command += ["-pthread", "-D_GNU_SOURCE", str(HERE / f"{name}.c")]
        subprocess.run([*command, "-o", str(folder / name)], check=True)
    return folder


def _run(
    folder: Path, kind: str, size: int, block: int, passes: int
) -> list[float]:
    """Seconds of each pass over the same blocks that the rows move."""
    pairs = np.empty((size // block, 2), np.uint64)
    for column, seed in enumerate(SEEDS):
        pairs[:, column] = scatter(size // block, seed) * block
    command = [str(folder / "bare"), kind, str(block), str(threads())]
    command.append(str(passes))
    done = subprocess.run(
        command, input=pairs.tobytes(), stdout=subprocess.PIPE, check=True
    )
    return [float(line) for line in done.stdout.split()]


def bandwidth(folder: Path, kind: str, block: int, quick: bool) -> Samples:
    size = VOLUME // 8 if quick else VOLUME
    seconds = _run(folder, kind, size, block, 3 if quick else 8)
    return {"gbs": [size / value / 1e9 for value in seconds[1:]]}


def latency(folder: Path, block: int, quick: bool) -> Samples:
    count = 500 if quick else 5000
    seconds = _run(folder, "latency", MIB, block, count)
    return {"us": [statistics.median(seconds[count // 10 :]) * 1e6]}


def _wakes(folder: Path, kind: str, us: int, passes: int) -> list[float]:
    command = [str(folder / "bare_wake"), kind, str(us), str(passes)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return [float(line) for line in done.stdout.split()]


def wakes(folder: Path, busy_us: int, quick: bool) -> Samples:
    """The time to wake a sleeping thread, in the form of tail()."""
    return tail(_wakes(folder, "signal", busy_us, 50 if quick else 500))


def deliveries(folder: Path, pause_us: int, quick: bool) -> Samples:
    """The time of a message to a sleeping program that has a thread for its
    connection.  It does not depend on the sender."""
    count = 50 if quick else 1000
    seconds = _wakes(folder, "deliver", pause_us, count)
    p50 = statistics.median(seconds[count // 10 :]) * 1e6
    return {"us": [p50], "from_stock_us": [p50]}
