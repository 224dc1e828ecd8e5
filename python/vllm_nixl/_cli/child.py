"""Runs a task of probe.py in a process of its own.

A library that crashes at loading, a UCX that aborts, a call that never
returns: all of that costs the child, and the command can report it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from typing_extensions import Self

_CODE = """\
import sys
sys.path[:] = {path!r}
from vllm_nixl._cli import probe
probe.main({task!r}, {output}, {arguments!r})
"""
_TAIL = 2000  # characters of the child's stderr in an error


class ChildError(Exception):
    """The child has failed; the text says how."""


class Child:
    """A task that runs; `with` ends it.

    Args:
        task: The name of a function of probe.py.
        arguments: Its keyword arguments, as JSON can write them.
        environ: Changes to the environment; None removes a variable.
        path: sys.path of the child; None: that of this process.
    """

    def __init__(
        self,
        task: str,
        arguments: Mapping[str, Any],
        environ: Mapping[str, str | None] | None = None,
        path: Sequence[str] | None = None,
    ) -> None:
        self.task = task
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.buffer = b""
        read, write = os.pipe()
        code = _CODE.format(
            path=list(sys.path if path is None else path),
            task=task,
            output=write,
            arguments=json.dumps(arguments),
        )
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
                env=_environment(environ or {}),
                pass_fds=[write],
            )
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        self.output = read

    def result(self, timeout: float) -> dict[str, Any]:
        """The next result that the child sends; ChildError without one."""
        end = time.monotonic() + timeout
        while b"\n" not in self.buffer:
            left = end - time.monotonic()
            if not select.select([self.output], [], [], max(0.0, left))[0]:
                raise ChildError(f"no answer within {timeout:g} s")
            piece = os.read(self.output, 1 << 16)
            if not piece:
                raise ChildError(self._end())
            self.buffer += piece
        line, _, self.buffer = self.buffer.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise ChildError(found["error"])
        return found

    def said(self) -> str:
        """What the child has written to stderr."""
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")

    def _end(self) -> str:
        status = self.process.wait()
        last = self.said().strip()[-_TAIL:]
        if status < 0:
            text = f"the process was ended by {_signal(-status)}"
        else:
            text = f"the process ended with status {status}"
        return f"{text}: {last}" if last else text

    def end(self) -> None:
        """Let it end.  It writes the last lines of its log when it does."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        self.end()
        os.close(self.output)
        self.errors.close()

    def kill(self) -> None:
        self.process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *args: object) -> None:
        if kind is not None:
            self.kill()
        self.close()


def run(
    task: str,
    arguments: Mapping[str, Any],
    timeout: float,
    environ: Mapping[str, str | None] | None = None,
    path: Sequence[str] | None = None,
) -> tuple[dict[str, Any], str]:
    """Run a task to its first result: (result, what it wrote to stderr)."""
    with Child(task, arguments, environ, path) as child:
        found = child.result(timeout)
        child.end()
        return found, child.said()


def _environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    environ = {**os.environ, **changes}
    return {key: value for key, value in environ.items() if value is not None}


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
