"""What mkdocs needs beyond pages that are written for GitHub: navigation from the index, links out, list indents."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

INDEX = "index.md"
SOURCE = "blob/main"

_ITEM = re.compile(r"(\d+\. +|[-*] +)(?=\S)")
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_ENTRY = re.compile(r"^- \[([^\]]+)\]\(([\w/-]+\.md)\)", re.MULTILINE)


def on_config(config: Any) -> Any:
    """Take the navigation from the index: each of its headings with a list of pages is a section."""
    text = (Path(config["docs_dir"]) / INDEX).read_text(encoding="utf-8")
    config["nav"] = [{"Home": INDEX}, *navigation(text)]
    return config


def navigation(index: str) -> list[dict[str, list[dict[str, str]]]]:
    """Return the sections of the index and their pages, with titles up to the first colon."""
    sections = []
    for section in re.split(r"^## +", index, flags=re.MULTILINE)[1:]:
        entries = [{title.partition(":")[0]: page} for title, page in _ENTRY.findall(section)]
        if entries:
            sections.append({section.partition("\n")[0]: entries})
    return sections


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Return the page as Python's Markdown reads it the way GitHub does."""
    out = links_out(markdown, page.file.src_uri, f"{config['extra']['repository']}/{SOURCE}")
    return "\n".join(indented(out.split("\n")))


def links_out(markdown: str, page: str, source: str) -> str:
    """Point links that leave docs/ to the repository."""

    def out(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        if "://" in target or target.startswith(("mailto:", "/")):
            return match.group()
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
        inside = path.startswith("docs/") and not path.startswith("docs/examples")
        return match.group() if inside else f"{before}{source}/{path}{after}"

    return _LINK.sub(out, markdown)


def indented(lines: list[str]) -> Iterator[str]:
    """Yield the lines as Python's Markdown wants them.

    What belongs to a list item is four blanks deep; a list or a table has an empty line before it, and so has an item
    that follows one of several paragraphs.
    """
    width = 0
    fenced = several = False
    before = ""
    for line in lines:
        item = None if fenced else _ITEM.match(line)
        if not fenced and before and ((item and (several or not width)) or (line[:1] == "|" != before[:1])):
            yield ""
        if item:
            width, several = len(item.group()), False
        elif line and not line.startswith(" " * width):
            width = 0
        elif width and line and not before:
            several = True
        if line.lstrip().startswith("```"):
            fenced = not fenced
        yield line if item or not width or not line else "    " + line[width:]
        before = line
