"""Shows the docstrings of the package on the documentation site.

The docstrings are written to be read as they are, with `help()`.  This
extension of griffe gives them the form that mkdocstrings expects: lines such
as "timeout: in seconds" become a list of arguments or attributes, and names of
calls, classes and variables become code.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ENTRY = re.compile(r"(\w+(?:, \w+)*): (.*)")
SECTION = re.compile(r"(Args|Attributes|Returns|Raises):$")
CODE = re.compile(
    r"`[^`]*`|\"[^\"]*\"|'[^']*'"  # as they are
    r"|(?<![\w.])\.?[a-z_][\w.]*\(\)"
    r"|\bnixl\w+|\bNixl\w+Error\b|\bVLLM_NIXL_\w+|\bNone\b"
)
QUOTED = ("`", '"', "'")


def _as_code(match: re.Match[str]) -> str:
    word = match[0]
    return word if word.startswith(QUOTED) else f"`{word}`"


def _entries(match: re.Match[str]) -> list[str]:
    """One line for each name of "local, remote: text"."""
    text = CODE.sub(_as_code, match[2])
    return [f"    {name}: {text}" for name in match[1].split(", ")]


def rewrite(text: str, names: set[str], title: str) -> str:
    """The docstring in Google's style.

    names: of parameters or attributes that may have an entry
    title: of the section that gets the entries
    """
    found: list[str] = []
    listing = False  # one of our own entries
    section = False  # a section that was one before
    for line in text.split("\n"):
        indented = line.startswith("    ")
        entry = ENTRY.match(line.removeprefix("    ") if section else line)
        if SECTION.match(line):
            section, listing = True, False
            found.append(line)
        elif entry and names.issuperset(entry[1].split(", ")):
            if not listing and not section:
                found += ["", f"{title}:"]
            listing = not section
            found += _entries(entry)
        elif (listing or section) and indented:
            found.append("    " * listing + CODE.sub(_as_code, line))
        elif indented:
            found.append(line)  # an example
        else:
            if line.strip():
                if listing:
                    found.append("")
                listing = section = False
            found.append(CODE.sub(_as_code, line))
    return "\n".join(found)


class Docstrings(griffe.Extension):
    """Rewrites docstrings when griffe has read them."""

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        if func.docstring:
            names = {parameter.name for parameter in func.parameters}
            func.docstring.value = rewrite(func.docstring.value, names, "Args")

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        if not cls.docstring:
            return
        parameters = {
            parameter.name
            for method in [cls.members.get("__init__")]
            if isinstance(method, griffe.Function)
            for parameter in method.parameters
        }
        names = parameters or set(cls.members)
        title = "Args" if parameters else "Attributes"
        cls.docstring.value = rewrite(cls.docstring.value, names, title)

    def on_attribute_instance(
        self, *, attr: griffe.Attribute, **_: Any
    ) -> None:
        if attr.docstring:
            attr.docstring.value = rewrite(attr.docstring.value, set(), "")
