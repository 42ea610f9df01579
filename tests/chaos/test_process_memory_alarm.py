"""RabbitMQ's memory alarm blocks whoever publishes: the host does not notice us, and everything is told later."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from alerting import quick_alerter, told
from celery import Celery
from celeryscope.demo.inbox import Inbox
from celeryscope.exporters.reading import Page
from chaos_process_tools import Scraped, monitor, stored
from helpers import Process, RabbitServer, eventually, running, worker_argv

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
APP = """
import os, time
import celeryscope
from celery import Celery

app = Celery("alarmed", broker=os.environ["BROKER"])
app.conf.update(broker_connection_retry_on_startup=True, worker_hijack_root_logger=False, task_ignore_result=True)
celeryscope.install(app)

@app.task(bind=True)
def charge(self):
    while not os.path.exists(os.environ["GO"]):
        time.sleep(0.02)
    with open(os.environ["TRUTH"], "a") as truth:
        truth.write("x")
    raise ValueError("no money")
"""
BEFORE, DURING, AFTER = 5, 40, 5


class Alarm:
    """The memory alarm of a node, on and off."""

    def __init__(self, server: RabbitServer) -> None:
        self.server = server

    def on(self) -> None:
        self._watermark("0.00001")

    def off(self) -> None:
        self._watermark("0.4")

    def _watermark(self, fraction: str) -> None:
        # Not the one on PATH, which becomes somebody else where it is run as root.
        command = ["/usr/lib/rabbitmq/bin/rabbitmqctl", "-q", "set_vm_memory_high_watermark", fraction]
        subprocess.run(command, env={**os.environ, **self.server.env}, check=True, capture_output=True, timeout=60)


@pytest.fixture(name="alarm")
def _alarm(rabbit: RabbitServer) -> Iterator[Alarm]:
    alarm = Alarm(rabbit)
    yield alarm
    alarm.off()


class Till:
    """A worker whose tasks wait for a word, write down that they ran, and fail."""

    def __init__(self, folder: Path, url: str) -> None:
        (folder / "alarmed.py").write_text(APP)
        self.go, self.truth = folder / "go", folder / "truth"
        self.truth.touch()
        env = {"BROKER": url, "GO": str(self.go), "TRUTH": str(self.truth), "PYTHONPATH": str(folder)}
        argv = worker_argv("alarmed", "-P", "threads", "-c", "2", "-n", "till@h")
        self.process = Process(argv, log=folder / "worker.log", cwd=folder, env=env)
        self.app = Celery("producer", broker=url, set_as_current=False)
        self.app.conf.task_send_sent_event = True

    def charge(self, count: int) -> None:
        with self.app.connection_for_write() as connection:
            for _ in range(count):
                self.app.send_task("alarmed.charge", connection=connection)

    @property
    def ran(self) -> int:
        return self.truth.stat().st_size


def accounted(page: Page, ran: int) -> bool:
    """All of them by events and by the worker's own count; nothing is missed and nobody is lost."""
    for kind in ("sent", "received", "started", "failed"):
        assert page.total(f"celery_task_{kind}_total", task="alarmed.charge") == ran, kind
    assert page.total("celery_worker_processed_total", worker="till@h") == ran
    assert page.total("celery_worker_starts_missed_total") == page.total("celery_worker_starts_untracked_total") == 0
    assert page.by("state", name="celery_workers") == {"online": 1, "offline": 0, "lost": 0}
    return True


@pytest.mark.parametrize("seconds", [10.0, pytest.param(120.0, marks=pytest.mark.soak)])
def test_the_worker_works_on_and_everything_is_told_afterwards(
    seconds: float, rabbit: RabbitServer, alarm: Alarm, tmp_path: Path
) -> None:
    """Its hooks neither wait nor raise while nothing can be published; the monitor says that it hears nothing."""
    till = Till(tmp_path, rabbit.url)
    with (
        till.app,
        Inbox(["general"]).serving() as inbox,
        running(till.process) as worker,
        running(monitor(tmp_path, rabbit.url)) as watching,
        running(quick_alerter(tmp_path, rabbit.url, inbox)),
    ):
        worker.wait_for("ready.", 60)
        till.charge(BEFORE)
        till.go.touch()
        eventually(lambda: accounted(watching.page(), BEFORE), 40)
        eventually(lambda: inbox.top() and told(inbox.top()[0]) == BEFORE, 40)
        till.go.unlink()
        till.charge(DURING)
        eventually(lambda: watching.page().total("celery_task_sent_total", task="alarmed.charge") == BEFORE + DURING)
        through_the_alarm(seconds, alarm, till, watching)
        till.charge(AFTER)
        eventually(lambda: accounted(watching.page(), BEFORE + DURING + AFTER), 60)
        eventually(lambda: told(inbox.top()[0]) == BEFORE + DURING + AFTER, 60)
        assert len(inbox.top()) == 1
        assert list(stored(f"sqlite:///{tmp_path}/incidents.db").values()) == [BEFORE + DURING + AFTER]
        watching.ended()
        assert worker.output.count("failures wait, the broker does not take them") <= 1
        assert "celeryscope: error" not in worker.output


def through_the_alarm(seconds: float, alarm: Alarm, till: Till, watching: Scraped) -> None:
    alarm.on()
    began = time.monotonic()
    till.go.touch()
    eventually(lambda: till.ran == BEFORE + DURING, 40)
    eventually(lambda: not watching.ready(), 60)
    assert watching.page().total("celeryscope_connected") == 0
    eventually(lambda: time.monotonic() - began > seconds, 2 * seconds)
    alarm.off()
    eventually(watching.ready, 60)
