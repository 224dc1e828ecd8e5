"""Runs of the command line, as a user's shell would start them."""

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

from support.deadline import PATIENCE, or_kill
from support.peer import child_environment

COMMAND = [sys.executable, "-m", "vllm_nixl"]
# What the test run itself may have set.
_UNSET = ("VLLM_NIXL_UCX_LIBRARY", "VLLM_NIXL_ENGINE", "NO_COLOR")


def environment(extra=None):
    found = child_environment({"PYTHONUNBUFFERED": "", **(extra or {})})
    for name in _UNSET:
        if name not in (extra or {}):
            found.pop(name, None)
    return found


def run(*arguments, env=None, wrap=(), **options):
    """Run to the end; stdout and stderr are bytes if input is."""
    options.setdefault("text", not isinstance(options.get("input"), bytes))
    return subprocess.run(
        [*wrap, *COMMAND, *map(str, arguments)],
        capture_output=True,
        timeout=2 * PATIENCE + 60,
        env=environment(env),
        check=False,
        **options,
    )


def run_json(*arguments, status=0, **options):
    """Run with --json; the object that it writes."""
    done = run(*arguments, "--json", **options)
    assert done.returncode == status, (done.stdout, done.stderr)
    return json.loads(done.stdout)


def run_on_terminal(*arguments, env=None, columns=80):
    """Run on a pseudo-terminal: (exit status, output)."""
    ours, theirs = pty.openpty()
    env = environment(
        {"TERM": "xterm-256color", "COLUMNS": str(columns), **(env or {})}
    )
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=env,
        close_fds=True,
    ) as process:
        os.close(theirs)
        output = b""
        # At the end of the other side, reading is an error.
        with or_kill(process), contextlib.suppress(OSError):
            while piece := os.read(ours, 65536):
                output += piece
    os.close(ours)
    return process.returncode, output.decode(errors="replace")


@contextlib.contextmanager
def serving(*arguments, env=None, wrap=()):
    """`serve` in the background: yields what it says about itself."""
    with subprocess.Popen(
        [*wrap, *COMMAND, "serve", "--json", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(env),
    ) as process:
        try:
            yield _first_object(process)
        finally:
            process.send_signal(signal.SIGTERM)
            with or_kill(process):
                process.communicate()
        assert process.returncode != -signal.SIGKILL, "SIGTERM did not end it"


def _first_object(process):
    """The JSON object that the process writes before it goes on."""
    text, end = b"", time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if select.select([process.stdout], [], [], 1)[0]:
            piece = os.read(process.stdout.fileno(), 65536)
            if not piece:
                break
            text += piece
        with contextlib.suppress(ValueError):
            return json.loads(text)
    process.kill()
    raise AssertionError((text, process.stderr.read()))
