"""Picture a command in a terminal as an SVG file, as in docs/images.

    python scripts/screenshot.py --out docs/images/doctor.svg vllm-nixl doctor

The terminal is tmux, so a program that redraws its screen is shown as it
looks at the end, or after --seconds.  Needs tmux and rich.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
import subprocess
import time

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

SERVER = ["tmux", "-L", "vllm-nixl-screenshot", "-f", "/dev/null"]
ENDED = "vllm-nixl-screenshot-ended"
THEME = TerminalTheme(
    (13, 17, 23),
    (201, 209, 217),
    [
        (72, 79, 88),
        (255, 123, 114),
        (63, 185, 80),
        (210, 153, 34),
        (88, 166, 255),
        (188, 140, 255),
        (57, 197, 207),
        (177, 186, 196),
    ],
)


def tmux(*arguments: str) -> str:
    return subprocess.run(
        [*SERVER, *arguments], check=True, capture_output=True, text=True
    ).stdout


def screen(
    command: list[str], columns: int, lines: int, seconds: float | None
) -> str:
    """What the terminal shows when the command has ended, or after `seconds`:
    lines with ANSI escape sequences."""
    shell = f"{shlex.join(command)}; tmux wait-for -S {ENDED}; sleep 60"
    tmux("new-session", "-d", "-x", str(columns), "-y", str(lines), shell)
    try:
        tmux("set-option", "status", "off")
        if seconds:
            time.sleep(seconds)
        else:
            tmux("wait-for", ENDED)
        text = tmux("capture-pane", "-e", "-p")
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            tmux("kill-server")
    return re.sub(r"(\s|\x1b\[\d*m)*$", "", text) + "\n"


def picture(text: str, columns: int, title: str) -> str:
    console = Console(
        record=True, width=columns, file=io.StringIO(), force_terminal=True
    )
    console.print(Text.from_ansi(text), end="")
    # The template's fonts would be loaded from the network.
    template = re.sub(
        r"@font-face \{\{.*?\}\}|<!--.*?-->",
        "",
        CONSOLE_SVG_FORMAT,
        flags=re.S,
    ).replace("Fira Code", "DejaVu Sans Mono, Menlo, Consolas")
    return console.export_svg(title=title, theme=THEME, code_format=template)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--columns", type=int, default=110)
    parser.add_argument("--lines", type=int, default=60)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--title")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    text = screen(
        options.command, options.columns, options.lines, options.seconds
    )
    title = options.title or shlex.join(options.command)
    with open(options.out, "w") as file:
        file.write(picture(text, options.columns, title))


if __name__ == "__main__":
    main()
