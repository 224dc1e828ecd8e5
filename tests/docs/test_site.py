"""The built site, whose folder is VLLM_NIXL_SITE: it needs no network, and it
has all of the two APIs.

Run by `scripts/check.sh docs`, in an environment without the package.
"""

import ast
import html
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(os.environ["VLLM_NIXL_SITE"])
PAGES = {
    path.relative_to(SITE).as_posix(): path.read_text()
    for path in sorted(SITE.rglob("*.html"))
}
# What a browser fetches by itself.
FETCHED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?([^\"'\s>]+)"
    r"|<link\b[^>]*\bhref=[\"']?([^\"'\s>]+)"
)


def test_pages_are_there():
    for name in "index.html", "tutorial.html", "operations/security.html":
        assert "<h1" in PAGES[name]


def test_nothing_is_fetched_from_the_network():
    for page, text in PAGES.items():
        for addresses in FETCHED.findall(text):
            address = "".join(addresses)
            assert not address.startswith(("http", "//")), (page, address)
    for path in SITE.rglob("*.css"):
        for address in re.findall(r"url\(([^)]*)\)", path.read_text()):
            assert not address.strip("\"'").startswith(("http", "//")), path


@pytest.mark.parametrize("page", PAGES)
def test_nothing_of_the_source_is_left(page):
    """Marks of Markdown that were not understood."""
    text = re.sub(r"<(pre|code|script)\b.*?</\1>", "", PAGES[page], flags=re.S)
    text = html.unescape(re.sub(r"<[^>]*>", "", text))
    assert "```" not in text
    assert ":::" not in text
    assert "](" not in text
    assert not re.search(r"^\* ", text, re.MULTILINE)
    assert not re.search(r"^\| ", text, re.MULTILINE)


# -- Python ------------------------------------------------------------------


def public_names():
    """`__all__` of the package, without importing it."""
    tree = ast.parse((ROOT / "python/vllm_nixl/__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
            return ast.literal_eval(node.value)
    raise AssertionError("no __all__")


def members(path, class_name):
    """The public methods and attributes of a class."""
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            for item in node.body:
                name = getattr(item, "name", None) or getattr(
                    getattr(item, "target", None), "id", "_"
                )
                if not name.startswith("_"):
                    yield name


def documented(name):
    text = PAGES["python_api.html"]
    heading = re.search(rf'id="vllm_nixl\.(_core\.)?{name}"', text)
    return heading or f"<code>{name}</code>" in text


def test_the_python_page_has_every_name():
    missing = [name for name in public_names() if not documented(name)]
    assert not missing


@pytest.mark.parametrize(
    ("path", "class_name"),
    [
        ("python/vllm_nixl/_core.pyi", "Agent"),
        ("python/vllm_nixl/_core.pyi", "SideChannel"),
        ("python/vllm_nixl/_agent.py", "NixlAgent"),
        ("python/vllm_nixl/_side_channel.py", "_Async"),
    ],
)
def test_the_python_page_has_every_method(path, class_name):
    text = PAGES["python_api.html"]
    missing = [
        name
        for name in members(path, class_name)
        if not re.search(rf'id="vllm_nixl\.[\w.]+\.{name}"', text)
        and f"<code>{name}</code>" not in text
    ]
    assert not missing


# -- C -----------------------------------------------------------------------

HEADERS = sorted((ROOT / "include/vnx").glob("*.h"))


@pytest.mark.parametrize("header", HEADERS, ids=lambda path: path.stem)
def test_the_page_of_a_header_has_all_that_it_declares(header):
    text = header.read_text()
    code = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    names = {
        *re.findall(r"\b((?:vnx|nixl_capi)_\w+)\(", code),
        *re.findall(r"\b((?:vnx|nixl_capi)_\w+_t)\b(?=;)", code),
        # Not the guard against a second inclusion, which has no value.
        *re.findall(r"^#define (VNX_\w+) +\S", code, re.MULTILINE),
    }
    page = PAGES[f"reference/c/{header.stem}.html"]
    missing = [name for name in names if f'id="{name}"' not in page]
    assert names
    assert not missing


def test_inner_lists_are_inner():
    """They have two spaces in the sources."""
    text = PAGES["operations/security.html"]
    item = text.partition("Old blobs stay valid")[2].partition("</li>")[0]
    assert "<ul>" in item
