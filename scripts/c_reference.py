"""The reference of the C API, from the comments in the headers.

    python scripts/c_reference.py --man FOLDER include/vnx/*.h
    python scripts/c_reference.py --markdown FOLDER include/vnx/*.h

Writes man pages of section 3, or a page of Markdown for each header.  libclang
finds the declarations (the package `libclang`, or Debian's python3-clang); the
text is that of the comments, unchanged.

A comment belongs to the declaration below it.  Declarations that follow one
another without a blank line, and have no comment of their own, share it.  The
first comment of a header is its introduction, and a comment such as
`-- Memory ---` begins a section.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from clang import cindex

ROOT = Path(__file__).resolve().parents[1]
# The headers need no others: what they include of the C library is this.
SYSTEM = {
    "stdbool.h": "#define bool _Bool\n",
    "stddef.h": "typedef unsigned long size_t;\n",
    "stdarg.h": "typedef __builtin_va_list va_list;\n",
    "stdint.h": "\n".join(
        f"typedef {base} {name}{bits}_t;"
        for bits, kind in (
            (8, "char"),
            (16, "short"),
            (32, "int"),
            (64, "long"),
        )
        for name, base in (
            ("int", f"signed {kind}"),
            ("uint", f"unsigned {kind}"),
        )
    )
    + "\ntypedef unsigned long uintptr_t;\n",
}
DECLARATIONS = (
    cindex.CursorKind.FUNCTION_DECL,
    cindex.CursorKind.MACRO_DEFINITION,
    cindex.CursorKind.ENUM_DECL,
    cindex.CursorKind.STRUCT_DECL,
    cindex.CursorKind.TYPEDEF_DECL,
)
SECTION = re.compile(r"-- (\S.*?) -+\s*$", re.DOTALL)
GUARD = re.compile(r"VNX_(\w+_)?H")
# A line that begins with what it is about: "Threads: any call ...", or, in
# columns, "Threads    Every call ...".
LABEL = re.compile(
    r"(Threads|Waiting|Ownership|Versions|Forks|Errors|Keys)(?:: | {2,})(?=\S)"
)


@dataclass
class Item:
    """Declarations that share a comment."""

    code: str
    text: str  # of the comment; "" if there is none
    names: list[str]  # of all that is declared, the first one first
    functions: list[str]
    first: int  # lines in the header
    last: int


@dataclass
class Section:
    title: str
    items: list[Item] = field(default_factory=list)


@dataclass
class Header:
    stem: str  # "vnx" for vnx/vnx.h
    text: str
    sections: list[Section]

    @property
    def include(self) -> str:
        return f"vnx/{self.stem}.h"

    @property
    def items(self) -> list[Item]:
        return [item for section in self.sections for item in section.items]


# -- Reading ------------------------------------------------------------------


def read_headers(root: Path) -> list[Header]:
    """The headers of the library."""
    return [read(path) for path in sorted((root / "include/vnx").glob("*.h"))]


def _parse(path: Path) -> cindex.TranslationUnit:
    folder = "/vnx-system"
    unit = cindex.Index.create().parse(
        str(path),
        args=[
            "-xc",
            "-std=gnu11",
            f"-isystem{folder}",
            f"-I{path.parents[1]}",
        ],
        unsaved_files=[(f"{folder}/{n}", text) for n, text in SYSTEM.items()],
        options=cindex.TranslationUnit.PARSE_DETAILED_PROCESSING_RECORD,
    )
    errors = [str(d) for d in unit.diagnostics if d.severity >= 3]
    if errors:
        raise SystemExit("\n".join(errors))
    return unit


def _text_of(comment: str) -> str:
    """The text of a comment, without its frame."""
    inner = comment.removeprefix("/*").removesuffix("*/")
    lines = [re.sub(r"^ ?\* ?", "", line) for line in inner.split("\n")]
    # The first line begins behind "/* ", the others behind "   " or " * ".
    lines = [lines[0].removeprefix(" "), *lines[1:]]
    return "\n".join(line.rstrip() for line in lines).strip("\n").rstrip()


def read(path: Path) -> Header:
    """Read one header."""
    unit = _parse(path)
    lines = path.read_text().splitlines()
    comments = [
        token
        for token in unit.get_tokens(extent=unit.cursor.extent)
        if token.kind == cindex.TokenKind.COMMENT
    ]
    # The last line of a comment: its first line and text.
    ends = {
        token.extent.end.line: (
            token.extent.start.line,
            _text_of(token.spelling),
        )
        for token in comments
        if lines[token.extent.start.line - 1].lstrip().startswith("/*")
    }
    reaches = {
        token.extent.start.line: token.extent.end.line for token in comments
    }
    items = _items(unit, path, lines, ends, reaches)
    sections = [Section("")]
    titles = {
        last: match[1]
        for last, (_, text) in ends.items()
        if (match := SECTION.match(text))
    }
    for item in items:
        before = [line for line in titles if line < item.first]
        title = titles[max(before)] if before else ""
        if title != sections[-1].title:
            sections.append(Section(title))
        sections[-1].items.append(item)
    introduction = ends[min(ends)][1]
    return Header(path.stem, introduction, [s for s in sections if s.items])


def _items(
    unit: cindex.TranslationUnit,
    path: Path,
    lines: list[str],
    ends: dict[int, tuple[int, str]],
    reaches: dict[int, int],
) -> list[Item]:
    """The declarations of the file, in order, with their comments."""
    cursors = [
        cursor
        for cursor in unit.cursor.get_children()
        if cursor.kind in DECLARATIONS
        and cursor.location.file is not None
        and Path(cursor.location.file.name) == path
        and not GUARD.fullmatch(cursor.spelling)
    ]
    cursors.sort(key=lambda c: (c.extent.start.line, -c.extent.end.line))
    items: list[Item] = []
    end = 0  # the last line of what was read
    for cursor in cursors:
        first, last = cursor.extent.start.line, cursor.extent.end.line
        if first <= end:
            _add_names(items[-1], cursor)
            continue
        # A function's type may have its own line in front.
        last = max(last, reaches.get(last, last))
        code = "\n".join(lines[first - 1 : last])
        end = last
        text = ""
        begins = ends.get(first - 1)
        if begins and not SECTION.match(begins[1]):
            text = begins[1]
        elif items and items[-1].last == first - 1:
            items[-1].code += "\n" + code
            items[-1].last = last
            _add_names(items[-1], cursor)
            continue
        items.append(Item(code, text, [], [], first, last))
        _add_names(items[-1], cursor)
    return [item for item in items if item.names]


def _add_names(item: Item, cursor: cindex.Cursor) -> None:
    names = [cursor.spelling]
    is_struct = cursor.kind == cindex.CursorKind.STRUCT_DECL
    if cursor.kind == cindex.CursorKind.ENUM_DECL:
        # The enumeration is known by its typedef.
        names = [child.spelling for child in cursor.get_children()]
    elif cursor.kind == cindex.CursorKind.FUNCTION_DECL:
        item.functions.append(cursor.spelling)
    for name in names:
        if name in item.names or (is_struct and "{" not in item.code):
            continue
        if f"undef {name}" in item.code:
            continue  # a helper of the declaration
        if cursor.kind == cindex.CursorKind.TYPEDEF_DECL:
            item.names.insert(_types(item), name)
        elif not (is_struct and f"{name}_t" in item.code):
            item.names.append(name)


def _types(item: Item) -> int:
    """Where the next name of a type belongs: before constants."""
    return sum(name.endswith("_t") for name in item.names)


# -- Paragraphs ---------------------------------------------------------------


@dataclass
class Paragraph:
    text: str
    label: str = ""  # "Threads"
    verbatim: bool = False


def paragraphs(text: str) -> list[Paragraph]:
    """What a comment consists of."""
    found: list[Paragraph] = []
    for block in re.split(r"\n\s*\n", text):
        lines = block.split("\n")
        if all(line.startswith("    ") for line in lines):
            code = "\n".join(line[4:] for line in lines)
            if found and found[-1].verbatim:
                found[-1].text += "\n\n" + code
            else:
                found.append(Paragraph(code, verbatim=True))
            continue
        for number, line in enumerate(lines):
            label = LABEL.match(line)
            if label:
                rest = line[label.end() :]
                if re.match(r"[a-z]+(?![\w(])", rest):
                    rest = rest[0].upper() + rest[1:]
                found.append(Paragraph(rest, label[1]))
            elif number == 0:
                found.append(Paragraph(line.strip()))
            else:
                found[-1].text += " " + line.strip()
    return found


def first_sentence(text: str) -> str:
    """For the line NAME of a man page."""
    for paragraph in paragraphs(text):
        if not paragraph.verbatim:
            sentence = re.split(r"\.\s", paragraph.text + " ")[0].strip()
            if len(sentence) > 80:
                # It goes on with details.
                sentence = re.split(r"(?<=.{20})(?:[,:;] | \()", sentence)[0]
            return sentence.replace("`", "")
    return ""


# -- Markdown -----------------------------------------------------------------

TOKEN = re.compile(
    r"`[^`]+`"  # as it is
    r'|"[^"\n]{1,40}"'
    r"|docs/\w+\.md"
    r"|\(\*\w+\)\[\w+\]"
    r"|\*?\b\w+(?:\.\w+)?_p\b|\*\w+_p\b"
    r"|\b(?:vnx|VNX|vnxi)_\w+(?:\(\))?"
    r"|\bvnx/\w+\.h|\b\w+->\w+"
    r"|\b(?:VLLM_NIXL|NIXL|RLIMIT|PROT|O|CAP)_[A-Z_]+|\bNULL\b"
    r"|\b[a-z_]+\(\)|\bsizeof\(?\w+\)?"
    r"|\*\w[\w ]*\*"  # emphasis
)


class MarkdownWriter:
    """Writes comments as Markdown, with links to the declarations."""

    def __init__(self, headers: Iterable[Header]) -> None:
        self.where = {
            name: f"{header.stem}.md#{item.names[0]}"
            for header in headers
            for item in header.items
            for name in item.names
        }

    def inline(self, text: str) -> str:
        parts, end = [], 0
        for match in TOKEN.finditer(text):
            parts.append(_escape(text[end : match.start()]))
            parts.append(self._token(match[0]))
            end = match.end()
        return "".join(parts) + _escape(text[end:])

    def _token(self, token: str) -> str:
        if token.startswith("docs/"):
            page = token.removeprefix("docs/")
            return f"[{_title(ROOT / token)}](../../{page})"
        if token.startswith('"'):
            return _escape(token)
        if re.fullmatch(r"\*\w[\w ]*\*", token):
            return token
        code = token if token.startswith("`") else f"`{token}`"
        link = self.where.get(token.removesuffix("()").strip("`"))
        return f"[{code}]({link})" if link else code

    def text(self, text: str) -> str:
        found = []
        for paragraph in paragraphs(text):
            if paragraph.verbatim:
                found.append(f"```\n{paragraph.text}\n```\n")
                continue
            label = f"**{paragraph.label}.** " if paragraph.label else ""
            found.append(label + self.inline(paragraph.text) + "\n")
        return "\n".join(found)

    def item(self, item: Item) -> str:
        title = item.names[0] + ("()" if item.functions else "")
        anchors = "".join(f'<a id="{name}"></a>' for name in item.names[1:])
        parts = [f"### `{title}` {{#{item.names[0]}}}\n"]
        if anchors:
            parts.append(anchors + "\n")
        parts.append(f"```c\n{item.code}\n```\n")
        if item.text:
            parts.append(self.text(item.text))
        return "\n".join(parts)

    def header(self, header: Header) -> str:
        parts = [
            f"# {header.include}\n",
            f"```c\n#include <{header.include}>\n```\n",
            self.text(header.text),
        ]
        for section in header.sections:
            title = section.title or "Declarations"
            parts.append(f"## {title}\n")
            parts += [self.item(item) for item in section.items]
        return "\n".join(parts)


def _title(page: Path) -> str:
    with page.open() as file:
        return file.readline().strip("# \n")


def _escape(text: str) -> str:
    return re.sub(r"([\\*_<>\[\]`|])", r"\\\1", text)


def markdown(header: Header) -> str:
    """The page of one header of the library."""
    return MarkdownWriter(read_headers(ROOT)).header(header)


# -- Man pages ----------------------------------------------------------------

EMPHASIS = re.compile(r"`([^`]+)`|(?<!\w)\*(\w[\w ]*)\*(?!\w)")


def _roff(text: str) -> str:
    """Text for roff: no line of it is a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(
        "\\&" + line if line[:1] in (".", "'") else line
        for line in text.split("\n")
    )


def _roff_text(text: str) -> str:
    parts = []
    for paragraph in paragraphs(text):
        body = _roff(paragraph.text)
        if not paragraph.verbatim:
            body = EMPHASIS.sub(r"\\fI\1\2\\fP", body)
        if paragraph.verbatim:
            parts.append(f".PP\n.RS 4\n.nf\n{body}\n.fi\n.RE")
        elif paragraph.label:
            parts.append(f".TP\n.B {paragraph.label}\n{body}")
        else:
            parts.append(f".PP\n{body}")
    return "\n".join(parts)


def _page(header: Header, name: str, body: str, version: str) -> str:
    # Flush left: some names are too long for lines that are spread out.
    return (
        f'.TH {name} 3 "" "libvnx {version}" "C library of vllm_nixl"\n'
        f".ad l\n{body}"
    )


def _item_page(header: Header, section: Section, item: Item) -> str:
    other = [
        item.functions[0]
        for item in section.items
        if item.functions and item.functions[0] not in item.names[:0]
    ]
    names = ", ".join(item.functions)
    others = [name for name in other if name not in item.functions]
    related = [f"vnx_{header.stem}.h", *others][:12]
    see = ",\n".join(f".BR {name} (3)" for name in related)
    summary = _roff(first_sentence(item.text))
    text = _roff_text(item.text) or ".PP\nSee the introduction of the header."
    return (
        f".SH NAME\n{names}"
        + (f" \\- {summary}" if summary else f" \\- {section.title}")
        + "\n.SH SYNOPSIS\n.nf\n"
        + f"#include <{header.include}>\n\n{_roff(item.code)}\n.fi\n"
        + f".SH DESCRIPTION\n{text}\n.SH SEE ALSO\n{see}\n"
    ).replace("(3),\n.BR", "(3)\n.BR")


def _header_page(header: Header) -> str:
    name = f"vnx_{header.stem}.h"
    summary = _roff(first_sentence(header.text))
    parts = [
        f".SH NAME\n{name} \\- {summary}",
        f".SH SYNOPSIS\n.B #include <{header.include}>",
        f".SH DESCRIPTION\n{_roff_text(header.text)}",
    ]
    for section in header.sections:
        parts.append(f".SH {(section.title or 'Declarations').upper()}")
        for item in section.items:
            parts.append(f".PP\n.nf\n{_roff(item.code)}\n.fi")
            if item.text and not item.functions:
                parts.append(_roff_text(item.text))
            elif item.functions:
                parts.append(f".PP\nSee\n.BR {item.functions[0]} (3).")
    return "\n".join(parts) + "\n"


def man_pages(header: Header, version: str) -> dict[str, str]:
    """The man pages of a header: file name to text."""
    name = f"vnx_{header.stem}.h"
    pages = {f"{name}.3": _page(header, name, _header_page(header), version)}
    for section in header.sections:
        for item in section.items:
            if not item.functions:
                continue
            name = item.functions[0]
            body = _item_page(header, section, item)
            pages[f"{name}.3"] = _page(header, name, body, version)
            for other in item.functions[1:]:
                pages[f"{other}.3"] = f".so man3/{name}.3\n"
    return pages


def _version() -> str:
    text = (ROOT / "meson.build").read_text()
    match = re.search(r"^ *version: '([^']+)'", text, re.MULTILINE)
    if match is None:
        raise SystemExit("meson.build has no version")
    return match[1]


# -- Command line -------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write the reference of the C API.",
    )
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--man", type=Path, metavar="FOLDER")
    group.add_argument("--markdown", type=Path, metavar="FOLDER")
    parser.add_argument("headers", nargs="+", type=Path)
    options = parser.parse_args()
    folder = options.man or options.markdown
    folder.mkdir(parents=True, exist_ok=True)
    headers = [read(path.resolve()) for path in options.headers]
    write: Callable[[Header], dict[str, str]]
    if options.man:
        version = _version()

        def write(header: Header) -> dict[str, str]:
            return man_pages(header, version)
    else:
        writer = MarkdownWriter(headers)

        def write(header: Header) -> dict[str, str]:
            return {f"{header.stem}.md": writer.header(header)}

    for header in headers:
        for name, text in write(header).items():
            (folder / name).write_text(text)


if __name__ == "__main__":
    main()
