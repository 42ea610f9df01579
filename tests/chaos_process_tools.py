"""What the tests of faults of our own processes share: a monitor to kill, its page, and what tasks wrote down."""

from __future__ import annotations

import random
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from alerting import batch, entry, publish, told
from celery import Celery
from celeryscope.alerts import queries
from celeryscope.alerts.store import Database
from celeryscope.demo.inbox import TOKEN, Inbox
from celeryscope.exporters.reading import Page
from chaos_tools import fetched
from helpers import Process, eventually, worker_argv

APPS = Path(__file__).resolve().parent / "apps"


class Scraped(Process):
    """A process of ours that serves a page."""

    def get(self, path: str) -> tuple[int, str]:
        """Return a page's status and text; (0, "") while nothing is served yet."""
        found = re.search(r"serves (http://\S+)/metrics", self.output)
        return fetched(found[1] + path) if found else (0, "")

    def page(self) -> Page:
        return Page(self.get("/metrics")[1])

    def ready(self) -> bool:
        return self.get("/-/ready")[0] == 200

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.popen.wait(10)

    def ended(self) -> str:
        """End it as an orchestrator does, and return what it said."""
        assert self.stop() == 0, self.output
        assert "Traceback" not in self.output
        return self.output


def monitor(folder: Path, broker: str, *options: str | Path, name: str = "monitor", ready: bool = True) -> Scraped:
    """A real `celeryscope monitor` that samples and saves often; ready when this returns, if so wished."""
    often = ("--state-save-interval", "0.2", "--sample-interval", "0.5")
    argv = [sys.executable, "-m", "celeryscope", "monitor", "--broker", broker, "--listen", "127.0.0.1:0"]
    lives = len(list(folder.glob(f"{name}-*.log")))
    process = Scraped([*argv, *often, *options], log=folder / f"{name}-{lives}.log", cwd=folder)
    return started(process) if ready else process


def started(process: Scraped) -> Scraped:
    """Wait until it serves and hears the broker."""
    try:
        process.wait_for("serves http", 60)
        eventually(process.ready, 60)
    except BaseException:
        process.stop()
        raise
    return process


class Site:
    """Somebody's Celery: workers of the app `exactly`, whose tasks write down what they really do."""

    def __init__(self, folder: Path, broker: str) -> None:
        self.folder = folder
        self.truth = folder / "truth"
        self.truth.touch()
        self.env = {"BROKER": broker, "TRUTH": str(self.truth), "PYTHONPATH": str(APPS)}
        self.app = Celery("producer", broker=broker, set_as_current=False)
        self.app.conf.task_send_sent_event = True

    def worker(self, name: str, env: Mapping[str, str] | None = None) -> Process:
        """A worker of the queue of its name; not waited for."""
        argv = worker_argv("exactly", "-E", "-P", "threads", "-c", "2", "-Q", name, "-n", f"{name}@h")
        log = self.folder / f"{name}.log"
        return Process(argv, log=log, cwd=self.folder, env={**self.env, **(env or {})})

    def send(self, task: str, count: int, queue: str) -> None:
        with self.app.connection_for_write() as connection:
            for _ in range(count):
                self.app.send_task(f"exactly.{task}", queue=queue, connection=connection)

    def count(self, kind: str, task: str) -> int:
        whole, _, _ = self.truth.read_text().rpartition("\n")  # the last line may be half written
        lines = map(str.split, whole.splitlines())
        return sum(what.partition(":")[0] == kind and name == f"exactly.{task}" for what, name, _ in lines)


@contextmanager
def site(folder: Path, broker: str) -> Iterator[Site]:
    found = Site(folder, broker)
    try:
        yield found
    finally:
        found.app.close()


def seen(page: Page, kind: str, task: str) -> float:
    return page.total(f"celery_task_{kind}_total", task=f"exactly.{task}")


def says(page: Page, name: str, worker: str) -> float | None:
    """One number of one worker; None where the page has none."""
    return page.largest(f"celery_worker_{name}", worker=f"{worker}@h")


def accounted(page: Page, worker: str, **counts: int) -> bool:
    """Whether the worker's own count, and the starts seen (by task) and missed of it, are exactly these."""
    missed = counts.pop("missed", 0)
    found: dict[str, float | None] = {task: seen(page, "started", task) for task in counts}
    for name in ("processed", "starts_missed", "starts_untracked"):
        found[name] = says(page, f"{name}_total", worker)
    told = {"processed": sum(counts.values()) + missed, "starts_missed": missed, "starts_untracked": 0}
    assert found == {**counts, **told}, found
    return True


def alerter(folder: Path, broker: str, inbox: Inbox, *options: str | Path, name: str = "alerter") -> Scraped:
    """A real `celeryscope alerter` that updates its messages at once, ready when this returns."""
    lives = len(list(folder.glob(f"{name}-*.log")))
    config = folder / "celeryscope.toml"
    config.touch()
    quick = ("--update-interval", "1", "--slack-base-url", inbox.api_url, "--slack-channel", "#general")
    argv = [sys.executable, "-m", "celeryscope", "alerter", "--config", config, "--broker", broker, *quick]
    process = Scraped(
        [*argv, "--listen", "127.0.0.1:0", *options],
        log=folder / f"{name}-{lives}.log",
        cwd=folder,
        env={"CELERYSCOPE_SLACK_TOKEN": TOKEN},
    )
    return started(process)


class Stream:
    """Failures of a few kinds all the time; some messages come twice, as from a worker that was in doubt."""

    def __init__(self, url: str, kinds: int = 5, seed: int = 1) -> None:
        self.url, self.kinds, self.dice = url, kinds, random.Random(seed)
        self.made: dict[str, int] = {}

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """Publish until the end of the context."""
        done = threading.Event()
        thread = threading.Thread(target=self._flow, args=(done,))
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _flow(self, done: threading.Event) -> None:
        while not done.wait(0.02):
            kind, count = f"f{self.dice.randrange(self.kinds)}", self.dice.randrange(1, 5)
            body = batch(entry(kind, count=count, task=f"shop.task{kind}"))
            publish(self.url, [body] * self.dice.choice([1, 1, 1, 2]))
            self.made[kind] = self.made.get(kind, 0) + count

    def told_once(self, inbox: Inbox) -> bool:
        """Whether people see each kind in one message, with all of its failures."""
        found, made = sorted(map(told, inbox.top())), sorted(self.made.values())
        assert found == made, f"{found} were told of {made}"
        return True


def stored(url: str) -> dict[str, int]:
    """What the incident store holds, by fingerprint."""
    database = Database(url, time.time)
    try:
        return {incident.fingerprint: incident.count for incident in queries.incidents(database, limit=1_000)}
    finally:
        database.engine.dispose()
