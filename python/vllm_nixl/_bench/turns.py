"""Measuring several sides in turns, and comparing them."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from . import bare
from .child import WORKER, Child, command, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

T = TypeVar("T")


def in_turns(
    measure: Mapping[str, Callable[[], T]], repeat: int
) -> dict[str, list[T]]:
    """Call each `repeat` times: A B C, A B C, ..., so that changes in the
    speed of the machine affect all of them."""
    found: dict[str, list[T]] = {name: [] for name in measure}
    for _ in range(repeat):
        for name, work in measure.items():
            found[name].append(work())
    return found


class Side(Child):
    """What is measured: "ours", "stock" or "bare", in its own processes.

    Args:
        name: Which.
        options: For worker.py.
        python: The Python of stock; None: this one.
        environ: The environment; None: this process's.
        program: With the roles of worker.py.
    """

    def __init__(
        self,
        name: str,
        options: dict[str, Any],
        python: str | None = None,
        environ: dict[str, str] | None = None,
        program: str | Path = WORKER,
    ) -> None:
        role = ["bare"] if name == "bare" else ["reader", name]
        super().__init__(
            command(name, program, *role, json.dumps(options), python=python),
            name,
            environment(name, dict(environ or os.environ)),
            alone=True,
        )
        # Stock's threads never sleep: without a stop they would slow down
        # the others.
        self.spins = name == "stock"

    def __enter__(self) -> Side:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # After an error or Ctrl-C, do not wait for a measurement.
        if kind is None:
            self.close()
        else:
            self.kill()

    def start(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("start")
        if self.spins:
            self.stop()
        return found

    def sample(self, do: str, order: dict[str, Any]) -> dict[str, Any]:
        """Take one sample; nothing of a side runs between its turns."""
        if self.spins:
            self.go()
        found: dict[str, Any] = self.ask(do, **order)
        if self.spins:
            self.stop()
        return found


def times_better(ours: float, other: float, higher: bool) -> float | None:
    over, under = (ours, other) if higher else (other, ours)
    return over / under if under else None


def figure(value: float | None) -> str:
    """Format with three significant digits."""
    if value is None:
        return "-"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    if 0 < value < 0.1:
        digits = 4
    return f"{value:,.{digits}f}"


def machine() -> dict[str, Any]:
    """What a result says about the machine."""
    model = ""
    with open("/proc/cpuinfo") as info:
        for line in info:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {
        "host": socket.gethostname(),
        "cpu": model or platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
        "bare_threads": bare.threads(),
    }


def stock_python(given: str | None) -> str | None:
    """The Python that has stock NIXL, or None."""
    if given:
        return given
    import importlib.metadata

    try:
        importlib.metadata.version("nixl")
    except importlib.metadata.PackageNotFoundError:
        return None
    return sys.executable
