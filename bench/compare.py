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
import functools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from measure_calls import Samples, tail
from measure_pair import VOLUME
from rows import ROWS, Metric, Row
from vllm_nixl._bench import turns
from vllm_nixl._bench.child import LIMIT_S, BenchError, command, environment
from vllm_nixl._bench.impl import MIB, scatter
from vllm_nixl._bench.reader import SEEDS

WORKER = Path(__file__).resolve().with_name("worker.py")


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
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
        self.versions: dict[str, str] = {}

    def measure(self, row: Row) -> dict[str, Samples]:
        """Samples of each side, taken in turns."""
        sides = [side for side in self.pythons if side == "ours" or row.stock]
        if row.bare:
            sides.append("bare")
        taken = turns.in_turns(
            {side: functools.partial(self._once, side, row) for side in sides},
            1 if row.slow else self.repeat,
        )
        found: dict[str, Samples] = {side: {} for side in sides}
        for side, turn in taken.items():
            for samples in turn:
                for key, values in samples.items():
                    found[side].setdefault(key, []).extend(values)
        return found

    def _once(self, side: str, row: Row) -> Samples:
        if side == "bare":
            kind, amount = row.bare or ("", 0)
            return bare(kind, amount, self.quick)
        arguments = [side, row.name, *(["--quick"] if self.quick else [])]
        try:
            done = subprocess.run(
                command(side, WORKER, *arguments, python=self.pythons[side]),
                env=environment(side, self.environment),
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
            )
        except subprocess.TimeoutExpired:
            raise BenchError(
                f"{side} {row.name}: not finished after {LIMIT_S:g} s"
            ) from None
        if done.returncode != 0:
            raise BenchError(f"{side} {row.name}:\n{done.stderr.strip()}")
        answer = json.loads(done.stdout)
        if answer["version"]:
            self.versions[side] = answer["version"]
        return dict(answer["samples"])


def bare(kind: str, amount: int, quick: bool) -> Samples:
    """A sample of a bare loop, in the form of the row's.

    readv, stream: the blocks that the row moves, of `amount` bytes; latency:
    one of them; wake, deliver: the arguments of vnx_bare_NAME(), in us
    """
    if kind in ("readv", "stream"):
        size = VOLUME // 8 if quick else VOLUME
        seconds = _copies(
            kind, size, amount, size // amount, 3 if quick else 8
        )
        return {"gbs": [size / value / 1e9 for value in seconds[1:]]}
    if kind == "wake":
        return tail(
            _bare(0, kind, busy_us=amount, passes=50 if quick else 500)
        )
    if kind == "deliver":
        # It does not depend on the sender.
        count = 50 if quick else 1000
        seconds = _bare(0, kind, pause_us=amount, passes=count)
        p50 = statistics.median(seconds[count // 10 :]) * 1e6
        return {"us": [p50], "from_stock_us": [p50]}
    count = 500 if quick else 5000
    seconds = _copies("readv", MIB, amount, 1, count)
    return {"us": [statistics.median(seconds[count // 10 :]) * 1e6]}


def _copies(
    kind: str, size: int, block: int, batch: int, passes: int
) -> list[float]:
    mine, theirs = (scatter(size // block, seed).tolist() for seed in SEEDS)
    return _bare(
        size,
        "copy",
        shared=kind == "stream",
        mine=mine,
        theirs=theirs,
        block=block,
        batch=batch,
        passes=passes,
    )


def _bare(
    size: int, do: str, shared: bool = False, **order: Any
) -> list[float]:
    """Seconds of each pass of a bare loop, in a process of its own."""
    with turns.Side("bare", {"size": size, "shared": shared}) as side:
        side.start()
        return list(side.ask(do, **order)["seconds"])


def best(metric: Metric, values: list[float]) -> float:
    return max(values) if metric.higher else min(values)


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
            side: turns.times_better(ours, sides[side]["best"], metric.higher)
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
        return turns.figure(line["sides"].get(name, {}).get("best"))

    target = "" if line["target"] is None else f"{line['target']:g}"
    times = line["times_better_than_stock"]
    print(
        COLUMNS.format(
            f"{line['text']}, {line['unit']}",
            side("ours"),
            side("stock"),
            side("bare"),
            turns.figure(times),
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
            turns.figure(sides.get(side, {}).get("best"))
            for side in ("ours", "stock", "bare")
        ]
        ratios = (line["times_better_than_stock"], line["of_bare"])
        target = "" if line["target"] is None else f"{line['target']:g}"
        cells = [f"{line['text']}, {line['unit']}", *best]
        cells += [turns.figure(ratio) for ratio in ratios]
        table.append("| " + " | ".join([*cells, target]) + " |")
    return "\n".join(table) + "\n"


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
    about = turns.machine()
    print(
        f"{about['cpu']}, {about['cores']} cores, Linux {about['kernel']}, "
        f"Python {about['python']}, load {about['load_before']:.1f}; "
        f"bare loops with {about['bare_threads']} threads"
    )
    if not options.stock_python:
        print("stock NIXL is not measured: --stock-python is not set")
    failed = 0
    lines = []
    bench = Bench(options)
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
