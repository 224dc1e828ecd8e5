"""docs/environment.md has a line for every variable that the sources read,
and for no other."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "environment.md").read_text()
# A text that is the name of a variable and nothing else.
NAME = re.compile(r'"((?:VLLM_NIXL|NIXL|UCX)_[A-Z0-9_]*[A-Z0-9])"')
LINE = re.compile(r"^\| `((?:VLLM_NIXL|NIXL|UCX)_\w+)` \|", re.MULTILINE)
# Read by the benchmark and the tests alone.
ELSEWHERE = {
    "VLLM_NIXL_STOCK_LIBRARY",
    "VLLM_NIXL_STOCK_PYTHON",
    "VLLM_NIXL_STOCK_PYTHONS",
    "VLLM_NIXL_TEST_GPU",
    "VLLM_NIXL_TEST_MEMORY",
    "VLLM_NIXL_TEST_SLOWDOWN",
}


def sources():
    """The library, the extension and the package.  Not the command line,
    which looks at variables of others too and says what they do."""
    for folder in "src", "python/vllm_nixl":
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".c", ".h", ".py"} and "_cli" not in path.parts:
                yield path


def other_names():
    """Names in the sources that are not variables: statuses, and the local
    side of prepared lists."""
    table = (ROOT / "include/vnx/status.h").read_text()
    return {"NIXL_INIT_AGENT", *NAME.findall(table)}


def variables():
    found = {
        name: path.relative_to(ROOT).as_posix()
        for path in sources()
        for name in NAME.findall(path.read_text())
    }
    return {n: path for n, path in found.items() if n not in other_names()}


def test_sources_are_found():
    found = variables()
    assert found["VLLM_NIXL_ENGINE"] == "python/vllm_nixl/_config.py"
    assert found["UCX_MODULES"] == "src/engine/native/ucx/library.c"
    assert "NIXL_ERR_BACKEND" not in found


def test_every_variable_has_a_line():
    missing = {
        name: path
        for name, path in variables().items()
        if name not in LINE.findall(PAGE)
    }
    assert not missing


def test_every_line_is_a_variable():
    assert set(LINE.findall(PAGE)) - ELSEWHERE <= variables().keys()


def test_every_variable_has_one_line():
    names = LINE.findall(PAGE)
    assert sorted(set(names)) == sorted(names)


def test_lines_have_default_meaning_and_time():
    for line in PAGE.splitlines():
        name = LINE.match(line)
        if name and name[1] not in ELSEWHERE:
            cells = line.strip("| ").split(" | ")
            assert len(cells) == 4, line
            assert all(cells), line
