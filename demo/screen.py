"""What the demo shows: where to look, how every kind of task ended so far, and what to try."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from ..monitor.flower_settings import DEFAULT_URL
from .stack import FLOWER_USER

if TYPE_CHECKING:
    from ..exporters.reading import Page
    from .stack import Stack

Row = tuple[str, str, dict[str, str]]

OUTCOMES: tuple[Row, ...] = (
    ("sent", "celery_task_sent_total", {}),
    ("received", "celery_task_received_total", {}),
    ("started", "celery_task_started_total", {}),
    ("succeeded", "celery_task_succeeded_total", {}),
    ("failed", "celery_task_failed_total", {}),
    ("retried", "celery_task_retried_total", {}),
    ("retries exhausted", "celery_task_retries_exhausted_total", {}),
    ("rejected, requeued", "celery_task_rejected_total", {"requeue": "true"}),
    ("rejected, dropped", "celery_task_rejected_total", {"requeue": "false"}),
    ("revoked while running", "celery_task_revoked_total", {"reason": "terminated"}),
    ("revoked before", "celery_task_revoked_total", {"reason": "revoked"}),
    ("expired", "celery_task_revoked_total", {"reason": "expired"}),
    ("ended silently (Ignore)", "celery_task_silent_end_total", {}),
)
NOW: tuple[Row, ...] = (
    ("running", "celery_tasks_running", {}),
    ("waiting", "celery_tasks_waiting", {}),
    ("orphaned", "celery_tasks_orphaned", {}),
    ("ready in queues", "celery_queue_messages", {"state": "ready"}),
    ("workers lost", "celery_workers", {"state": "lost"}),
    ("starts missed", "celery_worker_starts_missed_total", {}),
    ("beats", "celery_beats", {}),
)


def places(stack: Stack) -> str:
    """Return where everything is, as lines for any output."""
    taken = stack.port and not stack.monitor_url.endswith(f":{stack.port}")
    notes = {
        "metrics": f"(port {stack.port} is taken)" if taken else "",
        "flower": f"user {FLOWER_USER}, password {stack.flower_password}",
    }
    return "\n".join(f"{name:<12} {url}  {notes.get(name, '')}".rstrip() for name, url in stack.urls.items())


def hints(stack: Stack) -> str:
    """Return what to try, as lines for any output."""
    pid = {name: child.pid for name, child in stack.services.items()}
    status = "" if stack.monitor_url.endswith(":9808") else f" --url {stack.monitor_url}"
    flower = "" if stack.flower_url == DEFAULT_URL else f" --flower-url {stack.flower_url}"
    login = f"CELERYSCOPE_FLOWER_AUTH={FLOWER_USER}:{stack.flower_password}"
    commands = (
        (f"kill -STOP -{pid['worker']}", "freeze a worker, lost after 60 s; with -CONT it goes on"),
        (f"kill -9 -{pid['reports']}", "kill one: lost, its runs orphaned; back after 100 s"),
        (f"kill {pid['beat']}", "stop beat: celery_beats falls to 0, overdue entries grow"),
    )
    width = max(len(command) for command, _ in commands)
    lines = [
        f"celeryscope status{status}",
        f"{login} celeryscope control pool-grow worker{flower}",
        *(f"{command:<{width}}  {text}" for command, text in commands),
    ]
    return "\n".join(lines) + "\n"


def screen(stack: Stack, page: Page | None) -> RenderableType:
    """Return the whole screen."""
    # On one line of 80; the ids that somebody needs are in the hints.
    services = Text(" ").join(
        Text(name, style="green" if child.running else "bold red") for name, child in stack.services.items()
    )
    parts: list[RenderableType] = [Text(places(stack)), services]
    if page is not None:
        parts.append(_numbers(page))
    parts += [Rule("try, in another terminal", align="left", style="dim"), Text(hints(stack).rstrip())]
    return Group(Rule("celeryscope demo · Ctrl-C ends it"), *parts)


def _numbers(page: Page) -> Table:
    # Two columns of rows: the whole screen fits a terminal of 80 × 24.
    shown = [(title, f"{page.total(name, **match):.0f}") for title, name, match in (*OUTCOMES, *NOW)]
    half = (len(shown) + 1) // 2
    table = Table.grid(padding=(0, 3))
    for _ in range(2):
        table.add_column()
        table.add_column(justify="right")
    for left, right in zip_longest(shown[:half], shown[half:], fillvalue=("", "")):
        table.add_row(*left, *right)
    return table
