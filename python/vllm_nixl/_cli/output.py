"""What a command prints: rich on a terminal, plain text or JSON in a pipe."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

STYLES = {"good": "green", "warning": "yellow", "bad": "bold red"}
STYLES |= {"dim": "dim", "heading": "bold"}


class Output:
    """Writes the result of a command to stdout.

    Args:
        as_json: Write one JSON object, given to result(), and nothing else.
        file: Where to write; None: stdout.

    `console` is rich's Console if stdout is a terminal and rich is installed,
    otherwise None.  rich itself honours NO_COLOR and TERM.
    """

    def __init__(self, as_json: bool, file: TextIO | None = None) -> None:
        self.as_json = as_json
        self.file = sys.stdout if file is None else file
        self.console: Console | None = None
        if not as_json and self.file.isatty():
            try:
                from rich.console import Console
            except ImportError:
                return
            self.console = Console(
                file=self.file, highlight=False, markup=False, emoji=False
            )

    def line(self, text: str = "", style: str | None = None) -> None:
        """Write a line of text, in one of STYLES; nothing with --json."""
        if self.as_json:
            return
        if self.console is not None:
            name = None if style is None else STYLES[style]
            self.console.print(text, style=name, soft_wrap=True)
        else:
            print(text, file=self.file, flush=True)

    def heading(self, text: str) -> None:
        """Write a heading."""
        self.line(text, "heading")

    def fields(
        self,
        rows: Sequence[tuple[str, object]],
        indent: int = 0,
        style: str | None = None,
    ) -> None:
        """Write names and values, one pair a line; nothing with --json.

        The style is that of the names.  On a terminal, long values continue
        below their beginning; in a pipe they stay on one line, for grep.
        """
        if self.as_json:
            return
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            head = " " * indent + name.ljust(width) + "  "
            self._field(head, " ".join(str(value).splitlines()), style)

    def _field(self, head: str, value: str, style: str | None) -> None:
        text = head + value
        if self.console is None:
            self.line(text.rstrip())
            return
        from rich.text import Text

        blank = " " * len(head)
        shown = Text(
            "\n".join(
                textwrap.wrap(
                    value,
                    max(self.console.width, len(head) + 20),
                    initial_indent=head,
                    subsequent_indent=blank,
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            )
            or head
        )
        if style is not None:
            shown.stylize(STYLES[style], 0, len(head))
        self.console.print(shown, soft_wrap=True)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        styles: Sequence[str | None] | None = None,
    ) -> None:
        """Write a table; nothing with --json.

        Args:
            columns: Headings.  A column whose cells all are numbers, or
                begin with a digit, is aligned to the right.
            rows: Cells; str() is what is shown.
            styles: For each row one of STYLES, or None.
        """
        if self.as_json:
            return
        cells = [[str(cell) for cell in row] for row in rows]
        right = [
            bool(cells) and all(_is_number(row[i]) for row in cells)
            for i in range(len(columns))
        ]
        if self.console is not None:
            self._rich_table(columns, cells, right, styles)
            return
        widths = [
            max(len(row[i]) for row in [list(columns), *cells])
            for i in range(len(columns))
        ]
        for row in [list(columns), *cells]:
            texts = [
                cell.rjust(width) if at_right else cell.ljust(width)
                for cell, width, at_right in zip(
                    row, widths, right, strict=True
                )
            ]
            print("  ".join(texts).rstrip(), file=self.file)
        self.file.flush()

    def fits(
        self, columns: Sequence[str], rows: Sequence[Sequence[object]]
    ) -> bool:
        """Return whether table() can show every cell in one line."""
        if self.console is None:
            return True
        cells = [[str(cell) for cell in row] for row in rows]
        return _widths(columns, cells, self.console.width) is not None

    def _rich_table(
        self,
        columns: Sequence[str],
        cells: list[list[str]],
        right: list[bool],
        styles: Sequence[str | None] | None,
    ) -> None:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        assert self.console is not None
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        widths = _widths(columns, cells, self.console.width)
        for i, name in enumerate(columns):
            table.add_column(
                name,
                justify="right" if right[i] else "left",
                overflow="fold",
                # None: rich decides.
                width=None if widths is None else widths[i],
            )
        for i, row in enumerate(cells):
            style = None if styles is None else styles[i]
            table.add_row(
                *(Text(cell) for cell in row),
                style=None if style is None else STYLES[style],
            )
        self.console.print(table)

    def result(self, data: dict[str, Any]) -> None:
        """Write `data` as JSON with --json; otherwise nothing."""
        if self.as_json:
            json.dump(data, self.file, indent=2)
            print(file=self.file, flush=True)

    def leave(self) -> None:
        """Give up after the reader of a pipe has left.

        What the interpreter still flushes at its exit goes nowhere.
        """
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def _widths(
    columns: Sequence[str], cells: list[list[str]], room: int
) -> list[int] | None:
    """The widths of columns on a terminal: headings are wrapped, into as few
    lines as possible, rather than cells.  None: not all cells fit."""
    least = [
        max((len(row[i]) for row in cells), default=0)
        for i in range(len(columns))
    ]
    most = max((len(name.split()) for name in columns), default=1)
    for lines in range(1, most + 1):
        widths = [
            max(cell, _heading_width(name, lines))
            for cell, name in zip(least, columns, strict=True)
        ]
        if sum(widths) + 2 * len(widths) + 1 <= room:
            return widths
    return None


def _heading_width(name: str, lines: int) -> int:
    """The width that a heading needs if it is wrapped into so many lines."""
    words = max((len(word) for word in name.split()), default=0)
    for width in range(words, len(name)):
        if len(textwrap.wrap(name, width)) <= lines:
            return width
    return len(name)


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or text in ("", "-")
