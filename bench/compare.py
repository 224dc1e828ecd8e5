"""Compare vllm_nixl with stock NIXL and with bare loops, in one run.

    python bench/compare.py [--stock-python PYTHON] [--quick] [--json FILE]

vllm_nixl is measured in the Python that runs this program.  Stock NIXL is
measured in another one (--stock-python, or VLLM_NIXL_STOCK_PYTHON), in which
only stock NIXL is installed.  Without it, that column stays empty.

Every measurement runs in its own process.  Ours, stock and the bare loop of a
row take turns (A B C, A B C, ...), so that changes in the speed of the machine
affect all of them.  The table shows the best of all samples; --json also has
the medians.  A slow result is not a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import bare
from rows import ROWS, Metric, Row

HERE = Path(__file__).resolve().parent
Samples = dict[str, list[float]]
LIMIT_S = 240  # seconds for one measurement


class Bench:
    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.quick: bool = options.quick
        self.repeat: int = options.repeat or (1 if options.quick else 3)
        self.pythons = {"ours": sys.executable}
        if options.stock_python:
            self.pythons["stock"] = options.stock_python
        self.environment = dict(os.environ)
        if options.stock_python:
            # For rows with one agent of each kind.
            self.environment["VLLM_NIXL_STOCK_PYTHON"] = options.stock_python
        if options.engine:
            self.environment["VLLM_NIXL_ENGINE"] = options.engine
        self.environment.setdefault("NIXL_LOG_LEVEL", "ERROR")
        self.bare = bare.build(folder)
        self.versions: dict[str, str] = {}

    def measure(self, row: Row) -> dict[str, Samples]:
        """Samples of each side, taken in turns."""
        sides = [side for side in self.pythons if side == "ours" or row.stock]
        found: dict[str, Samples] = {side: {} for side in sides}
        if row.bare:
            found["bare"] = {}
        for _ in range(1 if row.slow else self.repeat):
            for side, samples in found.items():
                for key, values in self._once(side, row).items():
                    samples.setdefault(key, []).extend(values)
        return found

    def _once(self, side: str, row: Row) -> Samples:
        if side == "bare":
            kind, block = row.bare or ("", 0)
            if kind == "latency":
                return bare.latency(self.bare, block, self.quick)
            if kind == "wake":
                return bare.wakes(self.bare, block, self.quick)
            if kind == "deliver":
                return bare.deliveries(self.bare, block, self.quick)
            return bare.bandwidth(self.bare, kind, block, self.quick)
        command = [self.pythons[side], str(HERE / "worker.py"), side, row.name]
        if self.quick:
            command.append("--quick")
        try:
            done = subprocess.run(
                command,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
            )
        except subprocess.TimeoutExpired:
            raise BenchError(
                f"{side} {row.name}: not finished after {LIMIT_S} s"
            ) from None
        if done.returncode != 0:
            raise BenchError(f"{side} {row.name}:\n{done.stderr.strip()}")
        answer = json.loads(done.stdout)
        if answer["version"]:
            self.versions[side] = answer["version"]
        return dict(answer["samples"])


class BenchError(Exception):
    """Measuring a row failed."""


def best(metric: Metric, values: list[float]) -> float:
    return max(values) if metric.higher else min(values)


def times_better(metric: Metric, ours: float, other: float) -> float | None:
    over, under = (ours, other) if metric.higher else (other, ours)
    return over / under if under else None


def figure(value: float | None) -> str:
    """Format with three significant digits."""
    if value is None:
        return "-"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    if 0 < value < 0.1:
        digits = 4
    return f"{value:,.{digits}f}"


def verdict(metric: Metric, ours: float, ratio: float | None) -> str:
    """Compare with the target, and with the bare loop if there is one."""
    words = []
    if metric.target is not None:
        met = ours >= metric.target if metric.higher else ours <= metric.target
        words.append("met" if met else "MISSED")
    if metric.bare_target is not None and ratio is not None:
        met = ratio >= metric.bare_target
        words.append(f"{ratio:.2f} of bare, {'met' if met else 'MISSED'}")
    return "; ".join(words)


def summarize(row: Row, found: dict[str, Samples]) -> list[dict[str, Any]]:
    """The lines of the table and of the JSON: one for each metric."""
    lines = []
    for metric in row.metrics:
        if metric.key not in found["ours"]:
            continue  # it needs something that is not installed
        sides = {
            side: {
                "best": best(metric, samples[metric.key]),
                "median": statistics.median(samples[metric.key]),
                "samples": len(samples[metric.key]),
            }
            for side, samples in found.items()
            if samples
        }
        ours = sides["ours"]["best"]
        against = {
            side: times_better(metric, ours, sides[side]["best"])
            for side in ("stock", "bare")
            if side in sides
        }
        lines.append(
            {
                "row": row.name,
                "metric": metric.key,
                "text": metric.text,
                "unit": metric.unit,
                "sides": sides,
                "times_better_than_stock": against.get("stock"),
                "of_bare": against.get("bare"),
                "target": metric.target,
                "verdict": verdict(metric, ours, against.get("bare")),
            }
        )
    return lines


COLUMNS = "{:41} {:>9} {:>9} {:>9} {:>8} {:>9}  {}"


def print_header() -> None:
    names = ("ours", "stock", "bare", "x stock", "target", "verdict")
    print(COLUMNS.format("", *names), flush=True)


def print_line(line: dict[str, Any]) -> None:
    def side(name: str) -> str:
        return figure(line["sides"].get(name, {}).get("best"))

    target = "" if line["target"] is None else f"{line['target']:g}"
    times = line["times_better_than_stock"]
    print(
        COLUMNS.format(
            f"{line['text']}, {line['unit']}",
            side("ours"),
            side("stock"),
            side("bare"),
            figure(times),
            target,
            line["verdict"],
        ),
        flush=True,
    )


def markdown(lines: list[dict[str, Any]]) -> str:
    """The table in Markdown, for docs/performance.md."""
    names = ("", "ours", "stock", "bare loop", "x stock", "of bare", "target")
    table = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for line in lines:
        sides = line["sides"]
        best = [
            figure(sides.get(side, {}).get("best"))
            for side in ("ours", "stock", "bare")
        ]
        ratios = (line["times_better_than_stock"], line["of_bare"])
        target = "" if line["target"] is None else f"{line['target']:g}"
        cells = [f"{line['text']}, {line['unit']}", *best]
        cells += [figure(ratio) for ratio in ratios]
        table.append("| " + " | ".join([*cells, target]) + " |")
    return "\n".join(table) + "\n"


def machine() -> dict[str, Any]:
    model = ""
    with open("/proc/cpuinfo") as info:
        for line in info:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
        "bare_threads": bare.threads(),
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--stock-python",
        default=os.environ.get("VLLM_NIXL_STOCK_PYTHON"),
        metavar="PYTHON",
        help="a Python with the stock nixl wheel and numpy",
    )
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", help="only these rows"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one short repetition: tests that it runs, not how fast",
    )
    parser.add_argument(
        "--repeat",
        type=int,
        metavar="N",
        help="number of turns of each row (3)",
    )
    parser.add_argument("--engine", help="our engine: native or nixl")
    parser.add_argument("--json", metavar="FILE", help="write the result")
    parser.add_argument(
        "--markdown", metavar="FILE", help="write the table for the docs"
    )
    options = parser.parse_args(arguments)
    unknown = set(options.rows or []) - {row.name for row in ROWS}
    if unknown:
        names = " ".join(row.name for row in ROWS)
        parser.error(f"unknown row: {' '.join(unknown)}; rows: {names}")
    return options


def main() -> int:
    options = parse()
    about = machine()
    print(
        f"{about['cpu']}, {about['cores']} cores, Linux {about['kernel']}, "
        f"Python {about['python']}, load {about['load_before']:.1f}; "
        f"bare loops with {about['bare_threads']} threads"
    )
    if not options.stock_python:
        print("stock NIXL is not measured: --stock-python is not set")
    failed = 0
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        print_header()
        for row in ROWS:
            if options.rows and row.name not in options.rows:
                continue
            try:
                measured = summarize(row, bench.measure(row))
            except BenchError as error:
                failed += 1
                print(f"{row.name}: failed: {error}", flush=True)
                continue
            for line in measured:
                print_line(line)
            lines += measured
    about["versions"] = bench.versions
    print("versions:", json.dumps(bench.versions))
    if options.json:
        result = {"machine": about, "quick": options.quick, "rows": lines}
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    if options.markdown:
        Path(options.markdown).write_text(markdown(lines))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
