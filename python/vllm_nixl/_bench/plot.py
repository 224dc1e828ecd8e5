"""Plots of results, by matplotlib."""

from __future__ import annotations

from typing import Any

SIDES = {
    "ours": ("vllm_nixl", "#0072b2", "o", "-"),
    "stock": ("stock NIXL", "#d55e00", "s", "-"),
    "bare": ("bare loop", "#555555", "^", "--"),
}
OPERATIONS = {"READ": "READ (pull)", "WRITE": "WRITE (push)"}


def _sizes(value: float, _: Any = None) -> str:
    for unit, text in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= unit:
            return f"{value / unit:g} {text}"
    return f"{value:g} B"


def _count(value: float, _: Any = None) -> str:
    return f"{value:g}"


def _line(
    axes: Any, records: list[dict[str, Any]], key: str, side: str, what: Any
) -> None:
    """Draw one side: `what` of its best samples over `key`."""
    label, color, marker, style = SIDES[side]
    points = [
        (record[key], what(record["sides"][side]["best"]))
        for record in sorted(records, key=lambda record: record[key])
        if side in record["sides"]
    ]
    if points:
        axes.plot(
            *zip(*points, strict=True),
            label=label,
            color=color,
            marker=marker,
            linestyle=style,
        )


def _logarithmic(axes: Any, values: set[int], text: Any) -> None:
    """An axis in powers of two, with a mark for each measured value."""
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(values), [text(v) for v in sorted(values)])
    axes.xaxis.set_minor_locator(NullLocator())


def _panels(
    result: dict[str, Any], other: str | None
) -> dict[tuple[str, int | None], list[dict[str, Any]]]:
    """The points of each panel: an operation, and a value of `other`."""
    found: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
    for record in result["points"]:
        group = (record["op"], record[other] if other else None)
        found.setdefault(group, []).append(record)
    return found


def _grid(
    panels: dict[tuple[str, int | None], Any], ylabel: str
) -> tuple[Any, dict[tuple[str, int | None], Any]]:
    """A figure, and its axes by panel: a row for each operation, or, with
    one panel for each, a column."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ops = list(dict.fromkeys(op for op, _ in panels))
    others = list(dict.fromkeys(other for _, other in panels))
    rows, columns = len(ops), len(others)
    if columns == 1:
        rows, columns = 1, len(ops)
    figure = Figure(
        figsize=(1.2 + 4.0 * columns, 1.2 + 3.2 * rows), layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharey="row")
    for first in axes[:, 0]:
        first.set_ylabel(ylabel)
    places = [(op, other) for op in ops for other in others]
    return figure, dict(zip(places, axes.ravel(), strict=True))


def _table(result: dict[str, Any]) -> Any:
    panels = _panels(result, "asked")
    figure, axes = _grid(panels, "bandwidth (GB/s)")
    for (op, batch), records in panels.items():
        here = axes[op, batch]
        for side in SIDES:
            _line(here, records, "block", side, lambda best: best["gbs"])
        _logarithmic(here, {r["block"] for r in records}, _sizes)
        blocks = "1 block" if batch == 1 else f"up to {batch} blocks"
        here.set_title(f"{op}, {blocks} a transfer")
        here.set_xlabel("block size")
    return figure, axes


def _latency(result: dict[str, Any]) -> Any:
    from matplotlib.ticker import FuncFormatter

    panels = _panels(result, None)
    figure, axes = _grid(panels, "latency (µs)")
    for (op, other), records in panels.items():
        here = axes[op, other]
        for side in SIDES:
            _line(here, records, "block", side, lambda best: best["us"]["p50"])
        here.set_yscale("log")
        here.yaxis.set_major_formatter(FuncFormatter(_count))
        _logarithmic(here, {r["block"] for r in records}, _sizes)
        here.set_title(f"{op} of one block, median")
        here.set_xlabel("block size")
    return figure, axes


def _burst(result: dict[str, Any]) -> Any:
    panels = _panels(result, "block")
    figure, axes = _grid(panels, "bandwidth (GB/s)")
    for (op, block), records in panels.items():
        here = axes[op, block]
        for side in SIDES:
            _line(here, records, "requests", side, lambda best: best["gbs"])
        for side in ("ours", "stock"):
            _ceiling(here, records, side)
        _logarithmic(here, {r["requests"] for r in records}, _count)
        here.set_title(f"{OPERATIONS[op]}, blocks of {_sizes(block or 0)}")
        here.set_xlabel("requests in a burst")
    return figure, axes


def _ceiling(axes: Any, records: list[dict[str, Any]], side: str) -> None:
    label, color, _, _ = SIDES[side]
    points = [
        (record["requests"], record["sides"][side]["best"]["ceiling_gbs"])
        for record in records
        if side in record["sides"]
    ]
    if points:
        axes.plot(
            *zip(*points, strict=True),
            label=f"{label}, one descriptor",
            color=color,
            linestyle=":",
        )


DRAWN = {"table": _table, "latency": _latency, "burst": _burst}


def draw(result: dict[str, Any], file: str) -> None:
    """Draw a result of `vllm-nixl bench` to a .svg or .png file."""
    figure, axes = DRAWN[result["mode"]](result)
    panels = list(axes.values())
    for here in panels:
        here.grid(True, alpha=0.3)
        if result["mode"] != "latency":
            here.set_ylim(bottom=0)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=5,
        frameon=False,
    )
    about = result["machine"]
    figure.suptitle(
        f"{about['cpu']}, {about['cores']} cores, Linux {about['kernel']}",
        fontsize="medium",
    )
    figure.savefig(file, dpi=150)
