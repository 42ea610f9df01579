"""The wire form of failures, and what makes two of them the same incident."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from celeryscope.alerts.failure import (
    FAILURE,
    LOST,
    RETRY,
    TIME_LIMIT,
    UNKNOWN_TASK,
    VERSION,
    Entry,
    Failure,
    encode_batch,
    fingerprint,
    normalised,
)


def test_a_batch_on_the_wire() -> None:
    """What is unknown is left out; what every reader needs is always there."""
    sample = Failure(FAILURE, "shop.charge", "ValueError", "no", queue="work", settings={"channel": "#a"})
    body = encode_batch([Entry("f" * 32, 3, 1.0, 2.5, sample)], id="abc", host="w@h", sent=3.0, dropped=2)
    assert json.loads(body) == {
        "v": VERSION,
        "id": "abc",
        "host": "w@h",
        "sent": 3.0,
        "dropped": 2,
        "entries": [
            {
                "fingerprint": "f" * 32,
                "count": 3,
                "first": 1.0,
                "last": 2.5,
                "sample": {
                    "kind": "failure",
                    "task": "shop.charge",
                    "exception": "ValueError",
                    "message": "no",
                    "queue": "work",
                    "retries": 0,
                    "gave_up": False,
                    "settings": {"channel": "#a"},
                },
            }
        ],
    }


def test_no_limit_and_a_limit_of_none_differ() -> None:
    assert Failure(FAILURE, "t", "E", max_retries=0).wire()["max_retries"] == 0
    assert "max_retries" not in Failure(FAILURE, "t", "E").wire()


def test_what_a_worker_imports_needs_celery_alone() -> None:
    """`install` with everything behind it, in a clean interpreter: nothing of the monitor's or the alerter's extras."""
    code = (
        "import sys, celery, celeryscope\n"
        "app = celery.Celery('shop', broker='memory://')\n"
        "celeryscope.install(app)\n"
        "import celeryscope.alerts.publisher\n"
        "heavy = {'msgspec', 'pydantic', 'httpx', 'rich', 'sqlalchemy', 'slack_sdk', 'prometheus_client', 'tenacity'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def mark(
    kind: str = FAILURE, task: str = "t", exception: str = "E", frame: str | None = "m:f", message: str = "x"
) -> str:
    return fingerprint(kind, task, exception, frame, message)


def test_the_same_incident() -> None:
    """The message does not matter where the place in the user's code is known."""
    assert mark(message="order 17") == mark(message="order 18")
    assert len(mark()) == 32


@pytest.mark.parametrize(
    "other", [{"task": "u"}, {"exception": "F"}, {"frame": "m:g"}, {"frame": None}, {"kind": RETRY}]
)
def test_another_incident(other: dict[str, str | None]) -> None:
    assert mark() != mark(**other)  # type: ignore[arg-type]


def test_without_a_place_the_message_tells() -> None:
    """Numbers and ids do not make a new incident; other words do."""
    assert mark(frame=None, message="timeout after 3 s") == mark(frame=None, message="timeout after 17 s")
    assert mark(frame=None, message="timeout") != mark(frame=None, message="refused")


@pytest.mark.parametrize("kind", [TIME_LIMIT, LOST, UNKNOWN_TASK])
def test_what_strikes_anywhere(kind: str) -> None:
    assert mark(kind, frame="a:b", message="1") == mark(kind, frame=None, message="other")


def test_memory_error_strikes_anywhere() -> None:
    assert mark(exception="MemoryError", frame="a:b") == mark(exception="MemoryError", frame="c:d")


@pytest.mark.parametrize(
    ("message", "normal"),
    [
        ("order 17 of 3", "order # of #"),
        ("at 0x7f00ab", "at #"),
        ("id 123e4567-e89b-12d3-a456-426614174000!", "id #!"),
        ("commit deadbeef01", "commit #"),
        ("no such card", "no such card"),
    ],
)
def test_normalised(message: str, normal: str) -> None:
    assert normalised(message) == normal
