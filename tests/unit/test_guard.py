"""The guard: our faults stay ours in a user's process, and are red in our tests."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from celeryscope.monitor import guard as guard_module
from celeryscope.monitor.guard import Guard, guarded


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """Each test starts as a process does: nothing logged, nothing counted."""
    monkeypatch.setattr(Guard, "_logged", {})
    Guard.errors.clear()
    yield
    Guard.errors.clear()


class Clock:
    """The monotonic clock of the guard, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(name="clock")
def _clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(guard_module, "time", clock)
    return clock


class Unspeakable(Exception):
    """An exception that cannot be shown."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


def test_in_tests_it_reraises():
    """Otherwise a bug of ours behind the guard would pass the suite."""
    with pytest.raises(ZeroDivisionError), Guard("step"):
        1 / 0  # noqa: B018
    assert Guard.errors["step"] == 0


RECEIVERS = """
import pytest
from celery.signals import task_received
from celeryscope.monitor.guard import Guard

def receiver(**_):
    with Guard("step"):
        1 / 0

@pytest.fixture(autouse=True)
def _connected():
    task_received.connect(receiver)
    yield
    task_received.disconnect(receiver)

def test_a_bug():
    task_received.send(sender=None)

@pytest.mark.guard_swallows
def test_about_the_guard():
    task_received.send(sender=None)

def test_nothing_of_it_is_left():
    task_received.disconnect(receiver)
    task_received.send(sender=None)
"""


def test_in_tests_it_reraises_through_celerys_signals(tmp_path):
    """`Signal.send` catches whatever a receiver raises and logs it: the tests' own fixture finds it there."""
    (tmp_path / "test_receivers.py").write_text(RECEIVERS)
    ours = ["-p", "conftest", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestUnknownMarkWarning"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(tmp_path), *ours, "-rEf", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "ZeroDivisionError" in result.stdout
    assert "ERROR test_receivers.py::test_a_bug" in result.stdout
    assert "3 passed, 1 error" in result.stdout, result.stdout


@pytest.mark.guard_swallows
def test_in_production_it_swallows_logs_and_counts(caplog):
    reached = False
    with Guard("step"):
        raise RuntimeError("our bug")
    reached = True
    assert reached
    assert Guard.errors["step"] == 1
    (record,) = caplog.records
    assert record.name == "celeryscope"
    assert record.levelno == logging.WARNING
    assert "step failed and was skipped" in caplog.text
    assert "our bug" in caplog.text


@pytest.mark.guard_swallows
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_what_is_addressed_to_the_host_passes(error):
    """Ctrl-C, warm shutdowns and the pools' own signals travel as BaseException."""
    with pytest.raises(error), Guard("step"):
        raise error
    assert Guard.errors["step"] == 0


@pytest.mark.guard_swallows
def test_a_broken_step_does_not_flood_the_log(caplog, clock):
    """One line a minute for each step; the count goes on."""
    for _ in range(100):
        with Guard("busy"):
            raise RuntimeError("again")
    with Guard("other"):
        raise RuntimeError("once")
    assert [record.args for record in caplog.records] == [("busy",), ("other",)]
    clock.now += guard_module.LOG_EVERY
    with Guard("busy"):
        raise RuntimeError("again")
    assert [record.args for record in caplog.records] == [("busy",), ("other",), ("busy",)]
    assert Guard.errors == {"busy": 101, "other": 1}


@pytest.mark.guard_swallows
def test_the_first_failure_is_logged_on_a_machine_just_booted(caplog, clock):
    """The monotonic clock starts near 0 there."""
    clock.now = 0.5
    with Guard("early"):
        raise RuntimeError("at boot")
    assert "at boot" in caplog.text


@pytest.mark.guard_swallows
def test_an_exception_that_cannot_be_shown_is_swallowed_too():
    with Guard("step"):
        raise Unspeakable
    assert Guard.errors["step"] == 1


@pytest.mark.guard_swallows
def test_a_log_handler_of_the_hosts_that_raises_is_not_our_ruin():
    """A logging set-up that raises (logging.raiseExceptions, a handler without a guard) must not turn on the host."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("disk full")

    handler = Broken()
    guard_module.logger.addHandler(handler)
    try:
        with Guard("step"):
            raise RuntimeError("our bug")
    finally:
        guard_module.logger.removeHandler(handler)
    assert Guard.errors == {"step": 1, "logging": 1}


@pytest.mark.guard_swallows
def test_a_guarded_function_gives_its_default_where_it_fails():
    @guarded("division", -1.0)
    def divide(a: float, b: float) -> float:
        """Divide."""
        return a / b

    assert divide(6, b=3) == 2
    assert divide(1, 0) == -1
    assert Guard.errors["division"] == 1
    assert divide.__name__ == "divide"
    assert divide.__doc__ == "Divide."


def test_no_error_costs_no_count():
    with Guard("step"):
        pass
    assert not Guard.errors
