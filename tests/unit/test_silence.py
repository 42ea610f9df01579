"""When silence is worth a warning, and what the warning says."""

from __future__ import annotations

from celeryscope.monitor.events import TaskEvent, WorkerEvent
from celeryscope.monitor.silence import Silence


def beat(processed: int | None, hostname: str = "celery@a") -> WorkerEvent:
    return WorkerEvent(type="worker-heartbeat", hostname=hostname, timestamp=1.0, processed=processed)


def task(kind: str) -> TaskEvent:
    return TaskEvent(type=kind, hostname="celery@a", timestamp=1.0, uuid="u")  # type: ignore[arg-type]


def test_no_event_at_all_is_one_warning_after_the_time_given() -> None:
    """Another database, another prefix, no worker: the monitor cannot tell, so it names them."""
    silence = Silence(60)
    assert silence.warning(59) is None
    text = silence.warning(60)
    assert text
    assert "no event of any worker within 60 s" in text
    assert silence.warning(61) is None


def test_a_client_alone_does_not_end_the_silence_of_workers() -> None:
    """task-sent comes from clients."""
    silence = Silence(60)
    silence.hear([task("task-sent")])
    assert silence.warning(60)


def test_idle_workers_are_fine() -> None:
    """Heartbeats whose count of started tasks stands still say that there is nothing to report."""
    silence = Silence(60)
    silence.hear([beat(5), beat(5), beat(None), beat(5)])
    assert silence.warning(1000) is None


def test_workers_that_run_tasks_and_do_not_say_so_are_named() -> None:
    """The usual mistake: no -E. One step of the count may be a heartbeat that overtook the task's events."""
    silence = Silence(60)
    silence.hear([beat(5), beat(6)])
    assert silence.warning(60) is None
    silence.hear([beat(7)])
    text = silence.warning(60)
    assert text
    assert "worker celery@a runs tasks and sends no task events" in text
    assert "-E" in text
    assert silence.warning(120) is None


def test_a_restarted_worker_counts_from_zero() -> None:
    """A drop is not growth."""
    silence = Silence(60)
    silence.hear([beat(9), beat(0), beat(0)])
    assert silence.warning(60) is None


def test_the_first_task_event_ends_the_watch() -> None:
    """From then on the worker watch judges."""
    silence = Silence(60)
    silence.hear([beat(5), beat(6), beat(7), task("task-started")])
    assert silence.over
    assert silence.warning(1000) is None


def test_memory_is_bounded() -> None:
    """Worker names that never repeat do not pile up."""
    silence = Silence(60)
    silence.hear([beat(1, f"celery@{number}") for number in range(5000)])
    assert len(silence._processed) == 1000
