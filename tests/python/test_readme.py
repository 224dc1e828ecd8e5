"""README.md: its programs run exactly as printed there, its code is that of
the examples, and its figures are those of docs/performance.md.  The code of
docs/c.md.

`scripts/check.sh readme installation` runs the commands that install too, and
`scripts/check.sh library` those of docs/c.md.
"""

import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from support.deadline import PATIENCE, or_kill
from support.peer import child_environment
from support.ports import reserve_port

np = pytest.importorskip("numpy", reason="the programs in README use numpy")

ROOT = Path(__file__).resolve().parents[2]
PORT = "18000"

# Commands that are run elsewhere: by `check.sh readme installation`, and by
# whoever runs the tests.
INSTALLING = (
    "apt-get install ",
    "python3 -m venv venv",
    ". venv/bin/activate",
    "pip install ",
    "./run_demo.sh",
)
TESTING = ("./run_tests.sh",)

# Kills prefill (its pid is an argument) after the third request was posted,
# and prints the states of the transfers for which wait() returned.
KILLER = """
import os, signal, sys
import vllm_nixl

class NixlAgent(vllm_nixl.NixlAgent):
    posted = 0

    def transfer(self, handle):
        state = super().transfer(handle)
        self.posted += 1
        if self.posted == 3:
            os.kill(int(sys.argv[1]), signal.SIGKILL)
        return state

    def wait(self, handles, *args, **keywords):
        super().wait(handles, *args, **keywords)
        for state in self.check_xfer_states(handles):
            print(state, flush=True)

vllm_nixl.NixlAgent = NixlAgent
"""
LOOKING = """
import zlib
print(zlib.crc32(cache))
"""


@pytest.fixture(scope="module")
def tool():
    """scripts/readme.py as a module."""
    path = ROOT / "scripts" / "readme.py"
    spec = importlib.util.spec_from_file_location("readme", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def text():
    """README.md, with a free port for the quick start."""
    text = (ROOT / "README.md").read_text()
    assert text.count(PORT) == 2
    return text.replace(PORT, str(reserve_port()))


@pytest.fixture
def programs(tool, text):
    """{"prefill": text, "decode": text}"""
    return {
        Path(path).stem: code
        for path, code in tool.shown(text).items()
        if Path(path).parent.name == "quickstart"
    }


def run(code, *args):
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(),
    )


@pytest.fixture
def prefill(programs):
    with run(programs["prefill"]) as process:
        try:
            with or_kill(process):
                line = process.stdout.readline()
            assert line == "serving\n", line + process.stderr.read()
            yield process
        finally:
            process.kill()


# -- The quick start ---------------------------------------------------------


def test_quick_start_prints_what_readme_says(tool, text):
    tool.run_quick_start(text)


# Two programs that take no time, and what a README says of them.
TINY = """
<!-- prefill.py -->
```python
print("serving", flush=True)
print("last", flush=True)
```
<!-- decode.py -->
```python
print("done")
```
```console
$ python prefill.py
serving
last
```
```console
$ python decode.py
done
```
"""


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("\nlast\n", "\nfirst\n", "'last' instead of 'first'"),
        ("\ndone\n", "\n", "after printing 'done"),
        ("\ndone\n", "\ndone\nmore\n", "'' instead of 'more'"),
        ('print("done")', "1 / 0", "ZeroDivisionError"),
        ('print("done")', 'exit(print("done") or 3)', "status 3"),
    ],
)
def test_other_output_of_the_quick_start_is_noticed(tool, old, new, error):
    tool.run_quick_start(TINY)
    changed = TINY.replace(old, new)
    assert changed != TINY
    with pytest.raises(tool.ReadmeError, match=error):
        tool.run_quick_start(changed)


def test_quick_start_moves_every_byte(programs, prefill):
    with run(programs["decode"] + LOOKING) as decode, or_kill(decode):
        out, err = decode.communicate()
    assert decode.returncode == 0, err
    cache = np.random.default_rng(0).integers(0, 256, (4096, 65536), np.uint8)
    assert out.splitlines()[-1] == str(zlib.crc32(cache))


def test_killed_peer_raises_an_error(programs, prefill):
    code = KILLER + programs["decode"]
    with run(code, str(prefill.pid)) as decode, or_kill(decode):
        out, err = decode.communicate()
    assert prefill.wait(PATIENCE) == -signal.SIGKILL
    assert decode.returncode == 1
    last_line = err.splitlines()[-1]
    assert "nixlRemoteDisconnectError: " in last_line, err
    assert "'prefill'" in last_line
    assert set(out.splitlines()) == {"DONE"}
    assert 2 <= len(out.splitlines()) < 4


def test_quick_start_is_short(programs):
    assert programs.keys() == {"prefill", "decode"}
    lines = "".join(programs.values()).splitlines()
    assert len(lines) <= 40


# -- Code, commands, figures -------------------------------------------------


@pytest.mark.parametrize("page", ["README.md", "docs/c.md"])
def test_code_is_that_of_the_examples(tool, page):
    text = (ROOT / page).read_text()
    assert tool.differences(text, ROOT) == ""
    assert tool.rewritten(text, ROOT) == text


def test_other_code_is_noticed_and_rewritten(tool):
    text = (ROOT / "README.md").read_text()
    changed = text.replace('NixlAgent("prefill")', 'NixlAgent("other")')
    assert changed != text
    assert '+agent = NixlAgent("prefill")' in tool.differences(changed, ROOT)
    assert tool.rewritten(changed, ROOT) == text


@pytest.mark.parametrize("page", ["README.md", "docs/c.md"])
def test_every_block_of_code_shows_a_file(tool, page):
    text = (ROOT / page).read_text()
    kinds = re.findall(r"^```(\w*)$", text, re.MULTILINE)[::2]
    assert set(kinds) <= {"console", "python", "text", "c", "cmake", "meson"}
    code = [kind for kind in kinds if kind not in ("console", "text")]
    assert len(code) == len(tool.shown(text))


PAGE = """
```console
$ export A=1
$ printf '2\\n1\\n' & wait
1
2
$ test $A = 1
```
"""


@pytest.mark.parametrize(
    ("old", "new", "works"),
    [
        ("", "", True),
        ("'2", "'3", False),
        ("A = 1", "A = 2", False),
        ("export", "false; export", False),
    ],
)
def test_commands_of_a_page_are_run_as_a_script(tool, old, new, works):
    done = subprocess.run(
        ["bash", "-c", tool.script(PAGE.replace(old, new))],
        capture_output=True,
        check=False,
    )
    assert (done.returncode == 0) is works, done.stdout + done.stderr


def test_every_command_is_run_by_a_check(tool):
    commands = tool.commands((ROOT / "README.md").read_text())
    assert set(tool.QUICK_START) <= commands.keys()
    for command, output in commands.items():
        if command in tool.QUICK_START:
            assert output
            continue
        assert command.startswith(INSTALLING + TESTING), command
        program = shlex.split(command)[0]
        if program.startswith("./"):
            assert os.access(ROOT / program, os.X_OK), command


def table_rows(text, first_line):
    """{label: cells} of the table that begins with this line."""
    lines = text.split(first_line, 1)[1].splitlines()[1:]
    rows = {}
    for line in lines:
        if not line.startswith("|"):
            break
        label, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows[label] = cells
    return rows


# Rows of README's table under their labels in docs/performance.md.
FIGURES = {
    "READ of scattered 4 KiB blocks, GB/s": "READ, scattered 4 KiB, GB/s",
    "READ of scattered 16 KiB blocks, GB/s": "READ, scattered 16 KiB, GB/s",
    "READ of scattered 64 KiB blocks, GB/s": "READ, scattered 64 KiB, GB/s",
    "READ of scattered 1 MiB blocks, GB/s": "READ, scattered 1 MiB, GB/s",
    "READ of one 4 KiB block, p50, us": "READ of one 4 KiB block, p50, us",
    "notification round trip, p50, us": "notification round trip, p50, us",
    "prepare 1 M random rows, ms": "prepare 1 M, random, Nx3, ms",
    "`transfer()` of 100 k pieces, time on the caller's thread, ms": (
        "transfer(), 100 k x 512 B, ms"
    ),
    "idle agent, cores": "idle agent, default configuration, core",
    "import, ms": "import, ms",
}


def test_figures_are_those_of_the_performance_page():
    readme = (ROOT / "README.md").read_text()
    page = (ROOT / "docs" / "performance.md").read_text()
    shown = table_rows(
        readme, "| | vllm_nixl | stock NIXL 1.5.1 | Mooncake |\n"
    )
    measured = table_rows(
        page, "|  | ours | stock | bare loop | x stock | of bare | target |\n"
    )
    mooncake = table_rows(page, "| Mooncake | |\n")
    assert shown.keys() == FIGURES.keys()
    for label, (ours, stock, other) in shown.items():
        assert [ours, stock] == measured[FIGURES[label]][:2], label
        assert [other] == mooncake.get(FIGURES[label], [""]), label
