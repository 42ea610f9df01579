"""Log lines of celeryscope's own processes: text or JSON on stderr, quiet, and without any secret."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback
from collections.abc import Collection
from typing import TYPE_CHECKING, Literal, TextIO

from .masking import HIDDEN, masked, spellings
from .printable import printable

if TYPE_CHECKING:
    from logging import LogRecord
    from types import TracebackType

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
ROOT = "celeryscope"
START = logging.getLogger("celeryscope.start")
"""For the one line that says what was started: shown at every level but `error`."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """`2026-11-21T16:30:00Z WARNING sources: lost the broker`, secrets masked."""

    converter = staticmethod(time.gmtime)

    def __init__(self, secrets: Collection[str] = ()) -> None:
        super().__init__("%(asctime)s %(levelname)s %(part)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        self.secrets = _hideable(secrets)

    def format(self, record: LogRecord) -> str:
        """Return the line, and the traceback where there is one."""
        record.part = _part(record)
        return _without(self.secrets, printable(super().format(record)))

    def formatMessage(self, record: LogRecord) -> str:  # noqa: N802 - the standard library's name
        """Return the line. What is quoted in it cannot begin a line that looks like one of ours."""
        return super().formatMessage(record).replace("\n", "\n  ")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the record's extras, and exception where there is one."""

    def __init__(self, secrets: Collection[str] = ()) -> None:
        super().__init__()
        self.secrets = _hideable(secrets)

    def format(self, record: LogRecord) -> str:
        """Return the object as one line."""
        content: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        content.update({key: value for key, value in vars(record).items() if key not in _STANDARD and key != "part"})
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return _without(self.secrets, printable(json.dumps(content, default=str, ensure_ascii=False)))


def configure(
    level: str, form: Literal["text", "json"], secrets: Collection[str] = (), stream: TextIO | None = None
) -> None:
    """Send this process's log to `stream` (stderr): celeryscope's from `level` on, other libraries' from warning on.

    `secrets` are passwords that no line may hold, wherever it comes from.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(TextFormatter(secrets) if form == "text" else JsonFormatter(secrets))
    _hidden.update(secrets)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.WARNING, LEVELS[level]))
    logging.getLogger(ROOT).setLevel(LEVELS[level])
    START.setLevel(logging.INFO if LEVELS[level] <= logging.WARNING else LEVELS[level])
    logging.captureWarnings(capture=True)


_hidden: set[str] = set()
"""All secrets that this process has been told of: for its last words, which no formatter may be there for."""


def hide(secrets: Collection[str]) -> None:
    """Keep further secrets out of the log that is configured, and out of what a crash prints."""
    _hidden.update(secrets)
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, (TextFormatter, JsonFormatter)):
            handler.formatter.secrets = _hideable({*handler.formatter.secrets, *secrets})


def cover_crashes() -> None:
    """Let errors that nobody expected, in any thread, reach stderr without secrets. For processes of ours alone."""

    def thread_ended(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is not SystemExit:
            thread = f"ended the thread {args.thread.name}" if args.thread else "ended a thread"
            _crashed(args.exc_type, args.exc_value, args.exc_traceback, thread)

    def ignored(args: sys.UnraisableHookArgs) -> None:
        where = getattr(args.object, "__qualname__", type(args.object).__qualname__)
        _crashed(args.exc_type, args.exc_value, args.exc_traceback, f"was ignored in {where}")

    sys.excepthook = _crashed
    threading.excepthook = thread_ended
    sys.unraisablehook = ignored


def _crashed(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None, what: str = "ended the process"
) -> None:
    error = kind() if error is None else error
    ours = any(isinstance(h.formatter, (TextFormatter, JsonFormatter)) for h in logging.getLogger().handlers)
    if ours and not issubclass(kind, KeyboardInterrupt):
        line = "an error that nobody expected %s"
        logging.getLogger(ROOT).critical(line, what, exc_info=(kind, error, trace))
        return
    text = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write(_without(_hideable(_hidden), printable(text)))


def _part(record: LogRecord) -> str:
    return record.name.removeprefix(ROOT + ".").removeprefix("monitor.")


def _hideable(secrets: Collection[str]) -> list[str]:
    # The longest first, so that a password that holds another one goes as a whole; short ones would eat plain words.
    written = {text for secret in secrets for text in spellings(secret)}
    return sorted((text for text in written if len(text) >= 4), key=len, reverse=True)


def _without(secrets: Collection[str], line: str) -> str:
    for secret in secrets:
        line = line.replace(secret, HIDDEN)
    return masked(line)
