"""Print line coverage by folder, and list the code that never ran.

    coverage_table.py GCOVR_JSON COVERAGE_JSON UNCALLED

GCOVR_JSON is the output of `gcovr --json` for C, COVERAGE_JSON that of
`coverage json` for Python.  The file UNCALLED receives the lines and functions
of each file that never ran.  Fails if one of the three totals is below LEAST.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

LEAST = 90.0  # per cent of lines


class File(NamedTuple):
    path: str
    missing: list[int]
    lines: int
    uncalled: list[str]


def c_files(data: dict[str, Any]) -> list[File]:
    found = []
    for file in data["files"]:
        counts: dict[int, int] = defaultdict(int)
        for line in file["lines"]:
            if not line.get("gcovr/noncode"):
                counts[line["line_number"]] += line["count"]
        uncalled = [
            f"{function['lineno']} {function['name']}"
            for function in file["functions"]
            if function.get("execution_count", 1) == 0
        ]
        missing = [number for number, count in counts.items() if count == 0]
        found.append(File(file["file"], missing, len(counts), uncalled))
    return found


def python_files(data: dict[str, Any]) -> list[File]:
    found = []
    for name, file in data["files"].items():
        uncalled = [
            f"{min(function['missing_lines'])} {title}"
            for title, function in file.get("functions", {}).items()
            if title
            and function["missing_lines"]
            and not function["executed_lines"]
        ]
        path = "python/vllm_nixl/" + Path(name).name
        lines = file["summary"]["num_statements"]
        found.append(File(path, file["missing_lines"], lines, uncalled))
    return found


def part_of(path: str) -> str:
    """The total that a file counts in."""
    if path.startswith("src/python/"):
        return "extension"
    return "C library" if path.startswith("src/") else "Python"


def row(title: str, files: list[File]) -> float:
    lines = sum(file.lines for file in files)
    missing = sum(len(file.missing) for file in files)
    per_cent = 100.0 * (lines - missing) / max(lines, 1)
    print(
        f"  {title:32} {lines:6} lines {missing:6} missing {per_cent:6.1f} %"
    )
    return per_cent


def spans(numbers: list[int]) -> str:
    """[1, 2, 3, 7] as "1-3, 7"."""
    texts: list[str] = []
    start = last = None
    for number in [*sorted(numbers), None]:
        if last is not None and number == last + 1:
            last = number
            continue
        if last is not None:
            texts.append(f"{start}" if start == last else f"{start}-{last}")
        start = last = number
    return ", ".join(texts)


def write_uncalled(path: Path, files: list[File]) -> None:
    with path.open("w") as out:
        for file in sorted(files, key=lambda f: -len(f.missing)):
            if not file.missing:
                continue
            print(
                f"{file.path}: {len(file.missing)} of {file.lines} lines:"
                f" {spans(file.missing)}",
                file=out,
            )
            for function in file.uncalled:
                print(f"    never called: line {function}", file=out)


def main() -> int:
    c_data, python_data, uncalled = map(Path, sys.argv[1:])
    files = c_files(json.loads(c_data.read_text()))
    files += python_files(json.loads(python_data.read_text()))
    folders: dict[str, list[File]] = defaultdict(list)
    parts: dict[str, list[File]] = defaultdict(list)
    for file in files:
        folders[str(Path(file.path).parent)].append(file)
        parts[part_of(file.path)].append(file)
    for title in sorted(folders):
        row(title, folders[title])
    print()
    least = min([row(title, parts[title]) for title in sorted(parts)])
    write_uncalled(uncalled, files)
    print(f"\ncode that never ran: {uncalled}")
    return 0 if least >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
