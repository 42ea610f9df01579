"""`celeryscope status`: what it shows, what it calls wrong, and what it says when there is no page."""

from __future__ import annotations

import http.server
import io
import json
import threading
from typing import TYPE_CHECKING

import httpx
import pytest
from celeryscope.cli import run
from celeryscope.exporters.reading import Page, UnreadableError, fetch
from celeryscope.exporters.report import Report, report
from celeryscope.exporters.status_screen import _age, render
from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = 1_000_000.0

HEALTHY = f"""
celeryscope_connected 1
celeryscope_event_lag_seconds 0.012
celeryscope_collector_success{{collector="queues"}} 1
celery_worker_up{{worker="w1@host"}} 1
celery_worker_lost{{worker="w1@host"}} 0
celery_worker_active_tasks{{worker="w1@host"}} 2
celery_worker_concurrency{{worker="w1@host"}} 4
celery_worker_processed_total{{worker="w1@host"}} 12345
celery_worker_starts_missed_total{{worker="w1@host"}} 7
celery_worker_last_heartbeat_timestamp_seconds{{worker="w1@host"}} {NOW - 3}
celery_worker_wedged{{worker="w1@host"}} 0
celery_queue_messages{{queue="default",state="ready"}} 1200
celery_queue_messages{{queue="default",state="unacked"}} 4
celery_queue_messages{{queue="default",state="scheduled"}} 2
celery_queue_oldest_message_age_seconds{{queue="default"}} 90
celery_queue_consumers{{queue="default"}} 1
celery_task_succeeded_total{{task="shop.pay",queue="default"}} 90
celery_task_succeeded_total{{task="shop.pay",queue="email"}} 5
celery_task_failed_total{{task="shop.pay",queue="default"}} 5
celery_task_succeeded_total{{task="shop.ok",queue="default"}} 1000
celery_task_failed_total{{task="shop.ok",queue="default"}} 0
celery_task_runtime_seconds_sum{{task="shop.ok",queue="default",outcome="succeeded"}} 250
celery_task_runtime_seconds_count{{task="shop.ok",queue="default",outcome="succeeded"}} 1000
celery_tasks_orphaned{{task="shop.ok",queue="default"}} 0
celery_task_sent_coverage_ratio{{task="shop.ok"}} 0.99
celery_beats{{app="shop"}} 1
celery_beat_last_dispatch_timestamp_seconds{{app="shop",entry="nightly"}} {NOW - 100}
celery_beat_next_due_timestamp_seconds{{app="shop",entry="nightly"}} {NOW + 7200}
celery_beat_overdue_seconds{{app="shop",entry="nightly"}} 0
celery_beat_missed_total{{app="shop",entry="nightly"}} 3
celery_beat_lateness_seconds_sum{{app="shop",entry="nightly"}} 2
celery_beat_lateness_seconds_count{{app="shop",entry="nightly"}} 8
celery_beat_entry_info{{app="shop",entry="nightly",task="t",kind="crontab",spec="30 2 * * *"}} 1
"""


def read(text: str, prefix: str = "") -> Report:
    return report(Page(text, prefix), NOW)


def shown(text: str, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(render(read(text), 15))
    return out.getvalue()


def test_a_healthy_page_has_no_problems() -> None:
    assert read(HEALTHY).problems == []


def test_rows_say_what_the_page_says() -> None:
    """Sums over queues, rates, and ages from timestamps."""
    result = read(HEALTHY)
    (worker,) = result.workers
    assert (worker.state, worker.active, worker.slots, worker.missed, worker.heartbeat_age) == ("online", 2, 4, 7, 3)
    (queue,) = result.queues
    assert (queue.ready, queue.unacked, queue.scheduled, queue.oldest, queue.consumers) == (1200, 4, 2, 90, 1)
    (entry,) = result.schedules
    assert (entry.entry, entry.last, entry.next, entry.missed) == ("shop/nightly", -100, 7200, 3)
    assert (entry.schedule, entry.state, entry.lateness) == ("daily at 02:30", "on time", 0.25)
    worst, best = result.tasks
    assert (worst.task, worst.finished, worst.failed, worst.failure_rate) == ("shop.pay", 100, 5, 0.05)
    assert (best.task, best.failure_rate, best.mean_runtime) == ("shop.ok", 0, 0.25)
    assert (result.trust.starts_missed, result.trust.lag, result.trust.sent_coverage) == (7, 0.012, 0.99)


@pytest.mark.parametrize(
    ("lines", "state"),
    [
        ("overdue_seconds{E} 3", "late"),
        ("overdue_seconds{E} 86399", "late"),
        ("overdue_seconds{E} 86400", "missed"),
        ("last_failure_timestamp_seconds{E} 9\nlast_success_timestamp_seconds{E} 8", "failing"),
        ("last_failure_timestamp_seconds{E} 8\nlast_success_timestamp_seconds{E} 9", "on time"),
        ("last_failure_timestamp_seconds{E} 9\noverdue_seconds{E} 3", "late"),
        ("never_ran{E} 1", "never ran"),
        ("never_ran{E} 1\noverdue_seconds{E} 3", "late"),
    ],
)
def test_a_schedules_state(lines: str, state: str) -> None:
    """Worst first; an entry that is overdue by more than the distance of its slots has missed one."""
    page = "".join(f"celery_beat_{line}\n" for line in lines.replace("E", 'app="shop",entry="nightly"').splitlines())
    (entry,) = read(HEALTHY.replace('overdue_seconds{app="shop",entry="nightly"} 0', "nothing 0") + page).schedules
    assert entry.state == state
    assert f" {state} " in shown(HEALTHY.replace('overdue_seconds{app="shop",entry="nightly"} 0', "nothing 0") + page)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("celeryscope_connected 0", "the monitor hears nothing from the broker: everything below is old"),
        ('celeryscope_connected{broker="b"} 0', "the monitor hears nothing from the broker b: everything below is old"),
        ("celeryscope_event_lag_seconds 31", "events arrive 31 s late"),
        ('celeryscope_collector_success{collector="queues"} 0', "the collector queues fails"),
        ('celery_worker_wedged{worker="w2"} 1', "worker w2 is wedged: its queues hold messages and it takes none"),
        ('celery_tasks_orphaned{task="t",queue="q"} 2', "2 run(s) of t lost their worker"),
        ('celery_beats{app="shop"} 1', "2 beats lead shop: its schedule runs several times"),
        ('celery_beats{app="other"} 0', "no beat is alive for other: its schedule stands still"),
        ('celery_beat_overdue_seconds{app="a",entry="e"} 61', "a/e is overdue by 61 s"),
        ('celery_beat_overdue_seconds{app="a",entry="e"} 60', None),
        ('celery_task_failed_total{task="t",queue="q"} 1000', None),
    ],
)
def test_each_problem_is_named(line: str, problem: str | None) -> None:
    """One more line on a healthy page adds exactly its own problem; failing tasks are not judged."""
    assert read(HEALTHY + line + "\n").problems == ([problem] if problem else [])


def test_lost_and_missing_workers_are_problems_and_goodbyes_are_not() -> None:
    gone = HEALTHY.replace('celery_worker_up{worker="w1@host"} 1', 'celery_worker_up{worker="w1@host"} 0')
    assert read(gone).problems == ["no worker is online"]
    lost = gone.replace('celery_worker_lost{worker="w1@host"} 0', 'celery_worker_lost{worker="w1@host"} 1')
    assert read(lost).problems[0] == "worker w1@host is lost: it fell silent without saying goodbye"
    other = 'celery_worker_up{worker="w2"} 0\ncelery_worker_lost{worker="w2"} 0\n'
    assert read(HEALTHY + other).problems == []


@pytest.mark.parametrize(
    ("lines", "problems"),
    [
        ("celeryscope_connected 1", ["no worker is online"]),
        (f"celeryscope_connected 1\nprocess_start_time_seconds {NOW - 14}", []),
        (f"celeryscope_connected 1\nprocess_start_time_seconds {NOW - 16}", ["no worker is online"]),
        ("celeryscope_connected 0", ["the monitor hears nothing from the broker: everything below is old"]),
    ],
)
def test_a_cluster_without_any_worker_is_a_problem(lines: str, problems: list[str]) -> None:
    """Nothing runs there; but a monitor that has only just begun, or hears nothing, cannot know it."""
    assert read(lines + "\n").problems == problems


def test_a_queue_that_nobody_reads_is_a_problem() -> None:
    text = HEALTHY.replace('celery_queue_consumers{queue="default"} 1', 'celery_queue_consumers{queue="default"} 0')
    assert read(text).problems == ["queue default holds 1200 message(s) and nobody consumes"]


def test_brokers_and_prefixes_are_understood() -> None:
    """With several brokers names carry theirs; a prefix is taken off."""
    result = read('x_celery_worker_up{broker="b",worker="w"} 1\n', prefix="x_")
    assert [row.worker for row in result.workers] == ["b/w"]


def test_the_screen_fits_80_columns_and_has_no_colour_without_a_terminal() -> None:
    text = HEALTHY.replace("shop.pay", "a.very.long.module.path." * 6 + "pay").replace("w1@host", "celery@" + "h" * 90)
    screen = shown(text)
    assert max(len(line) for line in screen.splitlines()) <= 80
    assert "\x1b" not in screen
    for number in ("5.0%", "12 345", "1 200", "90 s", "2 h", "daily at 02:30", "250 ms"):
        assert number in screen


def test_an_empty_page_shows_only_trust() -> None:
    screen = shown(f"process_start_time_seconds {NOW}\n")
    assert "worker" not in screen
    assert "event lag unknown" in screen


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0, "0 ms"),
        (0.0123, "12 ms"),
        (3, "3 s"),
        (90, "90 s"),
        (100, "1.67 min"),
        (7200, "2 h"),
        (4e5, "4.63 d"),
    ],
)
def test_times_are_short(seconds: float | None, text: str) -> None:
    assert _age(seconds) == text


def answering(status: int, body: str = "") -> httpx.MockTransport:
    return httpx.MockTransport(lambda _request: httpx.Response(status, text=body))


def test_a_page_that_cannot_be_had_is_one_reason() -> None:
    for transport, reason in [
        (answering(401), "wants a user and password"),
        (answering(500), "answers 500 Internal Server Error"),
    ]:
        with pytest.raises(UnreadableError, match=reason):
            fetch("http://host", transport=transport)
    with pytest.raises(UnreadableError, match="cannot be read"):
        fetch("nonsense://host")
    with pytest.raises(UnreadableError, match="is no Prometheus text"):
        Page("<html> {")


class Served(http.server.BaseHTTPRequestHandler):
    """A page behind basic auth."""

    text = HEALTHY

    def do_GET(self) -> None:
        allowed = self.headers.get("Authorization") == "Basic bWU6c2VjcmV0"  # me:secret
        self.send_response(200 if allowed and self.path == "/metrics" else 401)
        self.end_headers()
        self.wfile.write(self.text.encode() if allowed else b"")

    def log_message(self, *_args: object) -> None: ...


@pytest.fixture(name="served", scope="module")
def _served() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Served) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_the_exit_code_and_json_are_for_scripts(
    served: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 fine, 1 wrong, 2 unreadable; basic auth with the password from the environment."""
    monkeypatch.setenv("CELERYSCOPE_STATUS_PASSWORD", "secret")
    arguments = ["status", "--url", served, "--user", "me"]
    assert run([*arguments, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["problems"] == []
    assert content["tasks"][0]["task"] == "shop.pay"
    monkeypatch.setattr(Served, "text", HEALTHY + "celeryscope_event_lag_seconds 99\n")
    assert run(arguments) == 1
    assert "events arrive 99 s late" in capsys.readouterr().out
    monkeypatch.setenv("CELERYSCOPE_STATUS_PASSWORD", "wrong")
    assert run(arguments) == 2
    streams = capsys.readouterr()
    assert streams.err.startswith(f"celeryscope: error: --url: {served} wants a user and password")
    assert streams.err.count("\n") == 1
    assert streams.out == ""
