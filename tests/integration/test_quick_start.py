"""A newcomer's first hour: each celeryscope command of the README is really run, beside an app made as it says."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from celery import Celery
from celeryscope.demo.inbox import TOKEN, Inbox
from documented import commands
from helpers import ROOT, Process, RedisServer, eventually, free_port, running, worker_argv

if TYPE_CHECKING:
    from collections.abc import Iterator

    from documented import Command

pytestmark = [pytest.mark.system, pytest.mark.repository]

README = ROOT / "README.md"

TASKS = """

@app.task
def place_order(number):
    if number < 0:
        raise ValueError(f"no order has the number {number}")
"""


def told(start: str) -> Command:
    """Return the README's command that starts so."""
    (found,) = (c for c in commands(README) if " ".join(c.argv).startswith(start))
    return found


RUN = {
    "look": "celeryscope monitor --broker redis://localhost:6379/0",
    "check-up": "celeryscope doctor -A proj",
    "production": "celeryscope monitor --broker main=redis://",
    "slack": "celeryscope alerter --broker",
    "flower": "celeryscope flower -A proj",
    "control": "celeryscope control pool-grow celery@web-1",
}
"""The README's commands, by their starts, and the test below that runs each."""


def test_nothing_of_the_readme_is_left_out():
    ours = [" ".join(c.argv) for c in commands(README) if c.argv and c.argv[0] == "celeryscope"]
    assert [line for line in ours if not line.startswith(tuple(RUN.values()))] == []


@pytest.fixture(name="broker", scope="module")
def _broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("broker"))
    yield server
    server.stop()


@pytest.fixture(name="project", scope="module")
def _project(tmp_path_factory: pytest.TempPathFactory, broker: RedisServer) -> Path:
    """A folder with proj.py: the README's lines about install(app), and a task."""
    folder = tmp_path_factory.mktemp("project")
    block = re.search(r"```python\n(import celeryscope\n.*?)```", README.read_text(), re.DOTALL)
    assert block is not None
    code = block.group(1)
    assert "redis://localhost:6379/0" in code
    (folder / "proj.py").write_text(code.replace("redis://localhost:6379/0", broker.url) + TASKS)
    return folder


@pytest.fixture(name="app", scope="module")
def _app(project: Path, broker: RedisServer) -> Iterator[Celery]:
    """The project's worker runs; sends to it what a web process would."""
    app = Celery("producer", broker=broker.url, set_as_current=False)
    with running(
        Process(worker_argv("proj", "-c", "1", "-n", "celery@web-1"), log=project / "worker.log", cwd=project)
    ) as worker:
        worker.wait_for(" ready.", 60)
        yield app
    app.close()


def started(command: Command, name: str, project: Path, broker: RedisServer, **more: str) -> Process:
    """Start a command of the README with our broker, a port that is free and folders of our own."""
    second = broker.url.removesuffix("0") + "1"
    here = {
        "redis://localhost:6379/0": broker.url,
        "redis://broker:6379/0": broker.url,
        "amqp://rabbit:5672//": second,  # a RabbitMQ is started elsewhere: here it is about the command
        ":9808": "127.0.0.1:0",
        "/var/lib/celeryscope": str(project / f"{name}-state"),
    }
    argv = command.argv[1:]
    for example, ours in here.items():
        argv = [ours if word == example else word.replace("=" + example, "=" + ours) for word in argv]
    env = {**command.env, "CELERYSCOPE_LISTEN": "127.0.0.1:0", "CELERY_BROKER_URL": "", **more}
    return Process([sys.executable, "-m", "celeryscope", *argv], log=project / f"{name}.log", cwd=project, env=env)


def page(monitor: Process) -> str:
    """Return what a scrape of a monitor that serves says."""
    monitor.wait_for("serves http://", 60)
    url = re.search(r"serves (http://\S+/metrics)", monitor.output)
    assert url is not None
    with urllib.request.urlopen(url.group(1), timeout=10) as answer:
        return str(answer.read().decode())


def test_look(project: Path, broker: RedisServer, app: Celery):
    """The monitor beside the app shows its task; the screen in the terminal is there, too."""
    number = iter(range(10_000))

    def counted(monitor: Process) -> bool:
        app.send_task("proj.place_order", [next(number)])
        succeeded = r'^celery_task_succeeded_total\{.*task="proj\.place_order".*\} [1-9]'
        return re.search(succeeded, page(monitor), re.MULTILINE) is not None

    with running(started(told(RUN["look"]), "look", project, broker)) as monitor:
        eventually(lambda: counted(monitor), 60, 0.5)
        url = monitor.output.split("serves ", 1)[1].split("/metrics", 1)[0]
        screen = Process(
            [sys.executable, "-m", "celeryscope", "status"],
            log=project / "status.log",
            cwd=project,
            env={"CELERYSCOPE_STATUS_URL": url},
        )
        assert screen.popen.wait(60) in {0, 1}, screen.output
        assert "proj.place_order" in screen.output


def test_check_up(project: Path, broker: RedisServer, app: Celery):
    """It looks at the app and its worker, says something of use, and does not fail by itself."""
    with running(started(told(RUN["check-up"]), "doctor", project, broker)) as doctor:
        assert doctor.popen.wait(120) in {0, 1}, doctor.output
        assert "time limit" in doctor.output.lower()  # Celery's default: there is none
        assert "Traceback" not in doctor.output


def test_production(project: Path, broker: RedisServer):
    """Two brokers in one process, behind a web configuration, with a state directory."""
    (project / "web.yml").write_text("http_server_config: {headers: {X-Frame-Options: deny}}\n")
    with running(started(told(RUN["production"]), "production", project, broker)) as monitor:

        def both() -> bool:
            text = page(monitor)
            return all(f'celeryscope_connected{{broker="{name}"}} 1' in text for name in ("main", "mail"))

        eventually(both, 60, 0.5)
        assert monitor.stop() == 0
    assert (project / "production-state" / "state").exists()


def test_slack(project: Path, broker: RedisServer, app: Celery):
    """A task that fails becomes a message."""
    with Inbox(["celery"]).serving() as inbox:
        command = told(RUN["slack"])
        assert command.env["CELERYSCOPE_SLACK_CHANNEL"] == "#celery"
        token = {"CELERYSCOPE_SLACK_TOKEN": TOKEN, "CELERYSCOPE_SLACK_BASE_URL": inbox.api_url}
        with running(started(command, "alerter", project, broker, **token)) as alerter:
            app.send_task("proj.place_order", [-1])

            def message() -> bool:
                assert alerter.running(), alerter.output
                return any("proj.place_order" in posted.everything for posted in inbox.top())

            eventually(message, 90, 0.5)
        assert "ValueError" in json.dumps([posted.everything for posted in inbox.top()])


def test_live_control(project: Path, broker: RedisServer, app: Celery):
    """Flower behind a password, and a pool that grows by a command."""
    with flower(project, broker) as url:

        def grown() -> bool:
            control = started(told(RUN["control"]), "control", project, broker, CELERYSCOPE_FLOWER_URL=url)
            return control.popen.wait(60) == 0

        eventually(grown, 120, 1)  # Flower has to hear of the worker first
    assert "celery@web-1" in (project / "control.log").read_text()


@contextlib.contextmanager
def flower(project: Path, broker: RedisServer) -> Iterator[str]:
    for _ in range(5):
        port = free_port()
        more = {"CELERYSCOPE_FLOWER_LISTEN": f"127.0.0.1:{port}", "CELERY_BROKER_URL": broker.url}
        with running(started(told(RUN["flower"]), f"flower-{port}", project, broker, **more)) as process:
            url = f"http://127.0.0.1:{port}"
            eventually(lambda: answers(url) or not process.running(), 90, 0.2)  # noqa: B023
            if process.running():
                yield url
                return
        assert "Address already in use" in process.output, process.output
    raise RuntimeError("no port stays free")


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/healthcheck", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
