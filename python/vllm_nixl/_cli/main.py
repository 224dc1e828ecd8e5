"""The entry point: finds the command, runs it, reports its errors."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import TYPE_CHECKING

from .. import NixlError, __version__
from .output import Output

if TYPE_CHECKING:
    from collections.abc import Sequence

# In the order of --help; "-" in a name is "_" in its module's.
COMMANDS = {
    "info": "versions, features, and which libraries would be used",
    "doctor": "check this machine, or a running server",
    "bench": "measure bandwidth, latency and cost",
    "top": "watch the agents of a running process",
    "serve": "hand metadata over",
    "fetch": "fetch metadata from a side channel",
    "inspect": "say what metadata contains",
    "demo": "two processes move a KV cache",
    "lib-path": "where the C library or the extension is",
    "completion": "print a completion script for a shell",
}

# Exit statuses.
OK = 0
WRONG = 1  # the command ran and found something wrong
USAGE = 2  # argparse's own
FAILED = 3  # it could not be done: refused, unreachable, too late
INTERRUPTED = 130

_EPILOG = """\
exit status:
  0  all is well
  1  the command found something wrong, and has said what
  2  the arguments are wrong
  3  it could not be done; the error is on stderr
"""


class CommandError(Exception):
    """A command cannot go on; the text tells the user why."""


def command_parser(name: str) -> argparse.ArgumentParser:
    """Return the parser of one command, with "run" among its defaults."""
    module = importlib.import_module(f".{name.replace('-', '_')}", __package__)
    parser = argparse.ArgumentParser(
        prog=f"vllm-nixl {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        conflict_handler="resolve",  # bench's --json takes a file
    )
    parser.add_argument(
        "--json", action="store_true", help="write one JSON object"
    )
    module.add_arguments(parser)
    parser.set_defaults(run=module.run)
    return parser


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS), default=0)
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="vllm-nixl",
        usage="vllm-nixl [-h] [--version] COMMAND ...",
        description="Check, measure and watch vllm_nixl.\n\ncommands:\n"
        + "\n".join(lines)
        + "\n\n`vllm-nixl COMMAND --help` describes a command.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS
    )
    return parser


def _report(error: BaseException, out: Output | None) -> None:
    if out is not None and out.as_json:
        out.result({"error": str(error), "type": type(error).__name__})
    print(f"vllm-nixl: {error}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    head, rest = given[:1], given[1:]
    name = _parser().parse_args(head).command
    out: Output | None = None
    try:
        options = command_parser(name).parse_args(rest)
        options.arguments = rest
        out = Output(options.json is True)
        status: int = options.run(options, out)
        return status
    except (CommandError, NixlError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            # The reader of a pipe has left: `vllm-nixl info | head -1`.
            if out is not None:
                out.leave()
            return FAILED
        _report(error, out)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
