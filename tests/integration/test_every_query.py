"""Every query of every board and every rule, asked of a real Prometheus about real workers, beats and failures."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from alerting import alerter_process
from celery import Celery
from celeryscope.dashboards import rules
from celeryscope.dashboards.boards import all_boards
from celeryscope.dashboards.panels import PanelQuery, queries_of, substituted
from celeryscope.dashboards.recordings import recordings
from celeryscope.dashboards.rules_cli import outputs, write
from celeryscope.dashboards.thresholds import RulesSettings, defaults
from celeryscope.demo.inbox import Inbox
from celeryscope.exporters.reading import Page, fetch
from celeryscope.monitor import stamp
from helpers import Process, RedisServer, eventually, worker_argv
from watching import Prometheus

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

APPS = Path(__file__).resolve().parent.parent / "apps"
SLOW = 150
"""Seconds in which everything must have shown, on a busy machine."""
DURATIONS = {"__rate_interval": "1m", "__interval": "15s", "__range": "15m", "__range_s": "900"}
VARIABLES = ("broker", "queue", "task", "worker", "app", "entry")
ALL = dict.fromkeys(VARIABLES, "All") | DURATIONS
ONE = {
    "broker": "main", "queue": "default", "task": "story.any", "worker": "main@story", "app": "story",
    "entry": "failing", **DURATIONS,
}  # fmt: skip
TWO = {
    "broker": ["main", "other"], "queue": ["default", "doomed"], "task": ["story.any", "story.scheduled"],
    "worker": ["main@story", "busy@story"], "app": ["story", "other"], "entry": ["failing", "often"], **DURATIONS,
}  # fmt: skip
ENDS = ("ok", "ok", "ok", "fail", "retry", "retry", "give up", "reject", "requeue", "ignore", *["nap"] * 40)
"""What is sent again and again: rates are never 0 for long, and the queue is seldom empty."""


def settings() -> RulesSettings:
    """The shipped rules, less patient."""
    quick = ("worker_lost_for", "workers_saturated_for", "queue_growing_for", "queue_without_consumers_for")
    quick += ("oldest_task_for", "task_failure_for", "retry_storm_for", "task_stuck_for", "tasks_orphaned_for")
    quick += ("beat_duplicate_for", "schedule_failing_for")
    few = {"queue_growing_messages": "3", "task_failure_runs": "5", "retry_storm_retries": "2"}
    soon = {"oldest_task_age": "3s", "task_stuck_after": "3s", "recording_interval": "1s"}
    ratios = {"workers_saturated_ratio": "0.01", "retry_storm_ratio": "0.01", "task_failure_ratio": "0.01"}
    return defaults(**dict.fromkeys(quick, "1s"), **few, **soon, **ratios)


class Story:
    """A broker, three workers of which one is killed, beats of which two come after one, and what they send."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        (folder / "broker").mkdir()
        self.server = RedisServer(folder / "broker")
        stack.callback(self.server.stop)
        self.app = Celery("producer", broker=self.server.url, set_as_current=False)
        self.app.conf.update(task_send_sent_event=True)
        stamp.connect(self.app)
        stack.callback(self.app.close)
        self.env = {name: "" for name in os.environ if name.startswith("CELERY_")}
        self.env |= {"BROKER": self.server.url, "PYTHONPATH": str(APPS)}
        inbox = stack.enter_context(Inbox(["general"]).serving())
        (folder / "alerter").mkdir()
        self.alerter = self.kept(alerter_process(folder / "alerter", self.server.url, inbox))
        options = ("--broker", f"main={self.server.url}", "--listen", "127.0.0.1:0", "--state-dir", folder / "state")
        pace = ("--worker-timeout", "5", "--sample-interval", "1")
        self.monitor = self.run("monitor", sys.executable, "-m", "celeryscope", "monitor", *options, *pace)
        self.monitor.wait_for("serves http://", SLOW)
        eventually(lambda: self.total("celeryscope_connected") == 1, SLOW, 0.2)

    def kept(self, process: Process) -> Process:
        self.stack.callback(process.stop, 0.5)  # a run that lasts an hour is not waited for
        return process

    def run(self, name: str, *argv: str | Path) -> Process:
        log = self.folder / f"{name}.log"
        return self.kept(Process([str(arg) for arg in argv], log=log, cwd=self.folder, env=self.env))

    def worker(self, name: str, *options: str) -> Process:
        return self.run(name, *worker_argv("story", "-n", f"{name}@story", *options))

    def beat(self, name: str) -> Process:
        argv = (sys.executable, "-m", "celery", "-A", "story", "beat", "-s", self.folder / name, "--pidfile", "")
        return self.run(name, *argv)

    def send(self, end: str, queue: str = "default", task: str = "story.any", **options: Any) -> Any:
        args = () if task != "story.any" else (end,)
        return self.app.send_task(task, args, queue=queue, **options)

    def send_every_end(self) -> None:
        """Some of each."""
        for end in ENDS:
            self.send(end)
        self.send("", task="story.quiet")
        self.send("ok", expires=datetime.now(timezone.utc) - timedelta(seconds=5))

    def page(self) -> Page:
        return Page(fetch(f"http://{address(self.monitor)}/metrics"))

    def total(self, name: str, **labels: str) -> float:
        return self.page().total(name, **labels)

    def tell(self) -> Prometheus:
        """Let everything happen; return the Prometheus that looks on from the first failure on."""
        doomed = self.worker("doomed", "-Q", "doomed", "-c", "1")
        everyday = [self.worker("main", "-c", "2", "-Q", "default"), self.worker("busy", "-P", "threads", "-c", "1",
                    "-Q", "busy"), self.beat("beat-1")]  # fmt: skip
        for worker in (doomed, *everyday[:2]):
            worker.wait_for(" ready.", SLOW)
        # Its counter is 1 when Prometheus sees it first.
        self.send("", task="story.first")
        eventually(lambda: self.total("celery_task_retries_exhausted_total", task="story.first") == 1, SLOW, 0.2)
        prometheus = self.watched()
        for queue in ("doomed", "busy", "busy", "busy", "busy", *["later"] * 5):
            self.send("slow", queue, priority=3 if queue == "later" else 0)
        self.send("ok", countdown=3600)
        self.send_every_end()
        eventually(lambda: self.total("celery_tasks_running", queue="doomed") == 1, SLOW, 0.2)
        doomed.kill_group()
        revoked = self.send("slow")
        eventually(lambda: self.total("celery_tasks_running", queue="default", task="story.any") > 0, SLOW, 0.2)
        self.app.control.revoke(revoked.id, terminate=True, signal="SIGKILL")
        self.another_beat(everyday[2])
        return prometheus

    def another_beat(self, first: Process) -> None:
        """The beat ends, slots are missed, and then there are two."""
        eventually(lambda: self.total("celery_beat_dispatched_total", entry="often") > 1, SLOW, 0.2)
        first.send(signal.SIGTERM)
        missed = self.total("celery_beat_missed_total")
        eventually(lambda: self.total("celery_beat_missed_total") > missed, SLOW, 0.2)
        self.beat("beat-2")
        self.beat("beat-3")

    def watched(self) -> Prometheus:
        """Start Prometheus with the rules."""
        write(self.folder, outputs(settings()))
        jobs = {"celeryscope": address(self.monitor), "celeryscope-alerter": address(self.alerter)}
        built = [self.folder / name for name in (rules.RECORDINGS_FILE, rules.ALERTS_FILE)]
        prometheus = Prometheus(self.folder / "prometheus", jobs, built)
        self.stack.callback(prometheus.stop)
        return prometheus


def address(process: Process) -> str:
    """Where it serves its page."""
    return process.output.split("serves http://", 1)[1].split("/metrics", 1)[0]


@pytest.fixture(name="told", scope="module")
def _told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Story, Prometheus]]:
    with ExitStack() as stack:
        story = Story(tmp_path_factory.mktemp("story"), stack)
        yield story, story.tell()


def has_data(prometheus: Prometheus, expression: str, *, instant: bool) -> bool:
    if instant:
        return bool(prometheus.values(expression))
    series = prometheus.query_range(expression)
    return any(not math.isnan(float(value)) for one in series for _, value in one["values"])


def named(query: PanelQuery) -> str:
    return f"{query.board} / {query.panel} / {query.ref}"


NO_TROUBLE = "nothing of the kind happens here"
MAY_BE_EMPTY = {
    "celery-beat / Missed, duplicate, refused / C": "the broker takes every dispatch",
    "celery-beat / Overdue, the 12 worst / A": "two beats run: nothing is overdue for long",
    "celery-overview / Schedule entries overdue / A": "two beats run: nothing is overdue for long",
    "celery-task / Mean runtime, now and a week ago / B": "there was no last week",
    "celery-tasks / Negative waits, per second / A": "one machine has one clock",
    "celery-workers / Workers whose tasks are not seen / A": "all events are on",
    "celery-workers / Workers whose tasks are not seen / B": "no events are lost",
    "celeryscope-monitor / Events that could not be used, per second / A": NO_TROUBLE,
    "celeryscope-monitor / Live tasks in the table / B": "the table is not full",
    "celeryscope-monitor / What could not be learned / A": NO_TROUBLE,
}
"""Queries that need not show anything, and why. Every other one must."""
MAY_BE_EMPTY_FOR_ONE = {
    **MAY_BE_EMPTY,
    "celery-beat / Failing or never run / B": "the entry chosen has run",
    "celery-beat / The schedule / D": "the entry chosen has never succeeded",
    "celery-tasks / Orphaned runs / A": "the orphan's queue is another one",
    "celery-tasks / Orphaned runs / B": "the orphan's queue is another one",
}
MAY_BE_EMPTY_FOR_TWO = {**MAY_BE_EMPTY, "celery-beat / Failing or never run / B": "the entries chosen have run"}
MAY_BE_SILENT = {
    **dict.fromkeys(("NoWorkers", "WorkerWedged", "EventsOff"), "the workers that are left are well"),
    **dict.fromkeys(("BeatDown", "BeatNotTicking", "ScheduleLate"), "two beats run and tick"),
    **dict.fromkeys(("MonitorDown", "MonitorLagging", "AlerterDown", "FailuresWaiting"), NO_TROUBLE),
    "DispatchFailed": "the broker takes every dispatch",
    "TaskStartsMissed": "no events are lost",
    "RuntimeRegressed": "there was no last week",
    "SlackUndeliverable": "Slack takes every message",
}
"""Alerts whose expressions need not find anything, and why; that they can fire is shown in test_rules.py."""


def until_all_show(story: Story, prometheus: Prometheus, wanted: dict[str, tuple[str, bool]]) -> None:
    """Ask every query, while the story goes on, until each has shown data once; `wanted`: name → query, instant."""

    def missing() -> dict[str, tuple[str, bool]]:
        story.send_every_end()
        for name, (expression, instant) in list(wanted.items()):
            if has_data(prometheus, expression, instant=instant):
                del wanted[name]
        return wanted

    def nothing_missing() -> bool:
        assert missing() == {}
        return True

    eventually(nothing_missing, SLOW, 3)


def test_the_first_failure_ever_alerts(told: tuple[Story, Prometheus]) -> None:
    """`increase()` sees nothing in a series that is born at 1; the alert fires all the same."""
    _, prometheus = told
    series = 'celery_task_retries_exhausted_total{task="story.first"}'
    alert = 'ALERTS{alertname="RetriesExhausted", task="story.first", alertstate="firing"}'
    eventually(lambda: prometheus.values(alert) == [1], SLOW, 0.5)
    eventually(lambda: prometheus.values(f"increase({series}[5m])") == [0], SLOW, 0.5)


def test_the_first_failure_ever_is_on_the_board(told: tuple[Story, Prometheus]) -> None:
    """A class of exception that was never seen before shows with its first failure."""
    story, prometheus = told
    (board,) = [board for board in all_boards() if board.uid == "celery-tasks"]
    panel = "Exceptions in the time shown"
    (query,) = [query for query in queries_of(board) if query.panel == panel]
    story.send("fail in a new way")
    thrown = 'celery_task_exceptions_total{exception="LookupError"}'
    shown = f"({substituted(query.expr, ALL)}) and on (exception) {thrown}"
    eventually(lambda: prometheus.values(shown) == [1], SLOW, 0.5)
    eventually(lambda: prometheus.values(f"increase({thrown}[15m])") == [0], SLOW, 0.5)


@pytest.mark.parametrize(
    ("values", "may_be_empty"),
    [(ALL, MAY_BE_EMPTY), (ONE, MAY_BE_EMPTY_FOR_ONE), (TWO, MAY_BE_EMPTY_FOR_TWO)],
    ids=["all", "one", "two"],
)
def test_every_panel(
    told: tuple[Story, Prometheus], values: dict[str, str | Sequence[str]], may_be_empty: dict[str, str]
) -> None:
    queries = {named(query): query for board in all_boards() for query in queries_of(board)}
    asked = {name: (substituted(query.expr, values), query.instant) for name, query in queries.items()}
    assert set(may_be_empty) <= set(asked)
    for name in may_be_empty:
        has_data(told[1], asked[name][0], instant=asked[name][1])  # no error, whatever it shows
        del asked[name]
    until_all_show(*told, asked)


def test_every_rule(told: tuple[Story, Prometheus]) -> None:
    shipped, asked = rules.groups(settings()), {}
    for alert in (alert for group in shipped for alert in group.alerts):
        if alert.name in MAY_BE_SILENT:
            told[1].query(alert.expr)
        else:
            asked[f"{alert.name} {alert.extra}"] = (alert.expr, True)
    asked |= {helper.record: (helper.expr, True) for group in shipped for helper in group.helpers}
    asked |= {recording.record: (recording.expr, True) for recording in recordings()}
    until_all_show(*told, asked)
    fires = {alert.name for alert in rules.alerts(settings())} - set(MAY_BE_SILENT)
    eventually(lambda: fires <= told[1].firing(), SLOW, 0.5)
