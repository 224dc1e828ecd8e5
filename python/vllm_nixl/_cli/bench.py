"""Measure bandwidth, latency and CPU cost of transfers.

Two processes of this host move random blocks of memory; bare loops do the
same without an agent. With HOST:PORT the other process is the one that
`vllm-nixl bench --serve` runs there.

  vllm-nixl bench                    by block size and batch size
  vllm-nixl bench --stock            beside stock NIXL
  vllm-nixl bench --latency
  vllm-nixl bench --notifications
  vllm-nixl bench --workload burst   requests that arrive together
  vllm-nixl bench --plot bench.svg --json bench.json

  vllm-nixl bench --serve            on one host
  vllm-nixl bench HOST               on the other
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .main import OK, CommandError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .._bench.turns import Side
    from .output import Output

PORT = 18515
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
BURSTS = (1, 2, 4, 8, 16, 32, 64)
LAYERS = 32
TABLE = 8  # blocks of a request in each layer
SECONDS_MAX = 60.0
PLOTS = (".svg", ".png")


def _size(text: str) -> int:
    """A number of bytes: 4096, 4k, 1m, 1MiB."""
    match = re.fullmatch(r"(\d+)\s*([kmg]?)(i?b)?", text.strip().lower())
    if not match or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"not a size: {text!r} (4k, 1m)")
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2]]


def _memory(text: str) -> int:
    size = _size(text)
    if size % 4096:
        raise argparse.ArgumentTypeError(f"not whole pages: {text!r}")
    return size


def _block(text: str) -> int:
    size = _size(text)
    if size % 128:
        raise argparse.ArgumentTypeError(
            f"not a multiple of 128 bytes: {text!r}"
        )
    return size


def _blocks(text: str) -> list[int]:
    return sorted({_block(part) for part in text.split(",")})


def _counts(text: str) -> list[int]:
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise argparse.ArgumentTypeError(f"not numbers above 0: {text!r}")
    return found


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= SECONDS_MAX:
        raise argparse.ArgumentTypeError(
            f"not above 0 and at most {SECONDS_MAX:g}: {text!r}"
        )
    return found


def _place(text: str) -> tuple[str, int]:
    """HOST, HOST:PORT, [ADDRESS]:PORT."""
    match = re.fullmatch(r"\[(.+)\](?::(\d+))?|([^:]+)(?::(\d+))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"not HOST:PORT: {text!r}")
    host, port = match[1] or match[3], match[2] or match[4]
    return host, int(port or PORT)


def _plot_file(text: str) -> str:
    if not text.lower().endswith(PLOTS):
        raise argparse.ArgumentTypeError(
            f"not a name that ends with {' or '.join(PLOTS)}: {text!r}"
        )
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "place",
        nargs="?",
        type=_place,
        metavar="HOST:PORT",
        help=f"where `vllm-nixl bench --serve` runs (port: {PORT})",
    )
    what = parser.add_argument_group("what is measured")
    mode = what.add_mutually_exclusive_group()
    mode.add_argument(
        "--latency", action="store_true", help="one block at a time"
    )
    mode.add_argument(
        "--notifications", action="store_true", help="round trips"
    )
    mode.add_argument(
        "--workload",
        choices=["burst"],
        help="burst: requests of many layers that arrive together",
    )
    what.add_argument(
        "--block-sizes",
        type=_blocks,
        metavar="SIZES",
        help="4k,16k,64k,1m; with --workload: 16k",
    )
    what.add_argument(
        "--batch",
        type=_counts,
        metavar="COUNTS",
        help="blocks of a transfer: 1,64,1024",
    )
    what.add_argument(
        "--op", choices=["read", "write"], help="only one operation"
    )
    what.add_argument(
        "--size",
        type=_memory,
        metavar="SIZE",
        help="of the memory that the blocks are in (256m)",
    )
    what.add_argument(
        "--shared",
        action="store_true",
        help="the peer's memory is a shared buffer",
    )
    what.add_argument(
        "--stock", action="store_true", help="measure stock NIXL, too"
    )
    what.add_argument(
        "--stock-python",
        default=os.environ.get("VLLM_NIXL_STOCK_PYTHON"),
        metavar="PYTHON",
        help="the Python with stock NIXL, if it is another one than this",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--seconds",
        type=_seconds,
        metavar="S",
        help="for each point and side (0.3)",
    )
    how.add_argument(
        "--repeat", type=int, metavar="N", help="turns of each point (3)"
    )
    how.add_argument(
        "--quick",
        action="store_true",
        help="a few seconds in all: says that it works, not how fast",
    )
    how.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="do not compare the bytes of each point's first transfer",
    )
    result = parser.add_argument_group("result")
    # In place of the option that all commands have: this one takes a file.
    result.add_argument(
        "--json",
        nargs="?",
        const=True,
        default=False,
        metavar="FILE",
        help="write all figures as JSON to FILE, or to stdout",
    )
    result.add_argument(
        "--plot",
        type=_plot_file,
        metavar="FILE",
        help="draw a plot: FILE.svg or FILE.png",
    )
    server = parser.add_argument_group("the other host")
    server.add_argument(
        "--serve", action="store_true", help="serve `bench HOST:PORT`"
    )
    server.add_argument(
        "--host", default="", help="where --serve listens (all addresses)"
    )
    server.add_argument(
        "--port", type=int, default=PORT, help=f"0: any free one ({PORT})"
    )


# -- What to measure ---------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One configuration: a measurement of points.py and its arguments."""

    do: str
    order: dict[str, Any]
    label: str
    asked: int | None = None  # the batch size that was asked for
    bare: bool = True  # there is a bare loop for it
    stock: bool = True


def _name(size: int) -> str:
    """A size as people say it: 4k, 1m."""
    for unit, letter in ((GIB, "g"), (MIB, "m"), (KIB, "k")):
        if size >= unit and size % unit == 0:
            return f"{size // unit}{letter}"
    return str(size)


@dataclass
class Plan:
    """What the options ask for."""

    mode: str
    points: list[Point]
    notes: list[str]


def _ops(options: argparse.Namespace) -> list[str]:
    return [options.op.upper()] if options.op else ["READ", "WRITE"]


def _table(options: argparse.Namespace, size: int) -> Plan:
    points, notes = [], []
    for op in _ops(options):
        for block in options.block_sizes:
            seen = set()
            for batch in options.batch:
                fits = min(batch, size // block)
                if fits in seen:
                    continue
                seen.add(fits)
                if fits < batch:
                    notes.append(
                        f"{_name(block)}: a batch of {fits} is the largest "
                        f"in {_name(size)} of memory (--size)"
                    )
                order = {"op": op, "block": block, "batch": fits}
                label = f"{op} {_name(block)} x {fits}"
                points.append(Point("transfers", order, label, asked=batch))
    return Plan("table", points, list(dict.fromkeys(notes)))


def _latency(options: argparse.Namespace, size: int) -> Plan:
    points = [
        Point("latency", {"op": op, "block": block}, f"{op} {_name(block)}")
        for op in _ops(options)
        for block in options.block_sizes
    ]
    return Plan("latency", points, [])


def _notifications(options: argparse.Namespace, size: int) -> Plan:
    points = [
        Point(
            "notifications",
            {"sleep": sleep},
            "both sides sleep" if sleep else "both sides poll",
            bare=False,
            stock=not sleep,  # it offers nothing to sleep on
        )
        for sleep in (False, True)
    ]
    return Plan("notifications", points, [])


def _burst(options: argparse.Namespace, size: int) -> Plan:
    points, notes = [], []
    bursts = (1, 8) if options.quick else BURSTS
    for op in _ops(options):
        for block in options.block_sizes:
            for requests in bursts:
                whole = block * LAYERS * TABLE * requests
                if whole > size:
                    notes.append(
                        f"{_name(block)}: no burst of {requests} requests or "
                        f"more, which needs --size {_name(whole)}"
                    )
                    break
                order = {
                    "op": op,
                    "block": block,
                    "layers": LAYERS,
                    "blocks": TABLE,
                    "requests": requests,
                }
                label = f"{op} {requests} x {_name(block)}"
                points.append(Point("burst", order, label))
    return Plan("burst", points, list(dict.fromkeys(notes)))


def _mode(options: argparse.Namespace) -> str:
    if options.latency:
        return "latency"
    if options.notifications:
        return "notifications"
    return options.workload or "table"


PLANS: dict[str, Callable[[argparse.Namespace, int], Plan]] = {
    "table": _table,
    "latency": _latency,
    "notifications": _notifications,
    "burst": _burst,
}


def _plan(options: argparse.Namespace, size: int) -> Plan:
    """What to measure with that much memory."""
    block = max(options.block_sizes)
    if block > size:
        raise CommandError(
            f"a block of {_name(block)} is larger than the memory of "
            f"{_name(size)} (--size)"
        )
    plan = PLANS[options.mode](options, size)
    if not plan.points:
        raise CommandError("; ".join(plan.notes))
    return plan


def _set_defaults(options: argparse.Namespace) -> None:
    quick = options.quick
    options.mode = _mode(options)
    if options.size is None:
        options.size = (32 if quick else 256) * MIB
    if options.block_sizes is None:
        options.block_sizes = [4 * KIB, 16 * KIB, 64 * KIB, MIB]
        if options.mode == "burst":
            options.block_sizes = [(4 if quick else 16) * KIB]
    if options.batch is None:
        options.batch = [1, 64] if quick else [1, 64, 1024]
    if options.seconds is None:
        options.seconds = 0.02 if quick else 0.3
    if options.repeat is None:
        options.repeat = 1 if quick else 3


def _check(options: argparse.Namespace) -> None:
    """Refuse what contradicts itself or cannot be done here."""
    if options.repeat < 1:
        raise CommandError("--repeat must be at least 1")
    if options.place and (options.stock or options.shared):
        raise CommandError(
            "--stock measures two processes of this host"
            if options.stock
            else "with HOST:PORT, the other side takes --shared"
        )
    if options.stock and options.shared:
        raise CommandError("stock NIXL has no shared buffers")
    if options.plot and options.mode == "notifications":
        raise CommandError("--notifications has no plot")
    if options.plot and not importlib.util.find_spec("matplotlib"):
        raise CommandError(
            "--plot needs matplotlib: pip install 'vllm_nixl[plot]'"
        )


# -- Measuring ---------------------------------------------------------------


def _sides(
    options: argparse.Namespace, stack: contextlib.ExitStack
) -> dict[str, Side]:
    """Start the processes of each side."""
    from .._bench import bare, turns

    memory = {"size": options.size, "shared": options.shared}
    reader = memory | ({"peer": options.place} if options.place else {})
    made = {"ours": stack.enter_context(turns.Side("ours", reader))}
    if options.stock:
        python = turns.stock_python(options.stock_python)
        side = turns.Side("stock", reader, python)
        made["stock"] = stack.enter_context(side)
    if not options.place and bare.missing() is None:
        made["bare"] = stack.enter_context(turns.Side("bare", memory))
    return made


def _measure(
    point: Point, sides: dict[str, Side], options: argparse.Namespace
) -> dict[str, list[dict[str, Any]]]:
    """Samples of each side, taken in turns; the first one is verified."""
    from .._bench.turns import in_turns

    seen = set()

    def work(name: str) -> dict[str, Any]:
        order = {
            **point.order,
            "seconds": options.seconds / options.repeat,
            "verify": options.verify and name not in seen,
        }
        seen.add(name)
        return sides[name].sample(point.do, order)

    return in_turns(
        {
            name: functools.partial(work, name)
            for name in sides
            if name == "ours"
            or (point.bare if name == "bare" else point.stock)
        },
        options.repeat,
    )


def _value(sample: dict[str, Any]) -> tuple[float, bool]:
    """What samples are compared by, and whether more is better."""
    if "gbs" in sample:
        return sample["gbs"], True
    return sample["us"]["p50"], False


def _summary(samples: list[dict[str, Any]]) -> dict[str, Any]:
    values = [_value(sample)[0] for sample in samples]
    higher = _value(samples[0])[1]
    best = values.index(max(values) if higher else min(values))
    return {
        "best": samples[best],
        "median": statistics.median(values),
        "samples": samples,
    }


def _record(
    point: Point, found: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """What the JSON says about a point."""
    from .._bench.turns import times_better

    sides = {name: _summary(samples) for name, samples in found.items()}
    ours, higher = _value(sides["ours"]["best"])
    against = {
        name: times_better(ours, _value(side["best"])[0], higher)
        for name, side in sides.items()
        if name != "ours"
    }
    return {
        "measurement": point.do,
        **point.order,
        "asked": point.asked,
        "sides": sides,
        "of_bare": against.get("bare"),
        "times_better_than_stock": against.get("stock"),
    }


@contextlib.contextmanager
def _progress(total: int, out: Output) -> Iterator[Callable[[str], None]]:
    """A function that shows on stderr what is being measured."""
    number = 0
    shown = sys.stderr.isatty() and not out.as_json

    def show(label: str) -> None:
        nonlocal number
        number += 1
        if shown:
            text = f"{number} of {total}: {label}"
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _run(options: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Measure everything; return the result, as the JSON has it."""
    from .._bench.turns import machine

    plan = _plan(options, options.size)
    about = machine()
    with contextlib.ExitStack() as stack:
        sides = _sides(options, stack)
        started = {name: side.start() for name, side in sides.items()}
        size = started["ours"]["size"]
        if size < options.size:
            plan = _plan(options, size)
        records = []
        with _progress(len(plan.points), out) as show:
            for point in plan.points:
                show(point.label)
                records.append(_record(point, _measure(point, sides, options)))
    return {
        "mode": plan.mode,
        "machine": about,
        "peer_machine": started["ours"].get("peer_machine"),
        "versions": {
            name: answer["version"]
            for name, answer in started.items()
            if "version" in answer
        },
        "route": started["ours"].get("route"),
        "options": {
            name: getattr(options, name)
            for name in ("seconds", "repeat", "quick", "verify", "shared")
        }
        | {"size": size},
        "notes": plan.notes,
        "points": records,
    }


# -- Showing -----------------------------------------------------------------

Cells = dict[str, object]


def _with_bare(record: dict[str, Any], unit: str) -> Cells:
    """The columns of the bare loop, if there is one."""
    from .._bench.turns import figure

    side = record["sides"].get("bare")
    if side is None:
        return {}
    return {
        f"bare ({unit})": figure(_value(side["best"])[0]),
        "of bare": figure(record["of_bare"]),
    }


def _times(name: str, times: dict[str, float], *keys: str) -> Cells:
    from .._bench.turns import figure

    return {
        f"{key.capitalize()} {name} (us)": figure(times[key]) for key in keys
    }


def _table_cells(record: dict[str, Any], best: dict[str, Any]) -> Cells:
    """nixlbench's columns, and two of our own."""
    from .._bench.turns import figure

    return {
        "Block Size": _name(record["block"]),
        "Batch Size": record["batch"],
        "B/W (GB/s)": figure(best["gbs"]),
        "Avg Lat. (us)": figure(best["latency_us"]),
        **_times("Prep", best["prep_us"], "avg", "p99"),
        **_times("Post", best["post_us"], "avg", "p99"),
        **_times("Tx", best["tx_us"], "avg", "p99"),
        "CPU s/GiB": figure(best["cpu_s_per_gib"]),
    }


def _latency_cells(record: dict[str, Any], best: dict[str, Any]) -> Cells:
    from .._bench.turns import figure

    return {
        "Block Size": _name(record["block"]),
        **_times("Lat.", best["us"], "avg", "p50", "p99", "p99.9"),
        "CPU s/GiB": figure(best["cpu_s_per_gib"]),
    }


def _notification_cells(record: dict[str, Any], best: dict[str, Any]) -> Cells:
    return {
        "Both sides": "sleep" if record["sleep"] else "poll",
        **_times("round trip", best["us"], "avg", "p50", "p99", "p99.9"),
    }


def _burst_cells(record: dict[str, Any], best: dict[str, Any]) -> Cells:
    from .._bench.turns import figure

    descs = record["layers"] * record["blocks"]
    cells = {
        "Requests": record["requests"],
        "Descs": record["requests"] * descs,
        "Block Size": _name(record["block"]),
        "B/W (GB/s)": figure(best["gbs"]),
    }
    if "ceiling" in best:
        cells["Ceiling (GB/s)"] = figure(best["ceiling_gbs"])
        cells["of ceiling"] = figure(best["of_ceiling"])
    return cells | {
        **_times("Prep", best["prep_us"], "avg"),
        **_times("Post", best["post_us"], "avg", "p99"),
        **_times("Tx", best["tx_us"], "avg", "p99"),
        "CPU s/GiB": figure(best["cpu_s_per_gib"]),
    }


CELLS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Cells]] = {
    "table": _table_cells,
    "latency": _latency_cells,
    "notifications": _notification_cells,
    "burst": _burst_cells,
}
HEADINGS = {
    "table": "{op}",
    "latency": "{op} of one block",
    "notifications": "Notifications",
    "burst": "{op} ({way}), requests of {layers} layers x {blocks} blocks",
}
WAYS = {"READ": "pull", "WRITE": "push"}


def _heading(mode: str, record: dict[str, Any]) -> str:
    return HEADINGS[mode].format(**record, way=WAYS.get(record.get("op", "")))


def _lines(mode: str, records: list[dict[str, Any]]) -> list[Cells]:
    """The rows of a table; all have the same columns."""
    unit = "GB/s" if mode in ("table", "burst") else "P50 us"
    stock = any("stock" in record["sides"] for record in records)
    lines = []
    for record in records:
        for name in ("ours", "stock"):
            if name not in record["sides"]:
                continue
            best = record["sides"][name]["best"]
            line = CELLS[mode](record, best)
            if stock:
                line = {"": name, **line}
            if name == "ours":
                line |= _with_bare(record, unit)
            lines.append(line)
    return lines


# Columns to leave out in a narrow terminal, the first ones first.
SPARE = (
    "P99 Prep (us)",
    "P99.9 Lat. (us)",
    "P99.9 round trip (us)",
    "Avg Prep (us)",
    "P99 Post (us)",
    "bare (GB/s)",
    "P99 Tx (us)",
    "Avg Tx (us)",
    "Block Size",
)


def _cells(columns: list[str], lines: list[Cells]) -> list[list[object]]:
    return [[line.get(key, "") for key in columns] for line in lines]


def _fitting(columns: list[str], lines: list[Cells], out: Output) -> list[str]:
    """The columns that fit into the terminal, if stdout is one."""
    left = list(columns)
    for spare in SPARE:
        if out.fits(left, _cells(left, lines)):
            break
        # The size of the blocks may be all that tells lines apart.
        if spare in left and (spare != "Block Size" or "Requests" in left):
            left.remove(spare)
    return left


def _show(result: dict[str, Any], out: Output) -> None:
    about = result["machine"]
    out.line(
        f"{about['cpu']}, {about['cores']} cores, Linux {about['kernel']}, "
        f"Python {about['python']}, load {about['load_before']:.1f}",
        "dim",
    )
    other = result["peer_machine"]
    if other:
        out.line(f"peer: {other['host']}, {other['cpu']}", "dim")
    route = result["route"] or {}
    if "path" in route:
        more = route.get("transports") or route.get("why")
        out.line(f"route: {route['path']} ({more})", "dim")
    versions = (f"{k} {v}" for k, v in result["versions"].items())
    out.line(f"versions: {', '.join(versions)}", "dim")
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in result["points"]:
        heading = _heading(result["mode"], record)
        groups.setdefault(heading, []).append(record)
    hidden = False
    for heading, records in groups.items():
        lines = _lines(result["mode"], records)
        every = list(dict.fromkeys(key for line in lines for key in line))
        columns = _fitting(every, lines, out)
        hidden |= len(columns) < len(every)
        out.line()
        out.heading(heading)
        out.table(columns, _cells(columns, lines))
    notes = list(result["notes"])
    if hidden:
        notes.append("a wider terminal has room for more columns")
    for note in notes:
        out.line(note, "dim")


# -- The command -------------------------------------------------------------


def _serve(options: argparse.Namespace, out: Output) -> int:
    from .._bench.serve import Server

    server = Server(options.size, options.shared, out.line)
    with server.agent:
        port = server.listen(options.host, options.port)
        out.result({"port": port, "size": options.size})
        out.line(
            f"serving {_name(options.size)} of memory on port {port}: "
            f"vllm-nixl bench HOST:{port}"
        )
        server.run()
    return OK


def run(options: argparse.Namespace, out: Output) -> int:
    if not importlib.util.find_spec("numpy"):
        raise CommandError("bench needs numpy: pip install numpy")
    from .._bench import bare, turns
    from .._bench.child import BenchError

    _set_defaults(options)
    if options.serve:
        return _serve(options, out)
    _check(options)
    if options.stock and not turns.stock_python(options.stock_python):
        raise CommandError(
            "--stock: stock NIXL is not in this Python (pip install nixl); "
            "--stock-python names another one"
        )
    try:
        result = _run(options, out)
    except BenchError as error:
        raise CommandError(str(error)) from None
    if not options.place and bare.missing():
        result["notes"].append(f"no bare loops: {bare.missing()}")
    _show(result, out)
    out.result(result)
    if isinstance(options.json, str):
        text = json.dumps(result, indent=1) + "\n"
        Path(options.json).write_text(text)
    if options.plot:
        from .._bench.plot import draw

        draw(result, options.plot)
        out.line(f"plot: {options.plot}")
    return OK
