"""The measure of the source counts what it says, and the source keeps it."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def measure():
    path = ROOT / "scripts" / "measure_source.py"
    spec = importlib.util.spec_from_file_location("measure_source", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SAMPLE = """\
#include <stdio.h>

static int declared(int a,
                    int b);
int also_declared(void);

struct table {
    int (*call)(void);
};

static const struct table rows = {
    NULL,
};

static int
short_one(void)
{
    return 1;
}

/* A comment that calls short_one(). */
int
long_one(int a, int b,
         int c)
{
    if (a) {
        return b;
    }
    short_one();

    return c;
}
"""


def lengths(measure, folder, text):
    path = folder / "sample.c"
    path.write_text(text)
    found = measure.function_lengths(path)
    return [(where.rsplit(" ", 1)[1], length) for length, where in found]


@pytest.fixture
def folder(measure, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    return tmp_path


def test_functions_are_measured_from_name_to_brace(measure, folder):
    found = lengths(measure, folder, SAMPLE)
    assert found == [("short_one", 4), ("long_one", 10)]


def tree(folder, body_lines, test_lines):
    for name in ("include", "src", "python", "tests", "examples"):
        (folder / name).mkdir()
    body = "    work();\n" * body_lines
    source = f"int\nfunction(void)\n{{\n{body}}}\n"
    (folder / "src" / "unit.c").write_text(source)
    (folder / "tests" / "unit_test.c").write_text("test();\n" * test_lines)


@pytest.mark.parametrize(
    ("body", "tests", "status"),
    [(10, 100, 0), (200, 500, 1), (10, 5, 1), (70, 100, 1)],
)
def test_what_is_too_long_or_not_tested_fails(
    measure, folder, body, tests, status
):
    tree(folder, body, tests)
    assert measure.main() == status


def test_the_source_keeps_its_measure(measure, capsys):
    status = measure.main()
    assert status == 0, capsys.readouterr().out
