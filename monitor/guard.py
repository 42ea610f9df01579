"""The one guard around our own code inside a user's worker, beat or web process: it logs, counts and never raises.

Put it around our small steps and never around the user's call (DESIGN §1.1). It needs the standard library alone.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, ParamSpec, TypeVar

if TYPE_CHECKING:
    from types import TracebackType

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("celeryscope")

LOG_EVERY = 60.0
"""Seconds between two log lines about the same step: a broken step in a busy worker must not flood its log."""


class Guard:
    """A context manager that swallows every `Exception` of our own step `what`.

    `KeyboardInterrupt`, `SystemExit` and the pools' own `BaseException`s belong to the host and pass through.
    """

    errors: ClassVar[Counter[str]] = Counter()
    """How often each step failed, for tests and for the probes' own reports."""

    reraise = False
    """True in our tests, so that a bug behind the guard turns the suite red."""

    # Shared by the whole process and without a lock: a lock held during a fork would hang the user's pool child, and
    # the worst that a race costs is a second log line.
    _logged: ClassVar[dict[str, float]] = {}

    __slots__ = ("what",)

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        if self.reraise:
            return False
        self._note(error)
        return True

    def _note(self, error: Exception) -> None:
        self.errors[self.what] += 1
        now = time.monotonic()
        if now - self._logged.get(self.what, -LOG_EVERY) < LOG_EVERY:
            return
        self._logged[self.what] = now
        try:
            logger.warning("celeryscope: %s failed and was skipped", self.what, exc_info=error)
        except Exception:  # noqa: BLE001 - an exception whose repr raises, or a broken log handler of the host's
            self.errors["logging"] += 1


def guarded(what: str, default: R) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function of ours that the host calls: where it fails, it returns `default`."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def safe(*args: P.args, **kwargs: P.kwargs) -> R:
            with Guard(what):
                return function(*args, **kwargs)
            return default

        return safe

    return decorate
