"""A process that takes orders: one line of JSON each, by standard input.

It answers by lines on standard output.  An answer is an object; one with
"error" tells why the order failed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

HERE = Path(__file__).resolve().parent
WORKER = HERE / "worker.py"
LIMIT_S = 240.0  # for one answer
END_S = 20.0  # for the end of a process


class BenchError(Exception):
    """A measurement failed; the text says why."""


def command(
    impl: str,
    program: str | Path,
    *arguments: str | int,
    python: str | None = None,
) -> list[str]:
    """The command of a program of the benchmark.

    Only the programs of `ours` import the installed vllm_nixl.
    """
    alone = [] if impl == "ours" else [str(HERE / "alone.py")]
    return [
        python or sys.executable,
        *alone,
        str(program),
        *map(str, arguments),
    ]


def environment(impl: str, given: dict[str, str]) -> dict[str, str]:
    """The environment of a program: stock must not be replaced by ours."""
    made = dict(given)
    made.setdefault("NIXL_LOG_LEVEL", "ERROR")
    if impl != "ours":
        made.pop("VLLM_NIXL_AS_NIXL", None)
    return made


class Child:
    """A process, from the side that gives the orders.

    Args:
        command: What to run.
        name: What errors call it.
        env: Its environment; None: this one's.
        alone: Start it in a session of its own, so that signals to it reach
            its children too, and Ctrl-C reaches none of them.
    """

    def __init__(
        self,
        command: list[str],
        name: str,
        env: dict[str, str] | None = None,
        alone: bool = False,
    ) -> None:
        self.name = name
        self.alone = alone
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            start_new_session=alone,
        )

    def answer(self, limit: float = LIMIT_S) -> Any:
        out = self.process.stdout
        assert out is not None
        if not select.select([out], [], [], limit)[0]:
            raise BenchError(f"{self.name}: no answer after {limit:g} s")
        line = out.readline()
        if not line:
            raise BenchError(f"{self.name}: {self._end()}")
        found = json.loads(line)
        if "error" in found:
            raise BenchError(f"{self.name}: {found['error']}")
        return found

    def _end(self) -> str:
        try:
            status = self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            return "the process closed its output"
        if status < 0:
            return f"the process was killed ({signal.Signals(-status).name})"
        return f"the process exited with status {status}"

    def order(self, do: str, **arguments: Any) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}))
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise BenchError(f"{self.name}: {self._end()}") from None

    def ask(self, do: str, **arguments: Any) -> Any:
        self.order(do, **arguments)
        return self.answer()

    def _signal(self, number: int) -> None:
        # After wait() another process, or its group, may have the number.
        # The children have ended then: end_with_parent().
        if self.process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if self.alone:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)

    def stop(self) -> None:
        """Let the process and its children do nothing until go()."""
        self._signal(signal.SIGSTOP)

    def go(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the process and, if it has a session, its children at once."""
        self._signal(signal.SIGKILL)
        self.process.wait()
        self._close_pipes()

    def _close_pipes(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def close(self) -> None:
        """Let the process end when it has obeyed its orders."""
        assert self.process.stdin is not None
        self.go()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._close_pipes()


def end_with_parent() -> None:
    """Let the kernel kill this process when its parent ends, however."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def claim_stdout() -> TextIO:
    """Reserve standard output for answers.  Redirect the output of libraries
    to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out


def obey(
    orders: Iterable[str],
    out: TextIO,
    do: Callable[..., dict[str, Any] | None],
) -> None:
    """Answer orders until they end.  `do` gets an order as its arguments; it
    returns the answer, or None if there is none."""
    for line in orders:
        try:
            answer = do(**json.loads(line))
        except Exception as error:
            # An agent's error is a result; anything else is a mistake here,
            # whose traceback helps.
            if not hasattr(error, "status"):
                sys.excepthook(type(error), error, error.__traceback__)
            answer = {"error": str(error) or type(error).__name__}
        if answer is not None:
            print(json.dumps(answer), file=out, flush=True)
