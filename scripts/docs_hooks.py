"""Hooks of the documentation site (mkdocs.yml).

They add the pages that are not in docs/: files of the repository's root,
which people read there too, and the reference of the C headers.  Links that
lead from one to the other on disk are turned into links of the site.
"""

from __future__ import annotations

import os
import posixpath
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

sys.path.insert(0, os.path.dirname(__file__))  # mkdocs loads this file alone

import c_reference

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Files outside of docs/, and their pages.
FILES = {
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "README.md": "index.md",
    "SECURITY.md": "operations/security.md",
    "examples/vllm_pd/README.md": "examples/vllm_pd.md",
}
# The README is for people who see the repository; the site has its own.
WITHOUT_PAGE = ("README.md",)
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
# Blocks without a language are pictures, whose lines must not be wrapped.
BARE = re.compile(r"\A```\n")
# Python-Markdown wants four spaces in front of an item of an inner list.
INNER = re.compile(r"^  (?=[*-] )", re.MULTILINE)
CELL = re.compile(r"<td\b.*?</td>", re.DOTALL)
NAME = re.compile(r"<code>[^<]*</code>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for name, page in FILES.items():
        if name not in WITHOUT_PAGE:
            text = (ROOT / name).read_text()
            files.append(File.generated(config, page, content=text))
    for header in c_reference.read_headers(ROOT):
        page = f"reference/c/{header.stem}.md"
        text = c_reference.markdown(header)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Make links, pictures and inner lists of the repository's Markdown
    those of the site's."""
    sources = {path: name for name, path in FILES.items()}
    sources.pop(FILES["README.md"])
    here = page.file.src_uri
    folder = posixpath.dirname(sources.get(here, f"docs/{here}"))

    def site_link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        if target in FILES:
            target = FILES[target]
        elif target.startswith("docs/"):
            target = target.removeprefix("docs/")
        else:
            return match[0]
        link = posixpath.relpath(target, posixpath.dirname(here) or ".")
        return f"{match[1]}{link}{match[3]}"

    def prose(text: str) -> str:
        return INNER.sub("    ", LINK.sub(site_link, text))

    parts = []
    end = 0
    for fence in FENCE.finditer(markdown):
        parts.append(prose(markdown[end : fence.start()]))
        parts.append(BARE.sub("``` {.text .diagram}\n", fence[0], count=1))
        end = fence.end()
    return "".join(parts) + prose(markdown[end:])


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Let long names in tables break behind an underscore."""

    def breakable(match: re.Match[str]) -> str:
        return re.sub(r"(?<=\w)([_/]+)(?=\w)", r"\1<wbr>", match[0])

    return CELL.sub(lambda cell: NAME.sub(breakable, cell[0]), output)
