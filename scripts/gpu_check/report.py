"""What a step declares, and how it reports.

A step is a module.  One that passes or fails has `checks`, which are run one
after the other with what its scene() makes.  One that measures has rows(),
and measure(), which yields a row's name and its figures.  Steps report on
their standard output, a line of JSON for each event, so that nothing is lost
when one of them ends early:

    {"begin": TEXT}   of a check
    {"check": TEXT, "state": "passed"|"failed"|"skipped", "note": TEXT}
    {"row": NAME, "figures": {SIDE: NUMBER}, "note": TEXT}
    {"machine": FACTS}
"""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from .pair import Pair

    Emit = Callable[..., None]  # report(**fields): write an event


class SkippedError(Exception):
    """This machine cannot run a check; the text says why."""


@dataclass(frozen=True)
class Options:
    quick: bool = False  # small sizes and few rounds
    fake: bool = False  # the driver is that of the tests
    stock: str | None = None  # a Python with stock NIXL

    def pick(self, full: int, quick: int) -> int:
        """A size, or a number of rounds."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Check:
    """`run` returns a note, or None, and raises an exception if the check
    fails."""

    text: str
    run: Callable[[Pair], str | None]


class Checks(list[Check]):
    def add(self, text: str) -> Callable[[Callable[[Pair], str | None]], Any]:
        """Decorate a check."""

        def adder(run: Callable[[Pair], str | None]) -> Any:
            self.append(Check(text, run))
            return run

        return adder


@dataclass(frozen=True)
class Row:
    """A figure and its target: a fraction of the floor, a multiple of stock's
    figure, or a number.  `side`: whose figure it is."""

    name: str
    text: str
    unit: str
    higher: bool = True
    floor_min: float | None = None
    stock_min: float | None = None
    at_most: float | None = None
    side: str = "ours"


Figures = dict[str, float]  # by side: ours, stock, stock_default, floor


def run_checks(
    module: Any, options: Options, first: int, report: Emit
) -> None:
    """Run the checks of a step from this one on.  After a check fails, the
    next one gets new agents and processes."""
    with module.scene(options) as pair:
        for check in module.checks[first:]:
            report(begin=check.text)
            try:
                note = check.run(pair)
            except SkippedError as reason:
                report(check=check.text, state="skipped", note=str(reason))
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                note = f"{type(error).__name__}: {error}"
                report(check=check.text, state="failed", note=note)
                pair.renew()
            else:
                report(check=check.text, state="passed", note=note or "")


def run_figures(module: Any, options: Options, report: Emit) -> None:
    """A row may come with a note instead of figures."""
    for name, figures, note in module.measure(options):
        report(row=name, figures=figures, note=note)
