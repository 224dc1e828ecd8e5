"""Print a completion script for a shell.

eval "$(vllm-nixl completion bash)"                        # ~/.bashrc
eval "$(vllm-nixl completion zsh)"                         # ~/.zshrc
vllm-nixl completion fish > ~/.config/fish/completions/vllm-nixl.fish
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
from typing import TYPE_CHECKING, NamedTuple

from .main import COMMANDS, command_parser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .output import Output


class _Option(NamedTuple):
    flags: tuple[str, ...]  # none: a positional argument
    help: str
    choices: tuple[str, ...]
    takes_value: bool
    is_file: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=tuple(_SHELLS))


def run(options: argparse.Namespace, out: Output) -> int:
    script = _SHELLS[options.shell]({name: _known(name) for name in _names()})
    out.line(script.rstrip("\n"))
    out.result({"shell": options.shell, "script": script})
    return 0


def _names() -> list[str]:
    """The commands of this installation."""
    return [
        name for name in COMMANDS if importlib.util.find_spec(_module(name))
    ]


def _module(name: str) -> str:
    return f"{__package__}.{name.replace('-', '_')}"


def _known(name: str) -> list[_Option]:
    """The options and arguments of a command, from its parser."""
    return [
        _Option(
            tuple(action.option_strings),
            _sentence(action.help or action.dest),
            tuple(map(str, action.choices or ())),
            action.nargs != 0,
            "FILE" in str(action.metavar or ""),
        )
        for action in command_parser(name)._actions
        if action.help is not argparse.SUPPRESS
    ]


def _sentence(text: str) -> str:
    """A help text in one line, as argparse would write it."""
    return " ".join(text.replace("%%", "%").split())


# -- bash --------------------------------------------------------------------

# -o default: where we offer nothing, the shell offers files.
_BASH = """\
_vllm_nixl() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} words=""
    local before=${{COMP_WORDS[COMP_CWORD - 1]}}
    COMPREPLY=()
    if [ "$COMP_CWORD" = 1 ]; then
        words={commands}
    else
        case "${{COMP_WORDS[1]}} $before" in
{values}
        *)
            case "${{COMP_WORDS[1]}}" in
{options}
            esac
            ;;
        esac
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}}
complete -o default -F _vllm_nixl vllm-nixl
"""


def _bash(known: dict[str, list[_Option]]) -> str:
    values, offered = [], []
    for name, options in known.items():
        words: list[str] = []
        for option in options:
            words += option.flags or option.choices
            if option.flags and option.takes_value:
                patterns = "|".join(f'"{name} {f}"' for f in option.flags)
                given = shlex.quote(" ".join(option.choices))
                values.append(f"        {patterns}) words={given} ;;")
        given = shlex.quote(" ".join(words))
        offered.append(f"            {name}) words={given} ;;")
    return _BASH.format(
        commands=shlex.quote(" ".join(known)),
        values="\n".join(values),
        options="\n".join(offered),
    )


# -- zsh ---------------------------------------------------------------------

_ZSH = """\
#compdef vllm-nixl
_vllm_nixl() {{
    local -a commands
    commands=(
{commands}
    )
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    local command=$words[2]
    shift words
    (( CURRENT-- ))
    case $command in
{cases}
    esac
}}
compdef _vllm_nixl vllm-nixl
"""


def _zsh(known: dict[str, list[_Option]]) -> str:
    commands = [
        "        " + shlex.quote(f"{name}:{COMMANDS[name]}") for name in known
    ]
    cases = []
    for name, options in known.items():
        specs = [spec for option in options for spec in _zsh_specs(option)]
        body = " \\\n            ".join(map(shlex.quote, specs))
        cases.append(f"    {name})\n        _arguments {body}\n        ;;")
    return _ZSH.format(commands="\n".join(commands), cases="\n".join(cases))


def _zsh_specs(option: _Option) -> Iterable[str]:
    value = ""
    if option.takes_value:
        offered = f"({' '.join(option.choices)})" if option.choices else ""
        if option.is_file:
            offered = "_files"
        value = f":value:{offered}"
    if not option.flags:
        yield f"*{value}"
    # A bracket would end the text.
    text = option.help.replace("[", "(").replace("]", ")")
    for flag in option.flags:
        yield f"{flag}[{text}]{value}"


# -- fish --------------------------------------------------------------------


def _fish(known: dict[str, list[_Option]]) -> str:
    lines = ["complete -c vllm-nixl -f"]
    for name in known:
        lines.append(
            "complete -c vllm-nixl -n __fish_use_subcommand -a "
            f"{name} -d {_fish_quote(COMMANDS[name])}"
        )
    for name, options in known.items():
        start = (
            f"complete -c vllm-nixl -n '__fish_seen_subcommand_from {name}'"
        )
        lines += [start + _fish_option(option) for option in options]
    return "\n".join(lines) + "\n"


def _fish_option(option: _Option) -> str:
    text = ""
    for flag in option.flags:
        text += f" -l {flag[2:]}" if flag[:2] == "--" else f" -s {flag[1:]}"
    if option.choices:
        exclusive = " -x" if option.flags else ""
        text += f"{exclusive} -a {_fish_quote(' '.join(option.choices))}"
    elif option.is_file:
        text += " -r -F" if option.flags else " -F"
    elif option.flags and option.takes_value:
        text += " -x"
    return f"{text} -d {_fish_quote(option.help)}"


def _fish_quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


_SHELLS: dict[str, Callable[[dict[str, list[_Option]]], str]] = {
    "bash": _bash,
    "zsh": _zsh,
    "fish": _fish,
}
