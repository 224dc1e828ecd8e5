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
"""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/c.md")
PATIENCE = 300
SHOWN = re.compile(r"(<!-- (\S+) -->\n```\w+\n)(.*?)(?=```\n)", re.DOTALL)
CONSOLE = re.compile(r"```console\n(.*?)```\n", re.DOTALL)
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
# The quick start, in the order in which its programs are started.
QUICK_START = ("python prefill.py", "python decode.py")


class ReadmeError(Exception):
    pass


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
    """One program of the quick start, as printed, in an empty folder."""

    def __init__(self, text: str, command: str, folder: Path) -> None:
        name = shlex.split(command)[1]
        code = next(c for p, c in shown(text).items() if Path(p).name == name)
        (folder / name).write_text(code)
        self.command = command
        self.expected = commands(text)[command].splitlines()
        self.process = subprocess.Popen(
            [sys.executable, name],
            cwd=folder,
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
        self.clock.cancel()
        self.process.send_signal(signum)
        return self.process.communicate()[1]


def run_quick_start(text: str) -> None:
    """Run both programs of the text; ReadmeError if they print other lines
    than the text says."""
    running = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for command in QUICK_START:
                running.append(Program(text, command, Path(folder)))
                # The next one is started when this one is ready.
                running[-1].expect(running[-1].expected[:1])
            prefill, decode = running
            decode.expect(decode.expected[1:])
            decode.expect_end()
            prefill.expect(prefill.expected[1:])
        finally:
            for program in running:
                program.end(signal.SIGINT)  # Ctrl-C


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
