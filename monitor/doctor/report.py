"""A verdict for people, in 80 columns and with or without colour, and for scripts."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.style import Style
from rich.text import Text

from ..printable import printable
from .registry import DOCS, Severity
from .verdict import Finding, Verdict, plural

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.INFO: "bold cyan"}
MARKS = {Severity.ERROR: "✗", Severity.WARNING: "!", Severity.INFO: "·"}
WIDEST = 100
"""Columns beyond which lines of prose are hard to read."""


@dataclass(frozen=True)
class Item:
    """A word at the left, and text beside it on as many lines as it needs."""

    name: str
    text: str
    style: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Wrap to the width that there is; commands and addresses are not broken at their hyphens."""
        width = min(options.max_width, WIDEST)
        indent = " " * len(self.name)
        # Names of tasks, queues and workers are others' doing.
        lines = textwrap.wrap(self.name + printable(self.text), width, subsequent_indent=indent, break_on_hyphens=False)
        for number, line in enumerate(lines):
            text = Text(line, style=self.style)
            if number == 0 and not self.style:
                text.stylize("bold", 0, len(self.name))
            yield text


def render(verdict: Verdict) -> RenderableType:
    """Return the whole report."""
    return Group(*_parts(verdict))


def _parts(verdict: Verdict) -> Iterator[RenderableType]:
    for what, seen in verdict.looked_at.items():
        yield Item(f"{what:<11}", seen or "-", "dim")
    for _, findings in itertools.groupby(verdict.findings, lambda finding: (finding.check.id, finding.severity)):
        yield Text()
        yield from _finding(list(findings))
    yield Text()
    for left_out in verdict.not_checked:
        yield Item("? ", f"not checked: {left_out.check.id}, because {left_out.because}", "dim")
    for what, checks in (("passed", verdict.passed), ("ignored", verdict.ignored)):
        if checks:
            yield Item(f"{what}: ", ", ".join(check.id for check in checks), "dim")
    if verdict.findings:
        yield Text("More on each: celeryscope's docs/doctor.md", style=Style(dim=True, link=DOCS))
    yield Text()
    yield _summary(verdict)


def _finding(findings: Sequence[Finding]) -> Iterator[RenderableType]:
    first = findings[0]
    mark = f"{MARKS[first.severity]} {first.severity.value}  "
    identity = Style(bold=True, link=first.check.link)
    yield Text.assemble((mark, STYLES[first.severity]), (first.check.id, identity))
    yield Item("  ", first.check.title)
    for finding in findings:
        yield Item("  seen  ", finding.seen)
    yield Item("  why   ", first.check.why)
    for fix in dict.fromkeys(finding.fix for finding in findings):
        yield Item("  fix   ", fix)


def _summary(verdict: Verdict) -> Text:
    counts = dict.fromkeys(Severity, 0)
    for finding in verdict.findings:
        counts[finding.severity] += 1
    advice = counts.pop(Severity.INFO)
    found = ", ".join(plural(count, severity.value) for severity, count in counts.items() if count)
    parts = [found or "✓ no check failed"]
    parts += [plural(advice, "piece") + " of advice"] if advice else []
    parts += [f"{len(verdict.passed)} passed"]
    parts += [f"{len(verdict.not_checked)} not checked"] if verdict.not_checked else []
    parts += [f"{len(verdict.ignored)} ignored"] if verdict.ignored else []
    return Text(" · ".join(parts), style="bold red" if verdict.failed else "bold green")


def as_json(verdict: Verdict) -> dict[str, Any]:
    """Return the verdict as plain data; what each key means is in docs/doctor.md."""
    return {
        "failed": verdict.failed,
        "looked_at": dict(verdict.looked_at),
        "findings": [
            {
                "id": finding.check.id,
                "severity": finding.severity.value,
                "title": finding.check.title,
                "seen": finding.seen,
                "why": finding.check.why,
                "fix": finding.fix,
                "link": finding.check.link,
            }
            for finding in verdict.findings
        ],
        "not_checked": [{"id": one.check.id, "because": one.because} for one in verdict.not_checked],
        "passed": [check.id for check in verdict.passed],
        "ignored": [check.id for check in verdict.ignored],
    }
