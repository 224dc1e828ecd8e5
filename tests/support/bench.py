"""`vllm-nixl bench` as a process."""

import json
import os
import re
import signal
import subprocess
import sys

from support.deadline import PATIENCE, or_kill
from support.peer import child_environment

COMMAND = [sys.executable, "-m", "vllm_nixl", "bench"]
# The smallest run of every kind.
SMALL = ["--quick", "--size", "8m", "--seconds", "0.01"]


def run(*arguments, env=None, status=0):
    """Run it to its end and return what it did."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=8 * PATIENCE,
        env=child_environment(env),
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def measure(*arguments, env=None):
    """The result of a run, from its JSON."""
    return json.loads(run(*arguments, "--json", env=env).stdout)


class Running:
    """A run whose output is read while it goes on.

    Args:
        arguments: Of the command.
        env: Variables to set.
        prefix: A command that runs it.
    """

    def __init__(self, *arguments, env=None, prefix=()):
        self.process = subprocess.Popen(
            [*prefix, *COMMAND, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=child_environment(env),
        )
        self.seen = ""

    def line(self, pattern):
        """Read on until a line matches; return the match."""
        with or_kill(self.process):
            for line in self.process.stdout:
                self.seen += line
                found = re.search(pattern, line)
                if found:
                    return found
        raise AssertionError(f"no line {pattern!r} in:\n{self.seen}")

    def port(self):
        """The port of a run with --serve."""
        return int(self.line(r"on port (\d+)")[1])

    def end(self, status):
        """Wait for the end; return the output."""
        with or_kill(self.process, 8 * PATIENCE):
            self.seen += self.process.stdout.read()
            self.process.wait()
        self.process.stdout.close()
        assert self.process.returncode == status, self.seen
        return self.seen

    def kill(self):
        """Kill the processes that measure, then the one that is in charge:
        if that one went first, they might notice and say good-bye."""
        pid = self.process.pid
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            children = [int(word) for word in file.read().split()]
        for child in (*children, pid):
            os.kill(child, signal.SIGKILL)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if not self.process.stdout.closed:  # by end()
            self.seen += self.process.stdout.read()
            self.process.stdout.close()
        print(*self.process.args, self.seen, sep="\n")  # if the test fails
