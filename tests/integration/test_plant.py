"""`celeryscope monitor` beside real workers that are stopped, killed, silenced and wedged: what its page says."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from celeryscope.exporters.reading import Page
from celeryscope.monitor import stamp
from helpers import Process, RedisServer, eventually, running, worker_argv

APPS = Path(__file__).resolve().parent.parent / "apps"
TIMEOUT = 6
"""--worker-timeout: seconds."""
SLOW = 60
"""Seconds in which everything must have shown on the page, on a busy machine."""


class Plant:
    """A broker, a monitor, a producer, and workers as they are wanted."""

    def __init__(self, folder: Path, server: RedisServer) -> None:
        self.folder = folder
        self.gate = folder / "gate"
        self.env = {name: "" for name in os.environ if name.startswith("CELERY_")}
        self.env |= {"BROKER": server.url, "GATE": str(self.gate), "PYTHONPATH": str(APPS)}
        self.app = Celery("producer", broker=server.url, set_as_current=False)
        self.app.conf.update(task_send_sent_event=True)
        stamp.connect(self.app)
        self.workers: dict[str, Process] = {}
        options = ("--listen", "127.0.0.1:0", "--broker", server.url, "--state-dir", str(folder / "state"))
        pace = ("--worker-timeout", str(TIMEOUT), "--sample-interval", "1")
        argv = [sys.executable, "-m", "celeryscope", "monitor", *options, *pace]
        self.monitor = Process(argv, log=folder / "monitor.log", cwd=folder, env=self.env)
        self.monitor.wait_for("serves http://", SLOW)
        self.url = self.monitor.output.split("serves ", 1)[1].split("/metrics", 1)[0]

    def start(self, name: str, *options: str, **env: str) -> Process:
        """Start a worker with the node name `name@plant` that consumes from the queue `name`; do not wait for it."""
        argv = worker_argv("plant", "-n", f"{name}@plant", "-Q", name, *options)
        self.workers[name] = Process(argv, log=self.folder / f"{name}.log", cwd=self.folder, env=self.env | env)
        return self.workers[name]

    def send(self, queue: str, task: str = "quick", n: int = 1) -> None:
        for _ in range(n):
            self.app.send_task(task, queue=queue)

    def page(self) -> Page:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            return Page(answer.read().decode())

    def numbers(self, kind: str, label: str, value: str, *names: str) -> tuple[float | None, ...]:
        """Return one sample of each metric `celery_{kind}_{name}`, None where there is none."""
        page = self.page()
        return tuple(page.by(label, name=f"celery_{kind}_{name}").get(value) for name in names)

    def of_worker(self, name: str, *names: str) -> tuple[float | None, ...]:
        return self.numbers("worker", "worker", f"{name}@plant", *names)

    def of_queue(self, name: str, *names: str) -> tuple[float | None, ...]:
        return self.numbers("queue", "queue", name, *names)

    def ready(self, queue: str) -> float:
        return self.page().total("celery_queue_messages", queue=queue, state="ready")

    def tasks(self, metric: str, queue: str) -> float:
        return self.page().total(f"celery_{metric}", queue=queue)

    def until(self, probe: object, wanted: object) -> None:
        """Wait until the probe says what is wanted."""

        def same() -> bool:
            found = probe()  # type: ignore[operator]
            assert found == wanted, f"{found} instead of {wanted}"
            return True

        eventually(same, SLOW, 0.5)


@pytest.fixture(name="plant", scope="module")
def _plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    folder = tmp_path_factory.mktemp("plant")
    (folder / "broker").mkdir()
    server = RedisServer(folder / "broker")
    try:
        plant = Plant(folder, server)
        with running(plant.monitor), contextlib.ExitStack() as workers:
            for name, options in (("mail", "-P threads -c 3"), ("kill", "-c 2"), ("silent", "-P solo")):
                env = {"EVENTS": "off"} if name == "silent" else {}
                workers.enter_context(running(plant.start(name, *options.split(), **env)))
            workers.enter_context(running(plant.start("wedged", "-P", "solo", WEDGED="1")))
            for process in plant.workers.values():
                process.wait_for(" ready.", SLOW)
            yield plant
            assert "Traceback" not in plant.monitor.output
        plant.app.close()
    finally:
        server.stop()


@pytest.mark.timeout(300)
def test_a_queue_backs_up_and_ages_while_its_worker_is_stopped_and_recovers(plant: Plant) -> None:
    """It says goodbye with a task running, which ends later: it is offline, never lost, and nothing is orphaned."""
    with running(plant.workers["mail"]) as worker:
        plant.until(lambda: plant.of_worker("mail", "up", "lost", "concurrency"), (1, 0, 3))
        plant.until(lambda: plant.of_queue("mail", "consumers", "slots", "busy_slots"), (1, 3, 0))
        plant.send("mail", "gated")
        plant.until(lambda: plant.of_queue("mail", "slots", "busy_slots"), (3, 1))
        worker.popen.terminate()
        plant.until(lambda: plant.of_worker("mail", "up", "lost"), (0, 0))
        plant.gate.touch()
        assert worker.popen.wait(SLOW) == 0
    plant.until(lambda: plant.tasks("task_succeeded_total", "mail"), 1)
    plant.until(lambda: plant.of_queue("mail", "consumers", "slots"), (0, 0))
    plant.send("mail", n=5)
    plant.until(lambda: plant.ready("mail"), 5)
    first = eventually(lambda: plant.of_queue("mail", "oldest_message_age_seconds")[0], SLOW)
    # So long that the end of its last task would have made it a lost one.
    eventually(lambda: (plant.of_queue("mail", "oldest_message_age_seconds")[0] or 0) > first + TIMEOUT + 1, SLOW, 0.5)
    assert plant.of_worker("mail", "up", "lost", "active_tasks") == (0, 0, 0)
    assert plant.tasks("tasks_orphaned", "mail") == 0
    with running(plant.start("mail", "-P", "threads", "-c", "2")):
        plant.until(lambda: plant.of_worker("mail", "up", "lost", "concurrency"), (1, 0, 2))
        plant.until(lambda: (plant.ready("mail"), *plant.of_queue("mail", "oldest_message_age_seconds")), (0, 0))
        plant.until(lambda: plant.of_queue("mail", "consumers", "slots"), (1, 2))
        plant.until(lambda: plant.tasks("task_succeeded_total", "mail"), 6)
        check_untracked(plant)


def check_untracked(plant: Plant) -> None:
    """Tasks with `send_events=False`, among others: their starts are known, are no loss, and leave nothing behind."""
    for _ in range(3):
        plant.send("mail", "quiet")
        plant.send("mail")

    def untracked() -> tuple[float | None, ...]:
        return plant.of_worker("mail", "starts_untracked_total", "starts_missed_total", "events_enabled")

    plant.until(untracked, (3, 0, 1))


@pytest.mark.timeout(300)
def test_a_killed_worker_is_lost_stays_on_the_page_and_its_task_is_orphaned_until_redelivered(plant: Plant) -> None:
    plant.gate.unlink(missing_ok=True)
    with running(plant.workers["kill"]) as worker:
        plant.until(lambda: plant.of_worker("kill", "up", "lost", "concurrency"), (1, 0, 2))
        plant.send("kill", "gated")
        plant.until(lambda: plant.tasks("tasks_running", "kill"), 1)
        worker.kill_group()
    plant.until(lambda: plant.of_worker("kill", "up", "lost", "active_tasks", "wedged"), (0, 1, 0, 0))
    assert plant.page().total("celery_workers", state="lost") == 1
    assert plant.of_worker("kill", "last_heartbeat_timestamp_seconds")[0] > time.time() - 300
    assert plant.tasks("tasks_running", "kill") == 0
    assert plant.tasks("tasks_orphaned", "kill") == 1
    assert plant.tasks("task_oldest_orphan_seconds", "kill") >= TIMEOUT - 1
    plant.until(lambda: plant.page().total("celery_queue_messages", queue="kill", state="unacked"), 1)
    plant.gate.touch()
    with running(plant.start("kill", "-c", "1")):
        plant.until(lambda: plant.of_worker("kill", "up", "lost", "concurrency"), (1, 0, 1))
        plant.until(lambda: plant.tasks("task_succeeded_total", "kill"), 1)
        plant.until(lambda: (plant.tasks("tasks_orphaned", "kill"), plant.tasks("tasks_running", "kill")), (0, 0))
        plant.until(lambda: plant.page().total("celery_queue_messages", queue="kill"), 0)
        assert plant.tasks("task_started_total", "kill") == 2


@pytest.mark.timeout(300)
def test_a_worker_whose_events_are_off_is_reported_as_such_and_not_as_loss(plant: Plant) -> None:
    def noticed() -> bool:
        plant.send("silent")
        return plant.of_worker("silent", "up", "events_enabled", "starts_missed_total") == (1, 0, 0)

    eventually(noticed, SLOW, 1.0)
    plant.until(lambda: plant.of_worker("silent", "concurrency"), (1,))


@pytest.mark.timeout(300)
def test_a_worker_that_is_alive_and_takes_nothing_is_wedged(plant: Plant) -> None:
    plant.until(lambda: plant.of_worker("wedged", "up", "concurrency", "wedged"), (1, 1, 0))
    plant.send("wedged")
    plant.until(lambda: plant.of_worker("wedged", "up", "wedged"), (1, 1))
    assert plant.ready("wedged") == 1
    with plant.app.connection() as connection:
        connection.default_channel.queue_purge("wedged")
    plant.until(lambda: plant.of_worker("wedged", "up", "wedged"), (1, 0))
