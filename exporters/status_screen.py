"""What `celeryscope status` shows: a report as tables that fit a terminal, with or without colour."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from .report import Report

BAD = {"lost", "missed", "late", "failing"}
"""States that are shown in red."""
WORDS = {"runs", "with"}
"""The columns of words."""
EXCEPTIONS = 3
"""Exceptions of a failing task that are named."""


def render(result: Report, limit: int) -> RenderableType:
    """Return the whole screen; parts without any row are left out."""
    parts: list[RenderableType] = [_verdict(result)]
    for title, columns, rows in (
        _workers(result),
        _queues(result),
        _schedules(result),
        _failing(result),
        _tasks(result),
    ):
        if rows:
            parts.append(_table(title, columns, rows, limit))
    parts.append(_trust(result))
    return Group(*parts)


def _verdict(result: Report) -> Text:
    if not result.problems:
        return Text("✓ nothing is wrong", style="bold green")
    return Text("\n").join(Text(f"✗ {problem}", style="bold red") for problem in result.problems)


Part = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def _workers(result: Report) -> Part:
    columns = ("state", "busy", "processed", "missed", "heard")
    rows: list[tuple[str, ...]] = [
        (
            row.worker,
            row.state,
            _of(row.active, row.slots),
            _count(row.processed),
            _count(row.missed),
            _age(row.heartbeat_age),
        )
        for row in result.workers
    ]
    return "worker", columns, rows


def _queues(result: Report) -> Part:
    columns = ("ready", "unacked", "scheduled", "oldest", "consumers", "busy")
    rows: list[tuple[str, ...]] = [
        (
            row.queue,
            _count(row.ready),
            _count(row.unacked),
            _count(row.scheduled),
            _age(row.oldest),
            _count(row.consumers),
            _of(row.busy, row.slots),
        )
        for row in result.queues
    ]
    return "queue", columns, rows


def _schedules(result: Report) -> Part:
    columns = ("state", "runs", "last", "next", "late", "missed", "doubled")
    rows: list[tuple[str, ...]] = [
        (
            row.entry,
            row.state,
            row.schedule,
            _age(-row.last if row.last is not None else None),
            _age(row.next),
            _age(row.overdue or row.lateness),
            _count(row.missed),
            _count(row.duplicate),
        )
        for row in result.schedules
    ]
    return "schedule", columns, rows


def _failing(result: Report) -> Part:
    rows: list[tuple[str, ...]] = [
        (row.task, _count(row.failed), _rate(row.failure_rate), _exceptions(row.exceptions))
        for row in result.tasks
        if row.failed
    ]
    return "failing", ("failed", "rate", "with"), rows


def _exceptions(counts: dict[str, float]) -> str:
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{name} {_count(count)}" for name, count in most[:EXCEPTIONS])
    return shown + (f" and {len(most) - EXCEPTIONS} more" if len(most) > EXCEPTIONS else "")


def _rate(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.1%}"


def _tasks(result: Report) -> Part:
    columns = ("done", "failed", "rate", "retried", "revoked", "mean", "running", "waiting")
    rows: list[tuple[str, ...]] = [
        (
            row.task,
            _count(row.finished),
            _count(row.failed),
            _rate(row.failure_rate),
            _count(row.retried),
            _count(row.revoked),
            _age(row.mean_runtime),
            _count(row.running),
            _count(row.waiting),
        )
        for row in result.tasks
    ]
    return "task", columns, rows


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]], limit: int) -> Table:
    # The name gives way where the screen is narrow, on more lines; numbers are never cut.
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(title, overflow="fold", min_width=12)
    for name in columns:
        words = name in WORDS
        table.add_column(name, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for row in rows[:limit]:
        style = "red" if row[1] in BAD else None
        table.add_row(*(Text(cell) for cell in row), style=style)
    if len(rows) > limit:
        table.add_row(Text(f"… and {len(rows) - limit} more", style="dim"))
    table.caption = " "
    return table


def _trust(result: Report) -> Text:
    trust = result.trust
    missed = _count(trust.starts_missed) + (f" ({_count(trust.missed_down)} while down)" if trust.missed_down else "")
    facts: Iterable[tuple[str, str]] = (
        ("connected", "yes" if trust.connected else "NO"),
        ("event lag", _age(trust.lag) or "unknown"),
        ("queues sampled", f"{_age(trust.sample_age)} ago" if trust.sample_age is not None else "never"),
        ("starts missed", f"{missed} of {_count(trust.starts)}"),
        ("task-sent seen", "unknown" if trust.sent_coverage is None else f"{trust.sent_coverage:.0%}"),
        ("reconnects", _count(trust.reconnects)),
        ("malformed", _count(trust.malformed)),
        ("evicted", _count(trust.evicted)),
        ("over label caps", _count(trust.overflow)),
    )
    return Text("trust   ", style="bold") + Text(
        " · ".join(f"{name} {value}" for name, value in facts), style="not bold"
    )


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}".replace(",", " ")


def _of(part: float, whole: float) -> str:
    return f"{part:.0f}/{whole:.0f}" if whole else f"{part:.0f}"


_UNITS: tuple[tuple[float, str, Callable[[float], str]], ...] = (
    (1, "ms", lambda seconds: f"{seconds * 1000:.0f}"),
    (100, "s", lambda seconds: f"{seconds:.3g}"),
    (6000, "min", lambda seconds: f"{seconds / 60:.3g}"),
    (360_000, "h", lambda seconds: f"{seconds / 3600:.3g}"),
)


def _age(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for limit, unit, text in _UNITS:
        if abs(seconds) < limit:
            return f"{text(seconds)} {unit}"
    return f"{seconds / 86_400:.3g} d"


def fitting(result: Report, limit: int, console: Console, lines: int) -> RenderableType:
    """Return the screen with as many rows a table, `limit` at most, as leave it no more than `lines` high."""
    most = min(limit, max(len(table) for table in (result.workers, result.queues, result.schedules, result.tasks)))
    fits, too_many = 1, most + 1
    while too_many - fits > 1:
        rows = (fits + too_many) // 2
        if len(console.render_lines(render(result, rows), pad=False)) <= lines:
            fits = rows
        else:
            too_many = rows
    return render(result, fits)
