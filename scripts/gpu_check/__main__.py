"""Check and measure GPU memory on this machine (scripts/gpu_check.sh).

Each step runs in a process of its own.  One that crashes or hangs is ended,
and goes on behind the check in which that happened.  Results are printed as
they come, once more as tables at the end, and written as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vllm_nixl

from . import driver, table
from .report import Options
from .steps import Step, all_steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from .report import Row

SECONDS = 520  # for all steps
NO_TIME = "no time was left"
END_S = 10.0  # for a process that has been killed
TAIL = 3000  # characters of what a failed step has written


class Run:
    """The results of all steps, in order."""

    def __init__(
        self, steps: list[Step], options: Options, seconds: float, path: Path
    ) -> None:
        self.steps, self.options, self.path = steps, options, path
        self.started = time.monotonic()
        self.end = self.started + seconds
        self.machine: dict[str, Any] = {}
        self.checks = {
            (step.name, check.text): self._unchecked(step, check.text)
            for step in steps
            for check in step.checks
        }
        self.rows = {
            (step.name, row.name): (row, self._unmeasured(step, row))
            for step in steps
            for row in step.rows(options)
        }
        self.about: list[dict[str, Any]] = []  # of each step
        self.notes: list[str] = []  # that were printed

    def _unchecked(self, step: Step, text: str) -> dict[str, Any]:
        return {
            "step": step.name,
            "text": text,
            "state": "not run",
            "note": "",
        }

    def _unmeasured(self, step: Step, row: Row) -> dict[str, Any]:
        return {
            "step": step.name,
            **asdict(row),
            "figures": {},
            "note": "",
            **table.compare(row, {}, self.options.fake),
        }

    def result(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "options": asdict(self.options),
            "seconds": time.monotonic() - self.started,
            "checks": [
                # After Ctrl-C one may have been running.
                check | {"state": "not run"} if is_running(check) else check
                for check in self.checks.values()
            ],
            "figures": [row for _, row in self.rows.values()],
            "steps": self.about,
        }

    def write(self) -> None:
        self.path.write_text(json.dumps(self.result(), indent=1) + "\n")

    def say(self, text: str) -> None:
        spent = time.monotonic() - self.started
        print(f"{spent:5.0f} s  {text}", flush=True)

    # -- Steps ----------------------------------------------------------------

    def all(self) -> bool:
        """Run the steps.  False: not everything is right."""
        for step in self.steps:
            self.about.append(self._run(step))
            self.write()
            if step.name == "machine" and not self.machine:
                break  # there is no GPU
        return (
            all(
                check["state"] in ("passed", "skipped")
                for check in self.checks.values()
            )
            and all(
                row.side in found["figures"]
                for row, found in self.rows.values()
            )
            and not any(step["why"] for step in self.about)
        )

    def _run(self, step: Step) -> dict[str, Any]:
        """Run a step; after a crash, go on with the check behind it."""
        started = time.monotonic()
        why, log = NO_TIME, ""
        first: int | None = 0
        while first is not None and time.monotonic() < self.end:
            process = Process(
                step.command(self.options, first), environment(step)
            )
            why = process.watch(
                lambda event: self._take(step, event), step.limit, self.end
            )
            log += process.log()
            if why:
                self.say(f"{step.name}: {why}")
            first = self._next_check(step, first, why) if why else None
        failed = any(check["state"] == "failed" for check in self._of(step))
        return {
            "step": step.name,
            "seconds": time.monotonic() - started,
            "why": why,
            "log": log[-TAIL:] if why or failed else "",
        }

    def _of(self, step: Step) -> list[dict[str, Any]]:
        return [self.checks[step.name, check.text] for check in step.checks]

    def _next_check(self, step: Step, first: int, why: str) -> int | None:
        """The process that was to run the checks from `first` on has ended too
        early.  The number of the next check; None: there is none, or not one
        was begun."""
        for number, check in enumerate(self._of(step)):
            if is_running(check):
                check["state"] = "not run" if why == NO_TIME else "failed"
                check["note"] = why
                self.say(table.check_line(check))
            elif check["state"] == "not run":
                return number if number > first else None
        return None

    def _take(self, step: Step, event: dict[str, Any]) -> None:
        if "begin" in event:
            self.checks[step.name, event["begin"]]["state"] = "running"
        elif "check" in event:
            found = self.checks[step.name, event["check"]]
            found.update(state=event["state"], note=event["note"])
            self.say(table.check_line(found))
        elif "row" in event:
            row, found = self.rows[step.name, event["row"]]
            figures = event["figures"]
            found.update(
                figures=figures,
                note=event["note"],
                **table.compare(row, figures, self.options.fake),
            )
            self.say(table.figure_line(found))
            if event["note"] and event["note"] not in self.notes:
                self.notes.append(event["note"])
                self.say(f"  {event['note']}")
        else:
            self.machine = event["machine"]
            for line in table.machine_lines(self.machine):
                self.say(line)


class Process:
    """The process of a step, in a session of its own."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - kept
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=env,
            start_new_session=True,
        )

    def log(self) -> str:
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")

    def watch(
        self,
        take: Callable[[dict[str, Any]], None],
        limit: float,
        end: float,
    ) -> str:
        """Take events until the process ends, or for `limit` seconds none has
        come.  Why it ended too early; "" if it did not."""
        out = self.process.stdout
        assert out is not None
        rest = b""
        try:
            while True:
                left = end - time.monotonic()
                if not select.select([out], [], [], min(limit, max(left, 0)))[
                    0
                ]:
                    if left < limit:
                        return NO_TIME
                    return f"nothing happened for {limit:g} s"
                data = os.read(out.fileno(), 1 << 16)
                if not data:
                    return self._status()
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    take(json.loads(line))
        finally:
            self._kill()
            out.close()

    def _status(self) -> str:
        try:
            status = self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            return "the process did not end"
        if status < 0:
            return f"the process was killed ({signal.Signals(-status).name})"
        return f"the process exited with status {status}" if status else ""

    def _kill(self) -> None:
        """Also its children.  A process that the driver does not let go is
        left behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_S)


def is_running(check: dict[str, Any]) -> bool:
    return bool(check["state"] == "running")


def environment(step: Step) -> dict[str, str]:
    """Another Python finds what it needs where this one does."""
    if step.python == sys.executable:
        return dict(os.environ)
    places = [
        str(Path(module.__path__[0]).parent)
        for module in (vllm_nixl, sys.modules[__package__])
    ]
    return {**os.environ, "PYTHONPATH": ":".join(places)}


def parse() -> argparse.Namespace:
    names = [step.name for step in all_steps()]
    parser = argparse.ArgumentParser(
        prog="gpu_check.sh",
        description=__doc__,
        epilog=f"The steps: {' '.join(names)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--fake", metavar="FILE", help="a libcuda of the tests"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small sizes and few rounds, as always with a fake libcuda",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="STEP", choices=names, help="these steps"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        help=f"for all steps ({SECONDS})",
    )
    parser.add_argument(
        "--json",
        type=Path,
        default=Path("gpu_check.json"),
        metavar="FILE",
        help="where the results go (gpu_check.json)",
    )
    parser.add_argument(
        "--stock-python",
        metavar="PYTHON",
        default=os.environ.get("VLLM_NIXL_STOCK_PYTHON"),
        help="a Python with stock NIXL and numpy",
    )
    parser.add_argument(
        "--torch-python",
        metavar="PYTHON",
        help="a Python with PyTorch, of the same version as this one",
    )
    options = parser.parse_args()
    for python in (options.stock_python, options.torch_python):
        if python is not None and shutil.which(python) is None:
            parser.error(f"{python} is not a program")
    return options


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    arguments = parse()
    if arguments.fake:
        os.environ["VLLM_NIXL_CUDA_LIBRARY"] = arguments.fake
    try:
        fake = driver.is_fake(driver.load())
    except OSError as error:
        print(f"this needs an NVIDIA GPU and its driver: {error}")
        return 2
    options = Options(
        quick=arguments.quick or fake,
        fake=fake,
        stock=None if fake else arguments.stock_python,
    )
    steps = [
        step
        for step in all_steps(arguments.torch_python)
        if step.name in ("machine", *(arguments.only or [step.name]))
    ]
    signal.signal(signal.SIGTERM, interrupt)
    run = Run(steps, options, arguments.seconds, arguments.json)
    right = False
    with contextlib.suppress(KeyboardInterrupt):
        right = run.all()
    run.write()
    print("\n".join(table.summary(run.result())))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
