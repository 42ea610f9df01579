"""The commands that README and docs show: found in their fenced blocks, and split as a shell would."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from helpers import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGES = [*ROOT.glob("README.md"), *ROOT.glob("CONTRIBUTING.md"), *sorted(ROOT.glob("docs/**/*.md"))]
"""None where the wheel is tested, away from the repository."""
_BLOCK = re.compile(r"^( *)```(sh|console)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_BREAKS = {"|", "&&", "||", ";", "&"}


@dataclass
class Command:
    """One command of a page, without what it is piped into; and what the block exported before it."""

    page: str
    line: str
    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)


def blocks(page: Path) -> Iterator[list[str]]:
    """Yield the command lines of each block; of a console block, those behind a prompt."""
    for indent, kind, text in _BLOCK.findall(page.read_text(encoding="utf-8")):
        lines = [line.removeprefix(indent) for line in text.replace("\\\n", " ").splitlines()]
        if kind == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        yield [line for line in lines if line.strip()]


def split(line: str) -> Iterator[list[str]]:
    """Yield the simple commands of a line."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    argv: list[str] = []
    for token in [*lexer, ";"]:
        if token in _BREAKS:
            if argv:
                yield argv
            argv = []
        else:
            argv.append(token)


def commands(page: Path) -> list[Command]:
    """Return every command of a page."""
    name = str(page.relative_to(ROOT))
    found = []
    for lines in blocks(page):
        env: dict[str, str] = {}
        for line in lines:
            for argv in split(line):
                own = dict(env)
                while argv and re.match(r"[A-Z_]+=", argv[0]):
                    own.update([argv.pop(0).split("=", 1)])
                if argv and argv[0] == "export":
                    env.update(item.split("=", 1) for item in argv[1:])
                elif not argv:
                    env = own
                found.append(Command(name, line.strip(), argv, own if argv and argv[0] != "export" else dict(env)))
    return found


def inline(page: Path) -> list[str]:
    """Return what a page says of `celeryscope …` within its text."""
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [found.replace("\\|", "|") for found in re.findall(r"`(celeryscope [a-z][^`]*)`", text)]
