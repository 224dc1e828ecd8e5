"""Missing packages: scripts/install_deps.sh asks on a terminal before it
installs them, and a build without them names all of them.
"""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from support.deadline import or_kill

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/install_deps.sh"
DEADLINE_S = 120

# No library is found until apt-get has run.
TOOLS = {
    "id": 'if [ "$*" = -u ]; then echo 0; else exec /usr/bin/id "$@"; fi',
    "pkg-config": '[ -e "$STATE/installed" ]',
    "cmake": "exit 1",
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
        with or_kill(process, DEADLINE_S):
            said = read_all(ours)
            return process.wait(), said
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


def configure(machine, *options):
    """What meson says when it configures this source without libraries."""
    pytest.importorskip("mesonbuild")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mesonbuild.mesonmain", "setup"),
            Path(machine["STATE"], "build"),
            *("-Dpython=disabled", "-Dtests=false", *options),
        ],
        cwd=SCRIPT.parents[1],
        env=machine,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 1
    return done.stdout.partition("ERROR: ")[2]


def test_build_names_every_missing_package_and_how_to_do_without(machine):
    said = configure(machine)
    for packages in (
        ("libevent-dev", "libevent-devel", "libevent-dev"),
        ("libssl-dev", "openssl-devel", "openssl-dev"),
        ("libcurl4-openssl-dev", "libcurl-devel", "curl-dev"),
    ):
        assert any(
            tuple(line.split()[-3:]) == packages for line in said.splitlines()
        ), said
    assert "-Dside_channel_http=disabled" in said
    assert "--config-settings=setup-args=" in said


def test_build_does_not_name_packages_that_it_shall_do_without(machine):
    said = configure(
        machine,
        "-Dside_channel_http=disabled",
        "-Dside_channel_tls=disabled",
    )
    assert "libevent-dev" in said
    assert "libcurl-devel" not in said
    assert "openssl-devel" not in said
