"""scripts/install_deps.sh asks on a terminal before it installs packages."""

import os
import pty
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/install_deps.sh"
DEADLINE_S = 120

# No library is found until apt-get has run.
TOOLS = {
    "id": 'if [ "$*" = -u ]; then echo 0; else exec /usr/bin/id "$@"; fi',
    "pkg-config": '[ -e "$STATE/installed" ]',
    "apt-get": """\
echo "$*" >>"$STATE/calls"
case "$*" in *install*) touch "$STATE/installed" ;; esac""",
}


@pytest.fixture
def machine(tmp_path):
    """The environment of a machine without libraries, as root."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in TOOLS.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "STATE": str(tmp_path)}


def read_all(fd):
    said = b""
    while True:
        try:
            piece = os.read(fd, 4096)
        except OSError:  # EIO: the other end is closed
            piece = b""
        if not piece:
            return said.decode()
        said += piece


def run_on_terminal(machine, answer, *arguments):
    """(exit status, output) of the script on a terminal."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer)
        process = subprocess.Popen(
            [SCRIPT, "demo", *arguments],
            env=machine,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        said = read_all(ours)
        return process.wait(DEADLINE_S), said
    finally:
        os.close(ours)


def calls_of_apt(machine):
    calls = Path(machine["STATE"], "calls")
    return calls.read_text() if calls.exists() else ""


@pytest.mark.parametrize("answer", [b"\n", b"y\n", b"Yes\n"])
def test_terminal_yes_installs_the_packages_named(machine, answer):
    status, said = run_on_terminal(machine, answer)
    assert status == 0, said
    assert "libevent-dev libssl-dev libcurl4-openssl-dev" in said
    assert said.count("[Y/n]") == 1
    assert "install libevent-dev libssl-dev" in calls_of_apt(machine)


@pytest.mark.parametrize("answer", [b"n\n", b"maybe\n", b"\x04"])
def test_terminal_other_answers_install_nothing(machine, answer):
    status, said = run_on_terminal(machine, answer)
    assert status == 1, said
    assert "missing: " in said
    assert calls_of_apt(machine) == ""


def test_yes_option_installs_without_a_question(machine):
    status, said = run_on_terminal(machine, b"", "--yes")
    assert status == 0, said
    assert "[Y/n]" not in said
    assert "libevent-dev" in said
    assert "install" in calls_of_apt(machine)


def test_without_a_terminal_it_installs_without_a_question(machine):
    done = subprocess.run(
        [SCRIPT, "demo"],
        env=machine,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    assert "[Y/n]" not in done.stdout + done.stderr
    assert "libevent-dev" in done.stdout
    assert "install" in calls_of_apt(machine)


def test_nothing_is_asked_if_nothing_is_missing(machine):
    Path(machine["STATE"], "installed").touch()
    status, said = run_on_terminal(machine, b"")
    assert (status, said) == (0, "")
