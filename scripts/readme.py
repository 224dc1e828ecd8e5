"""Check README.md and docs/c.md: their code is that of the examples, and works
as printed.

    python scripts/readme.py          compare the code with the files
    python scripts/readme.py --write  rewrite the code from the files
    python scripts/readme.py --run    run the quick start, compare its output
    python scripts/readme.py --installation    print the commands that install
    python scripts/readme.py --script docs/c.md    print a script that runs the
                                      page's commands and compares their output

A block of code shows a file if a comment before it has the file's path:

    <!-- examples/quickstart/prefill.py -->
    ```python

A console block has commands after "$ ", each followed by its output.

blocks() and run_programs() serve the pages of docs/ too (tests/python/
test_docs.py), whose comments before a block say how it is checked.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/c.md")
PATIENCE = 300
SHOWN = re.compile(r"(<!-- (\S+) -->\n```\w+\n)(.*?)(?=```\n)", re.DOTALL)
CONSOLE = re.compile(r"```console\n(.*?)```\n", re.DOTALL)
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
BLOCK = re.compile(
    r"(?:^<!-- ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
ASSIGNMENT = re.compile(r"[A-Z_]+=")
# Python's arguments for a command.
MODULES = {"python": (), "vllm-nixl": ("-m", "vllm_nixl")}
# The quick start, in the order in which its programs are started.
QUICK_START = ("python prefill.py", "python decode.py")


class ReadmeError(Exception):
    pass


class Block(NamedTuple):
    """A block of code: what the comment before it says, the language, the
    code, and the number of its first line."""

    comment: str
    language: str
    code: str
    line: int


def blocks(text: str) -> list[Block]:
    """All blocks of code of a text, in order."""
    return [
        Block(
            match[1] or "",
            match[2],
            match[3],
            text.count("\n", 0, match.start(2)) + 1,
        )
        for match in BLOCK.finditer(text)
    ]


def shown(text: str) -> dict[str, str]:
    """The files that a text shows: path to code."""
    return {path: code for _, path, code in SHOWN.findall(text)}


def commands(text: str) -> dict[str, str]:
    """The commands of console blocks: command to output."""
    return {
        command: output
        for block in CONSOLE.findall(text)
        for command, output in COMMAND.findall(block)
    }


def installation(text: str) -> list[str]:
    """The commands to run before the quick start."""
    part = text.split("## Installation", 1)[1].split("## Quick start", 1)[0]
    inline = re.findall(r"`(pip install [^`]*)`", text)
    tests = [c for c in commands(part) if c.startswith("./run_tests.sh")]
    return [c for c in [*commands(part), *inline] if c not in tests]


def script(text: str) -> str:
    """A bash script that runs the commands in their order, and fails at the
    first that fails or prints other lines; their order does not count."""
    lines = ["set -e"]
    for command, output in commands(text).items():
        lines.append(f"echo {shlex.quote('$ ' + command)}")
        if output:
            command = (
                f"diff <(sort <<'END'\n{output}END\n) "
                f"<({{ {command}; }} | sort)"
            )
        lines.append(command)
    return "\n".join(lines)


def differences(text: str, root: Path) -> str:
    """How the shown code differs from the files; empty: it does not."""
    found = ""
    for path, code in shown(text).items():
        file = (root / path).read_text()
        found += "".join(
            difflib.unified_diff(
                code.splitlines(True),
                file.splitlines(True),
                f"page: {path}",
                path,
            )
        )
    return found


def rewritten(text: str, root: Path) -> str:
    """The text with the code of the files."""
    return SHOWN.sub(
        lambda match: match[1] + (root / match[2]).read_text(), text
    )


# -- The quick start ----------------------------------------------------------


class Program:
    """One program, as printed, in a folder that has the files.

    command: "NAME=value python prefill.py"
    expected: the lines that it prints
    """

    def __init__(
        self,
        command: str,
        expected: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
    ) -> None:
        words = shlex.split(command)
        env = dict(environment)
        while ASSIGNMENT.match(words[0]):
            name, _, value = words.pop(0).partition("=")
            env[name] = value
        if words[0] not in MODULES:
            raise ReadmeError(f"not a Python program: {command}")
        self.command = command
        self.expected = list(expected)
        self.process = subprocess.Popen(
            [sys.executable, *MODULES[words[0]], *words[1:]],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.clock = threading.Timer(PATIENCE, self.process.kill)
        self.clock.start()

    def expect(self, lines: list[str]) -> None:
        """Read these lines of output."""
        assert self.process.stdout is not None
        for line in lines:
            found = self.process.stdout.readline().rstrip("\n")
            if found != line:
                raise ReadmeError(
                    f"{self.command} printed {found!r} instead of {line!r}\n"
                    + self.end()
                )

    def expect_end(self) -> None:
        """Read the end of the output; the exit status must be 0."""
        assert self.process.stdout is not None
        rest = self.process.stdout.read()
        status = self.process.wait()
        if rest or status != 0:
            raise ReadmeError(
                f"{self.command} ended with status {status} after printing "
                f"{rest!r}\n" + self.end()
            )

    def end(self, signum: int = signal.SIGKILL) -> str:
        """End the program; returns what it wrote to stderr."""
        self.process.send_signal(signum)
        try:
            return self.process.communicate()[1]
        finally:
            self.clock.cancel()


def run_programs(
    files: Mapping[str, str],
    steps: Iterable[tuple[str, Sequence[str]]],
    environment: Mapping[str, str] | None = None,
) -> None:
    """Start programs one after the other; the last one must end.

    files: what is in their folder, name to text
    steps: commands, and the lines that each must print.  A command starts
        when the one before it has printed its first line.

    ReadmeError if one prints something else.
    """
    running: list[Program] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in files.items():
            (folder / file).write_text(text)
        try:
            for command, lines in steps:
                program = Program(
                    command, lines, folder, environment or os.environ
                )
                running.append(program)
                program.expect(program.expected[:1])
            *servers, client = running
            client.expect(client.expected[1:])
            client.expect_end()
            for server in servers:
                server.expect(server.expected[1:])
        finally:
            for program in running:
                program.end(signal.SIGINT)  # Ctrl-C


def run_quick_start(text: str) -> None:
    """Run both programs of the text; ReadmeError if they print other lines
    than the text says."""
    found = commands(text)
    run_programs(
        {Path(path).name: code for path, code in shown(text).items()},
        [(command, found[command].splitlines()) for command in QUICK_START],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Check README.md and docs/c.md.",
        usage="%(prog)s [--write | --run | --installation | --script PAGE] "
        "[FOLDER]",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--write", action="store_true")
    group.add_argument("--run", action="store_true")
    group.add_argument("--installation", action="store_true")
    group.add_argument("--script", choices=PAGES)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT)
    arguments = parser.parse_args()
    # A shell starts what runs in the background with SIGINT ignored, and the
    # programs would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = arguments.folder
    readme = (folder / "README.md").read_text()
    if arguments.write:
        for page in PAGES:
            text = (folder / page).read_text()
            (folder / page).write_text(rewritten(text, folder))
    elif arguments.run:
        run_quick_start(readme)
        print("the quick start prints what README.md says")
    elif arguments.installation:
        print(*installation(readme), sep="\n")
    elif arguments.script:
        print(script((folder / arguments.script).read_text()))
    else:
        for page in PAGES:
            if found := differences((folder / page).read_text(), folder):
                sys.exit(f"{found}{page}: run scripts/readme.py --write")


if __name__ == "__main__":
    main()
