"""The class name of an exception, from what Celery's events say of it."""

from __future__ import annotations

import json
import re

from .labels import UNKNOWN

_CLASS = re.compile(r"[A-Za-z_][\w.]*")
_LAST_LINE = re.compile(r"^([A-Za-z_][\w.]*)(?:[:(]|$)")
_NOT_REGISTERED = re.compile(r"""NotRegistered\(['"](.{1,1000}?)['"],?\)$""", re.DOTALL)
_REJECT = re.compile(r"reject requeue=(True|False|1|0|None)", re.IGNORECASE)
# Pools that run tasks in the worker's own process report the control-flow exceptions themselves.
_RETRY = re.compile(r"Retry\(.{0,1000}?, ([A-Za-z_][\w.]*)\(", re.DOTALL)
_REJECT_LINE = re.compile(
    r"celery\.exceptions\.Reject: (?:\(.*, (True|False)\)|reject requeue=(True|False).*)$", re.DOTALL
)
_WITH_TRACEBACK = "ExceptionWithTraceback"


def exception_class(exception: str | None, traceback: bytes | None) -> str:
    """Return the class name for the label `exception`, `unknown` where nothing tells.

    Celery sends the repr. Where that is `ExceptionWithTraceback()` (hard time limits, killed children) the traceback's
    last line names the class.
    """
    if not exception:
        return UNKNOWN
    if _REJECT.match(exception):
        return "Reject"
    if exception.startswith(_WITH_TRACEBACK):
        line = _last_line(traceback)
        return line.partition(":")[0].partition("(")[0].rpartition(".")[2] if line else UNKNOWN
    if exception == "None":  # self.retry() without an exception
        return "Retry"
    if exception.startswith("Retry("):
        cause = _RETRY.match(exception)
        return cause[1].rpartition(".")[2] if cause else "Retry"
    found = _CLASS.match(exception)
    return found[0].rpartition(".")[2] or UNKNOWN if found else UNKNOWN


def unregistered_name(exception: str | None) -> str | None:
    """Return the task name in `NotRegistered('name')`: such a failure carries it nowhere else."""
    found = _NOT_REGISTERED.match(exception) if exception else None
    return found[1] if found else None


def rejected_requeue(exception: str | None, traceback: bytes | None) -> bool | None:
    """Return the requeue flag where a `task-failed` is a `Reject` in truth (Celery 5.7), else None."""
    if not exception:
        return None
    found = _REJECT.match(exception)
    if found:
        return found[1].lower() in ("true", "1")
    if exception.startswith(_WITH_TRACEBACK):
        found = _REJECT_LINE.match(_last_line(traceback))
        return "True" in found.groups() if found else None
    return None


def _last_line(traceback: bytes | None) -> str:
    """Return the line of a traceback (JSON) that begins with the class, and what follows it; empty without one."""
    if not traceback or len(traceback) > 1_000_000:
        return ""
    try:
        text = json.loads(traceback)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(text, str):
        return ""
    lines = text.rstrip().splitlines()
    # The class stands on the first unindented line after the last frame; the message may go on over further lines.
    frame = next((i for i in range(len(lines) - 1, -1, -1) if lines[i].startswith('  File "')), -1)
    for i, line in enumerate(lines[frame + 1 :], frame + 1):
        if _LAST_LINE.match(line):
            return "\n".join(lines[i:])
    return ""
