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


def rewrite(text: str, names: set[str], title: str) -> str:
    """The docstring in Google's style.

    names: of parameters or attributes that may have an entry
    title: of the section that gets the entries
    """
    found: list[str] = []
    inside = False  # a section, whose lines are indented
    entry = False  # lines that belong to an entry without a section
    for line in text.split("\n"):
        match = ENTRY.match(line)
        if match and names.issuperset(match[1].split(", ")):
            if not inside:
                found += [f"{title}:"] if not found[-1:] else ["", f"{title}:"]
            inside = entry = True
            found.append("    " + CODE.sub(_as_code, line))
        elif entry and line.startswith("    "):
            found.append("    " + CODE.sub(_as_code, line))
        elif SECTION.match(line):
            inside = True
            found.append(line)
        elif inside and (line.startswith("    ") or not line.strip()):
            found.append(CODE.sub(_as_code, line))
            inside = not entry or bool(line.strip())
            entry = entry and inside
        elif line.startswith("    "):
            found.append(line)  # code
        else:
            inside = entry = False
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
            for name in ("__init__", "__new__")
            if name in cls.members
            and isinstance(method := cls.members[name], griffe.Function)
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
