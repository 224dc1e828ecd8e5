"""What is printed of the results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_nixl._bench.turns import figure, times_better

if TYPE_CHECKING:
    from .report import Figures, Row

COLUMNS = "{:58} {:>9} {:>9} {:>9} {:>9} {:>8} {:>8}  {}"
HEADER = ("ours", "stock", "default", "floor", "of floor", "x stock", "")
NOTE = 150  # characters
SIDES = ("ours", "stock", "stock_default", "floor")


def compare(row: Row, figures: Figures, fake: bool) -> dict[str, Any]:
    """Ratios of a row, and whether it reaches its targets.  Figures of the
    fake driver are compared with nothing."""
    found: dict[str, Any] = {"of_floor": None, "times_stock": None}
    ours = figures.get("ours")
    if ours is None or fake:
        return {**found, "verdict": "fake" if fake else ""}
    if "floor" in figures:
        found["of_floor"] = times_better(ours, figures["floor"], row.higher)
    stock = [figures[side] for side in SIDES[1:3] if side in figures]
    if stock:  # the better one
        best = max(stock) if row.higher else min(stock)
        found["times_stock"] = times_better(ours, best, row.higher)
    targets = [
        (">=", row.floor_min, found["of_floor"]),
        (">=", row.stock_min, found["times_stock"]),
        ("<=", row.at_most, ours),
    ]
    words = [
        f"{sign} {target:g}: {judge(sign, target, value)}"
        for sign, target, value in targets
        if target is not None
    ]
    return {**found, "verdict": "; ".join(words)}


def judge(sign: str, target: float, value: float | None) -> str:
    if value is None:
        return "not measured"
    met = value >= target if sign == ">=" else value <= target
    return "met" if met else "MISSED"


def figure_line(row: dict[str, Any]) -> str:
    found = row["figures"]
    return COLUMNS.format(
        f"{row['text']}, {row['unit']}",
        *(figure(found.get(side)) for side in SIDES),
        figure(row["of_floor"]),
        figure(row["times_stock"]),
        row["verdict"],
    ).rstrip()


def check_line(check: dict[str, Any]) -> str:
    """The JSON has all of a note."""
    note = f" ({check['note'][:NOTE]})" if check["note"] else ""
    return f"{check['state']:8} {check['text']}{note}"


def machine_lines(about: dict[str, Any]) -> list[str]:
    lines = [
        f"{about['cpu']}, {about['cores_usable']} cores, "
        f"Linux {about['kernel']}, Python {about['python']}, "
        f"load {about['load_before']:.1f}",
        f"CUDA {about['cuda'] // 1000}.{about['cuda'] % 1000 // 10} "
        f"{about['driver']}".rstrip(),
    ]
    for number, gpu in enumerate(about["gpus"]):
        more = f", {gpu['nvlinks']} NVLinks" if "nvlinks" in gpu else ""
        if gpu.get("pcie_generation"):
            more += f", PCIe {gpu['pcie_generation']} x{gpu['pcie_width']}"
        lines.append(
            f"GPU {number}: {gpu['name']}, {gpu['bytes'] >> 30} GiB, "
            f"{gpu['multiprocessors']} multiprocessors, "
            f"{gpu['copy_engines']} copy engines, "
            f"capability {gpu['capability']}{more}"
        )
    peers = " ".join(f"{one}-{other}" for one, other in about["peers"])
    lines.append(f"GPUs that access each other: {peers or 'none'}")
    names = " ".join(f"{k} {v}" for k, v in about["versions"].items())
    lines.append(names)
    if about["fake"]:
        lines.append("THE DRIVER IS FAKE: its figures mean nothing")
    return lines


def summary(result: dict[str, Any]) -> list[str]:
    """The tables at the end."""
    checks, rows = result["checks"], result["figures"]
    lines = ["", *map(check_line, checks)]
    if rows:
        lines += ["", COLUMNS.format("", *HEADER).rstrip()]
        lines += map(figure_line, rows)
    states: dict[str, int] = {}
    for check in checks:
        states[check["state"]] = states.get(check["state"], 0) + 1
    counts = ", ".join(f"{n} {state}" for state, n in states.items())
    lines += ["", f"{counts}; {result['seconds']:.0f} s"]
    lines += [f"{s['step']}: {s['why']}" for s in result["steps"] if s["why"]]
    return lines
