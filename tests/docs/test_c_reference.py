"""scripts/c_reference.py: comments of headers as Markdown and as man pages."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEADERS = sorted((ROOT / "include/vnx").glob("*.h"))

HEADER = """\
/*
 * Things: what they are.
 *
 * A *thing* has parts.
 *
 * Threads: any.
 * Waiting: thing_wait() waits.
 */
#ifndef VNX_THING_H
#define VNX_THING_H

#include <stdint.h>

#define THING_MAX 3 /* parts */
#define THING_MIN 1

/* -- Making --------------------------------------------------------------- */

typedef struct thing thing_t;

/* A part.  Its `number` is unique.
 *
 *     0    none
 *     1    the first
 */
typedef struct thing_part {
    uint32_t number; /* from 1 */
} thing_part_t;

/* Make a thing; *thing_p is the result.  See thing_wait(). */
int thing_make(thing_t **thing_p);
int thing_make_again(thing_t **thing_p);

int thing_wait(thing_t *thing);

#endif
"""


@pytest.fixture(scope="module")
def tool():
    path = ROOT / "scripts" / "c_reference.py"
    spec = importlib.util.spec_from_file_location("c_reference", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["c_reference"] = module  # for its dataclasses
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def header(tool, tmp_path):
    path = tmp_path / "vnx" / "thing.h"
    path.parent.mkdir()
    path.write_text(HEADER)
    return tool.read(path)


def test_declarations_get_their_comments(header):
    found = {
        item.names[0]: (section.title, item.text.partition("\n")[0])
        for section in header.sections
        for item in section.items
    }
    assert found == {
        "THING_MAX": ("", ""),
        "thing_t": ("Making", ""),
        "thing_part_t": ("Making", "A part.  Its `number` is unique."),
        "thing_make": (
            "Making",
            "Make a thing; *thing_p is the result.  See thing_wait().",
        ),
        "thing_wait": ("Making", ""),
    }


def test_adjacent_declarations_share_a_comment(header):
    items = {item.names[0]: item for item in header.items}
    assert items["thing_make"].functions == ["thing_make", "thing_make_again"]
    assert items["THING_MAX"].names == ["THING_MAX", "THING_MIN"]
    assert items["THING_MAX"].code.splitlines()[0].endswith("/* parts */")


def test_introduction_is_in_paragraphs(tool, header):
    found = [(p.label, p.text) for p in tool.paragraphs(header.text)]
    assert found == [
        ("", "Things: what they are."),
        ("", "A *thing* has parts."),
        ("Threads", "Any."),
        ("Waiting", "thing_wait() waits."),
    ]


def test_markdown_has_code_links_and_emphasis(tool, header):
    text = tool.MarkdownWriter([header]).header(header)
    assert "### `thing_make()` {#thing_make}" in text
    assert '<a id="thing_make_again"></a>' in text
    assert "`*thing_p` is the result" in text
    assert "[`thing_wait()`](thing.md#thing_wait)" in text
    assert "A *thing* has parts." in text
    assert "```\n0    none\n1    the first\n```" in text


def test_every_function_has_a_man_page(tool, header):
    pages = tool.man_pages(header, "1.2")
    assert pages.keys() == {
        "vnx_thing.h.3",
        "thing_make.3",
        "thing_make_again.3",
        "thing_wait.3",
    }
    assert pages["thing_make_again.3"] == ".so man3/thing_make.3\n"
    page = pages["thing_make.3"]
    assert page.startswith('.TH thing_make 3 "" "libvnx 1.2"')
    assert "thing_make, thing_make_again \\- Make a thing" in page
    page = pages["vnx_thing.h.3"]
    assert "vnx_thing.h \\- Things: what they are\n" in page
    assert "A \\fIthing\\fP has parts." in page
    assert "Its \\fInumber\\fP is unique." in page


def test_text_cannot_become_a_request_of_roff(tool):
    assert tool._roff(".so x\n'y\na-b\\c") == "\\&.so x\n\\&'y\na\\-b\\ec"


def test_man_pages_of_the_library_are_valid(tool, tmp_path):
    """By the command line, as the installation makes them."""
    subprocess.run(
        [
            sys.executable,
            ROOT / "scripts" / "c_reference.py",
            "--man",
            tmp_path,
            *HEADERS,
        ],
        check=True,
    )
    text = "\n".join(path.read_text() for path in HEADERS)
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    functions = set(re.findall(r"\b((?:vnx|nixl_capi)_\w+)\(", text))
    assert len(functions) > 160
    assert {f"{name}.3" for name in functions} <= {
        path.name for path in tmp_path.iterdir()
    }
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff is not installed: the pages were not formatted")
    for path in sorted(tmp_path.glob("*.3")):
        if path.read_text().startswith(".so "):
            continue
        done = subprocess.run(
            [groff, "-man", "-Tutf8", "-ww", path],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0
        assert not done.stderr, path.name
