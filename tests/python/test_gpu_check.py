"""scripts/gpu_check.sh, on the fake libcuda: every check passes, the results
are complete, and no step takes the others with it."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
from support import cuda
from support.deadline import SLOWDOWN

pytestmark = [
    pytest.mark.slow,
    pytest.mark.beyond_stock,
    pytest.mark.skipif(cuda.why_not() is not None, reason=str(cuda.why_not())),
]

TIMEOUT = 200 * SLOWDOWN
SCRIPT = cuda.ROOT / "scripts" / "gpu_check.sh"
# What needs more than a driver.
SKIPPED = {"right_torch", "right_ucx"}


def gpu_check(path, *arguments, **env):
    return subprocess.run(
        [SCRIPT, "--json", path, "--seconds", str(TIMEOUT), *arguments],
        env={**os.environ, "PYTHON": sys.executable, **env},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


@pytest.fixture
def modules(monkeypatch):
    """modules(name): a module of scripts/gpu_check."""
    monkeypatch.syspath_prepend(str(cuda.ROOT / "scripts"))
    return lambda name: importlib.import_module(f"gpu_check.{name}")


@pytest.fixture
def result(tmp_path, modules):
    """result(prefix): what the steps of that name have found, the steps, and
    what was printed."""

    def run(prefix):
        path = tmp_path / "result.json"
        steps = [
            step
            for step in modules("steps").all_steps()
            if step.name.startswith(prefix)
        ]
        names = [step.name for step in steps]
        done = gpu_check(path, "--fake", cuda.library(), "--only", *names)
        found = json.loads(path.read_text())
        log = [step["log"] for step in found["steps"]]
        assert done.returncode == 0, (done.stdout, done.stderr, log)
        return found, steps, done.stdout

    return run


def test_every_check_passes(result):
    found, steps, printed = result("right_")
    texts = {(s.name, check.text) for s in steps for check in s.checks}
    assert {(c["step"], c["text"]) for c in found["checks"]} == texts
    for check in found["checks"]:
        assert check["text"] in printed
        if check["state"] != "passed":
            assert check["state"] == "skipped"
            assert check["step"] in SKIPPED or "unshare" in check["note"]


def test_every_figure_is_there_and_none_is_compared(result, modules):
    found, steps, printed = result("figures_")
    options = modules("report").Options(quick=True, fake=True)
    names = {(s.name, row.name) for s in steps for row in s.rows(options)}
    assert {(row["step"], row["name"]) for row in found["figures"]} == names
    for row in found["figures"]:
        assert row["figures"][row["side"]] > 0
        assert row["text"] in printed
        assert row["of_floor"] is row["times_stock"] is None
        assert row["verdict"] == "fake"
    assert found["machine"]["fake"] is True
    assert found["machine"]["gpus"][0]["name"] == "fake GPU"
    assert "THE DRIVER IS FAKE" in printed


def test_what_is_wrong_is_reported_and_the_rest_goes_on(tmp_path):
    path = tmp_path / "result.json"
    done = gpu_check(
        path,
        *("--only", "right_replaced"),
        VLLM_NIXL_CUDA_LIBRARY=cuda.library(),
        FAKE_CUDA="refuse=cuMemImportFromShareableHandle:801",
    )
    assert done.returncode == 1
    states = {
        check["text"]: check["state"]
        for check in json.loads(path.read_text())["checks"]
    }
    assert states == {
        "sleep and wake, deregistered meanwhile": "failed",
        "sleep and wake without a word": "failed",
        "memory that is freed before its peer has closed it": "passed",
        "other memory at the address of memory that was freed": "passed",
    }
    assert "cumem was not mapped: GPU 0: cuMemImport" in done.stdout


def test_machine_without_a_driver_is_told(tmp_path):
    done = gpu_check(
        tmp_path / "result.json", VLLM_NIXL_CUDA_LIBRARY="/none/libcuda.so.1"
    )
    assert done.returncode == 2
    assert "this needs an NVIDIA GPU and its driver" in done.stdout


@dataclass
class Program:
    """A step whose process is a small program.  `first` is the number of the
    first check that it is to run."""

    name: str
    source: str
    limit: float = 30.0
    checks: list = field(default_factory=list)
    python: str = sys.executable

    def rows(self, options):
        return []

    def command(self, options, first):
        text = "import json, os, time\n"
        text += "def report(**event): print(json.dumps(event), flush=True)\n"
        text += f"first = {first}\n"
        return [sys.executable, "-c", text + self.source]


LOOP = """
for first in range(first, 3):
    report(begin=str(first))
    if first == BAD: END
    report(check=str(first), state="passed", note="")
"""
RIGHT = LOOP.replace("BAD: END", "3: pass")


def run_steps(modules, path, steps, seconds=60):
    main, report = modules("__main__"), modules("report")
    for step in steps:
        step.checks = [report.Check(str(i), None) for i in range(3)]
    run = main.Run(steps, report.Options(), seconds, path)
    right = run.all()
    return right, [
        [c["state"] for c in run.checks.values() if c["step"] == step.name]
        for step in steps
    ]


@pytest.mark.parametrize(
    ("end", "limit", "why"),
    [
        ("os.abort()", 30, "SIGABRT"),
        ("raise SystemExit(3)", 30, "status 3"),
        ("time.sleep(60)", 1, "nothing happened for 1 s"),
    ],
)
def test_step_that_crashes_or_hangs_goes_on_behind_that_check(
    modules, tmp_path, end, limit, why
):
    path = tmp_path / "result.json"
    bad = Program("bad", LOOP.replace("BAD: END", f"1: {end}"), limit)
    right, states = run_steps(modules, path, [bad, Program("good", RIGHT)], 60)
    assert not right
    assert states == [["passed", "failed", "passed"], ["passed"] * 3]
    checks = json.loads(path.read_text())["checks"]
    assert why in checks[1]["note"]


def test_steps_end_when_the_time_is_over(modules, tmp_path):
    """What was not run is told apart from what failed."""
    slow = Program("slow", LOOP.replace("BAD: END", "1: time.sleep(60)"))
    right, states = run_steps(
        modules, tmp_path / "result.json", [slow, Program("late", RIGHT)], 2
    )
    assert not right
    assert states == [["passed", "not run", "not run"], ["not run"] * 3]


def test_targets_are_met_or_missed(modules):
    table, report = modules("table"), modules("report")
    row = report.Row("r", "text", "GB/s", floor_min=0.6, stock_min=20)
    figures = {"ours": 70.0, "floor": 100.0, "stock": 3.0, "stock_default": 4}
    assert table.compare(row, figures, False) == {
        "of_floor": 0.7,
        "times_stock": 17.5,
        "verdict": ">= 0.6: met; >= 20: MISSED",
    }
    time = report.Row("t", "text", "ms", False, at_most=0.1)
    assert table.compare(time, {"ours": 0.2}, False)["verdict"] == (
        "<= 0.1: MISSED"
    )
    assert "not measured" in table.compare(row, {"ours": 1}, False)["verdict"]
