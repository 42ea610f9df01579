"""Log lines: their form, how quiet they are, and that no secret gets into them."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import warnings
from typing import TYPE_CHECKING

import pytest
from celeryscope.monitor import logs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger(logs.ROOT)
    before = (root.handlers[:], root.level, own.level, logs.START.level)
    yield
    root.handlers[:], root_level, own_level, start_level = before
    root.setLevel(root_level)
    own.setLevel(own_level)
    logs.START.setLevel(start_level)
    logging.captureWarnings(capture=False)


def lines(level: str, form: str = "text", secrets: tuple[str, ...] = ()) -> io.StringIO:
    stream = io.StringIO()
    logs.configure(level, form, secrets, stream)  # type: ignore[arg-type]
    return stream


def test_text_lines_have_time_level_part_and_message() -> None:
    stream = lines("info")
    logging.getLogger("celeryscope.monitor.sources").info("lost the broker for %d s", 3)
    time, rest = stream.getvalue().split(" ", 1)
    assert time.endswith("Z")
    assert rest == "INFO sources: lost the broker for 3 s\n"


def test_json_lines_are_objects_with_the_extras() -> None:
    stream = lines("info", "json")
    logging.getLogger("celeryscope.x").info("two\nlines", extra={"broker": "main"})
    content = json.loads(stream.getvalue())
    assert stream.getvalue().count("\n") == 1
    assert {key: content[key] for key in ("level", "logger", "message", "broker")} == {
        "level": "info",
        "logger": "celeryscope.x",
        "message": "two\nlines",
        "broker": "main",
    }


def test_quiet_by_default_but_for_the_start_line() -> None:
    """At `warning` the start line is shown and nothing else below a warning; at `error` not even that."""
    stream = lines("warning")
    logging.getLogger("celeryscope.x").info("detail")
    logging.getLogger("kombu").info("other libraries")
    logs.START.info("serving")
    assert stream.getvalue().count("\n") == 1
    assert "serving" in stream.getvalue()
    stream = lines("error")
    logs.START.info("serving")
    assert stream.getvalue() == ""


def test_debug_is_for_celeryscope_and_not_for_libraries() -> None:
    """Libraries log URLs and headers at debug level."""
    stream = lines("debug")
    logging.getLogger("celeryscope.x").debug("ours")
    logging.getLogger("kombu.transport").debug("theirs")
    assert "ours" in stream.getvalue()
    assert "theirs" not in stream.getvalue()


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_secret_leaves_in_any_form(form: str) -> None:
    """In the message, in an argument, in a traceback and in an extra."""
    stream = lines("debug", form, ("hunter2", "hunter2longer"))
    log = logging.getLogger("celeryscope.x")
    log.debug("plain hunter2longer and redis://:otherpw@host/0 and http://u:a%%40b@h")
    log.warning("argument %s", "amqp://user:otherpw@host", extra={"url": "redis://:otherpw@h"})
    try:
        raise RuntimeError("cannot use hunter2 at redis://:otherpw@host")
    except RuntimeError:
        log.exception("failed")
    assert "RuntimeError" in stream.getvalue()
    for secret in ("hunter2", "longer", "otherpw", "a%40b"):
        assert secret not in stream.getvalue()


def test_warnings_of_libraries_become_log_lines() -> None:
    stream = lines("warning")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("old way", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(capture=False)
    assert "old way" in stream.getvalue()


class _Empty(Exception):
    """False, and not made without an argument, as errors of libraries can be."""

    def __init__(self, said: str) -> None:
        super().__init__(said)

    def __len__(self) -> int:
        return 0


def test_a_crash_says_what_ended_and_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in ((sys, "excepthook"), (threading, "excepthook"), (sys, "unraisablehook")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # put back at the end
    logs.cover_crashes()
    stream = lines("warning", secrets=("hunter22",))
    try:
        raise _Empty("of hunter22")
    except _Empty as error:
        kind, trace = type(error), error.__traceback__
        sys.excepthook(kind, error, trace)
        threading.excepthook(threading.ExceptHookArgs((kind, error, trace, threading.Thread(name="sampler"))))
    text = stream.getvalue()
    assert "expected ended the process\n" in text
    assert "expected ended the thread sampler\n" in text
    assert text.count('raise _Empty("of ***")') == text.count("_Empty: of ***\n") == 2
