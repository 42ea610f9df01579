"""What users set about the reporting of failures: for the whole app by `install`, for one task by its `celeryscope`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .redaction import Redactor

logger = logging.getLogger("celeryscope")

Redact = Iterable[str] | Callable[[str], str]

SENT = {"channel": str, "severity": str, "mute": bool, "runbook": str}
"""Settings of a task that travel to the alerter, and their types."""
LOCAL = {"report_retries": bool, "report_throws": bool}
"""Settings of a task that the worker itself heeds; `include_args` is the third of them."""
LENGTH = 500


@dataclass(frozen=True)
class Options:
    """How one app reports its failures; checked when it is made.

    Raises:
        TypeError, ValueError: an option is of the wrong kind; the message names it and its value.
    """

    environment: str | None = None
    release: str | None = None
    include_args: bool = False
    report_retries: bool = False
    report_throws: bool = False
    notify_eager: bool = False
    user_packages: Iterable[str] = ()
    redact: Redact = ()
    redactor: Redactor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("environment", "release"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{name} must be a string, not {value!r}")
        for name in ("include_args", "report_retries", "report_throws", "notify_eager"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {getattr(self, name)!r}")
        object.__setattr__(self, "user_packages", _names("user_packages", self.user_packages))
        if callable(self.redact):
            redactor = Redactor(replace=self.redact)
        else:
            redactor = Redactor(keys=_names("redact", self.redact))
        object.__setattr__(self, "redactor", redactor)


def _names(option: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{option} must be a list of strings, not {value!r}")
    names = tuple(value)
    for name in names:
        if not isinstance(name, str) or not name:
            raise TypeError(f"{option} must be a list of strings; it holds {name!r}")
    return names


@dataclass(frozen=True)
class TaskSettings:
    """What one task says about its failures. None: as the app says. `include_args`: names, or all of them."""

    sent: Mapping[str, Any] = field(default_factory=dict)
    include_args: bool | frozenset[str] | None = None
    report_retries: bool | None = None
    report_throws: bool | None = None


def task_settings(task: str, raw: object) -> tuple[TaskSettings, list[str]]:
    """Read the attribute `celeryscope` of a task; return its settings and what is wrong with it, which is left out."""
    if raw is None:
        return TaskSettings(), []
    if not isinstance(raw, Mapping):
        return TaskSettings(), [f"task {task}: celeryscope must be a dict, not {type(raw).__name__}: ignored"]
    sent: dict[str, Any] = {}
    local: dict[str, Any] = {}
    wrong: list[str] = []
    for key, value in raw.items():
        wanted = SENT.get(key) or LOCAL.get(key)
        if key == "include_args":
            try:
                local[key] = value if isinstance(value, bool) else frozenset(_names(key, value))
            except TypeError as problem:
                wrong.append(f"task {task}: celeryscope: {problem}: ignored")
        elif wanted is None:
            known = ", ".join((*SENT, *LOCAL, "include_args"))
            wrong.append(f"task {task}: celeryscope has no setting {key!r}: ignored; there are {known}")
        elif not isinstance(value, wanted):
            wrong.append(f"task {task}: celeryscope[{key!r}] must be a {wanted.__name__}, not {value!r}: ignored")
        else:
            (sent if key in SENT else local)[key] = value[:LENGTH] if isinstance(value, str) else value
    return TaskSettings(sent, **local), wrong
