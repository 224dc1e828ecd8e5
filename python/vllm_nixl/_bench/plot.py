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
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(values), [text(v) for v in sorted(values)])
    axes.minorticks_off()


def _panels(
    result: dict[str, Any], other: str | None
) -> dict[tuple[str, int | None], list[dict[str, Any]]]:
    """The points of each panel: an operation, and a value of `other`."""
    found: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
    for record in result["points"]:
        group = (record["op"], record[other] if other else None)
        found.setdefault(group, []).append(record)
    return found


def _grid(panels: dict[tuple[str, int | None], Any]) -> tuple[Any, Any]:
    """A figure with a row for each operation; returns it and axes by panel."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ops = list(dict.fromkeys(op for op, _ in panels))
    others = list(dict.fromkeys(other for _, other in panels))
    figure = Figure(
        figsize=(1.2 + 4.0 * len(others), 1.0 + 3.2 * len(ops)),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(ops), len(others), squeeze=False, sharey="row")
    return figure, {
        (op, other): axes[row][column]
        for row, op in enumerate(ops)
        for column, other in enumerate(others)
    }


def _table(result: dict[str, Any]) -> Any:
    panels = _panels(result, "asked")
    figure, axes = _grid(panels)
    for (op, batch), records in panels.items():
        here = axes[op, batch]
        for side in SIDES:
            _line(here, records, "block", side, lambda best: best["gbs"])
        _logarithmic(here, {r["block"] for r in records}, _sizes)
        blocks = "1 block" if batch == 1 else f"up to {batch} blocks"
        here.set_title(f"{op}, {blocks} a transfer")
        here.set_xlabel("block size")
        here.set_ylabel("bandwidth (GB/s)")
        here.set_ylim(bottom=0)
    return figure, axes


def _latency(result: dict[str, Any]) -> Any:
    panels = _panels(result, None)
    figure, axes = _grid(panels)
    for (op, other), records in panels.items():
        here = axes[op, other]
        for side in SIDES:
            _line(here, records, "block", side, lambda best: best["us"]["p50"])
        _logarithmic(here, {r["block"] for r in records}, _sizes)
        here.set_yscale("log")
        here.set_title(f"{op} of one block, median")
        here.set_xlabel("block size")
        here.set_ylabel("latency (us)")
    return figure, axes


def _burst(result: dict[str, Any]) -> Any:
    panels = _panels(result, "block")
    figure, axes = _grid(panels)
    for (op, block), records in panels.items():
        here = axes[op, block]
        for side in SIDES:
            _line(here, records, "requests", side, lambda best: best["gbs"])
        for side in ("ours", "stock"):
            _ceiling(here, records, side)
        _logarithmic(here, {r["requests"] for r in records}, _count)
        here.set_title(f"{OPERATIONS[op]}, blocks of {_sizes(block or 0)}")
        here.set_xlabel("requests in a burst")
        here.set_ylabel("bandwidth (GB/s)")
        here.set_ylim(bottom=0)
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
