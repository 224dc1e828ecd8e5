"""The steps, the most important one first."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .report import Check, Options, Row

# Seconds without an event after which a step hangs: longer than the waits of
# pair.py and sides.py.
CHECK_S, FIGURE_S = 60.0, 100.0


@dataclass(frozen=True)
class Step:
    name: str  # of the module
    python: str = sys.executable

    @property
    def module(self) -> Any:
        return importlib.import_module(f"gpu_check.{self.name}")

    @property
    def checks(self) -> list[Check]:
        return getattr(self.module, "checks", [])

    def rows(self, options: Options) -> list[Row]:
        module = self.module
        return module.rows(options) if hasattr(module, "rows") else []

    @property
    def limit(self) -> float:
        return CHECK_S if self.checks else FIGURE_S

    def command(self, options: Options, first: int) -> list[str]:
        """Run it from this check on."""
        text = json.dumps(asdict(options))
        program = [self.python, "-m", "gpu_check.step"]
        return [*program, self.name, text, str(first)]


def all_steps(torch: str | None = None) -> list[Step]:
    """`torch`: a Python that may have PyTorch; None: this one."""
    return [
        Step("machine"),
        Step("right_kinds"),
        Step("figures_gpu"),
        Step("right_order"),
        Step("right_rows"),
        Step("right_replaced"),
        Step("right_death"),
        Step("figures_host"),
        Step("figures_moved"),
        Step("right_program"),
        Step("right_leaks"),
        Step("figures_start"),
        Step("figures_kernel"),
        Step("figures_driver"),
        Step("right_one_process"),
        Step("right_torch", torch or sys.executable),
        Step("right_ucx"),
    ]
