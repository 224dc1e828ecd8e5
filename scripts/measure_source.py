"""Measure the C source: sizes of functions, lines of test and of source.

Fails when a function is longer than the project allows, or when there are
fewer lines of test than of source.  The source is formatted with the name of
a function in column 1 (.clang-format), which is what this relies on.
"""

from __future__ import annotations

import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 120
LONGEST_P95 = 60
DEFINITION = re.compile(r"^([a-z_][a-z0-9_]*)\(")


def function_lengths(path: Path) -> list[tuple[int, str]]:
    """(lines from the name to the closing brace, "file:line name")."""
    found = []
    lines = path.read_text().splitlines()
    start = None
    for number, line in enumerate(lines):
        match = DEFINITION.match(line)
        if match and start is None:
            start = (number, match.group(1))
        elif start and line.startswith("}"):
            where = f"{path.relative_to(ROOT)}:{start[0] + 1} {start[1]}"
            found.append((number - start[0] + 1, where))
            start = None
        elif start and line.endswith(";") and line[0] not in " \t{":
            start = None
    return found


def code_lines(folders: list[str], suffixes: set[str]) -> int:
    return sum(
        sum(1 for line in path.read_text().splitlines() if line.strip())
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in suffixes
    )


def main() -> int:
    functions = [
        entry
        for folder in ("src", "examples")
        for path in sorted((ROOT / folder).rglob("*.c"))
        for entry in function_lengths(path)
    ]
    lengths = sorted(length for length, _ in functions)
    p95 = lengths[int(len(lengths) * 0.95)]
    source = code_lines(["include", "src", "python"], {".c", ".h", ".py"})
    test = code_lines(["tests"], {".c", ".h", ".py"})
    print(
        f"{len(lengths)} functions: median {statistics.median(lengths):.0f}"
        f" lines, p95 {p95}, longest {lengths[-1]}"
    )
    for length, where in sorted(functions, reverse=True)[:5]:
        print(f"  {length:4d}  {where}")
    print(f"{source} lines of source, {test} of test")
    failures = []
    if lengths[-1] > LONGEST:
        failures.append(f"a function is longer than {LONGEST} lines")
    if p95 > LONGEST_P95:
        failures.append(f"p95 of functions is above {LONGEST_P95} lines")
    if test < source:
        failures.append("fewer lines of test than of source")
    for failure in failures:
        print("FAILED:", failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
