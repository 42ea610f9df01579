"""A newcomer's first hour: each celeryscope command of README and docs is really run, beside an app made as it says."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fake_grafana
import pytest
from celery import Celery
from celeryscope.demo.inbox import TOKEN, Inbox
from documented import PAGES, commands
from fake_grafana import TOKEN as GRAFANA_TOKEN
from helpers import ROOT, Process, RedisServer, eventually, free_port, running, worker_argv

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from documented import Command

pytestmark = [pytest.mark.system, pytest.mark.repository]

README = ROOT / "README.md"

TASKS = """

@app.task
def place_order(number):
    if number < 0:
        raise ValueError(f"no order has the number {number}")
"""


def told(start: str, page: str = "README.md") -> Command:
    """Return the page's command that starts so."""
    (found,) = (c for c in commands(ROOT / page) if " ".join(c.argv).startswith(start))
    return found


RUN = {
    "look": "celeryscope monitor --broker redis://localhost:6379/0",
    "check-up": "celeryscope doctor -A proj",
    "production": "celeryscope monitor --broker main=redis://",
    "slack": "celeryscope alerter --broker",
    "flower": "celeryscope flower -A proj",
    "control": "celeryscope control pool-grow celery@web-1",
    "rules": "celeryscope rules build --out",
    "boards": "celeryscope dashboards push --grafana-url",
}
"""The README's commands, by their starts, and the test below that runs each."""

RUN_OF_DOCS = {
    "celeryscope alerter --check": "test_slack",
    "celeryscope alerter --test-message": "test_slack",
    "celeryscope alerter --state-dir": "test_slack, as the README has it",
    "celeryscope incidents ": "test_slack",
    "celeryscope status": "test_look",
    "celeryscope doctor -A proj --url": "test_look",
    "celeryscope monitor --state-dir": "test_left_alone",
    "celeryscope monitor --broker prod=redis://…": "test_production: this one has an ellipsis",
    "celeryscope dashboards build": "test_boards",
    "celeryscope demo": "tests/e2e/test_demo.py",
}
"""Those of docs that the README does not have, and the test that runs each."""


def test_no_command_is_left_out():
    """Completion scripts, which a shell reads, are in tests/unit/test_doc_commands.py."""
    known = {page: tuple(RUN.values()) + (tuple(RUN_OF_DOCS) if page != README else ()) for page in PAGES}
    for page, starts in known.items():
        ours = [c for c in commands(page) if c.argv[:1] == ["celeryscope"] and "_CELERYSCOPE_COMPLETE" not in c.env]
        assert [c.line for c in ours if not " ".join(c.argv).startswith(starts)] == [], page


RUN_WITH_MONITOR = "celeryscope doctor -A proj --url"


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


def started(
    command: Command,
    name: str,
    project: Path,
    broker: RedisServer,
    instead: Mapping[str, str] | None = None,
    **more: str,
) -> Process:
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
    for example, ours in {**here, **(instead or {})}.items():
        argv = [ours if word == example else word.replace("=" + example, "=" + ours) for word in argv]
    env = {**command.env, "CELERYSCOPE_LISTEN": "127.0.0.1:0", "CELERY_BROKER_URL": "", **more}
    return Process([sys.executable, "-m", "celeryscope", *argv], log=project / f"{name}.log", cwd=project, env=env)


def ended(command: Command, name: str, project: Path, broker: RedisServer, *args: Any, **more: str) -> str:
    """Run a command that ends by itself, and well; return what it said."""
    with running(started(command, name, project, broker, *args, **more)) as process:
        assert process.popen.wait(120) == 0, process.output
        return process.output


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
        # The check-up asks the monitor, too, where it is told where it is.
        command = told(RUN_WITH_MONITOR, "docs/doctor.md")
        with running(started(command, "doctor-url", project, broker, {"http://127.0.0.1:9808": url})) as doctor:
            assert doctor.popen.wait(120) in {0, 1}, doctor.output
            assert "Traceback" not in doctor.output


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
    with Inbox(["celery", "alerts"]).serving() as inbox:
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
        # As docs/slack.md has it: a look before the start, a message to try it, and what to do with incidents.
        for option, says in (("--check", "ok: "), ("--test-message", "posted to #alerts")):
            command = told(f"celeryscope alerter {option}", "docs/slack.md")
            assert says in ended(command, f"alerter{option}", project, broker, **token)
        at = {"CELERYSCOPE_STATE_DIR": str(project / "alerter-state")}

        def incidents(what: str) -> str:
            command = told(f"celeryscope incidents {what}", "docs/slack.md")
            return ended(command, f"incidents-{what}-{next(runs)}", project, broker, {"3fa2": identifier}, **at)

        runs, identifier = iter(range(9)), ""
        (line,) = (line for line in incidents("list").splitlines() if "ValueError" in line)
        identifier = line.split()[0]
        assert "ValueError" in incidents("show")
        incidents("mute")
        incidents("resolve")
        assert "ValueError" not in incidents("list")


def test_left_alone(project: Path, broker: RedisServer):
    """As a service: the broker's URL in a file, a state directory, a log for machines."""
    (project / "broker-url").write_text(broker.url)
    command = told("celeryscope monitor --state-dir", "docs/quickstart.md")
    assert command.env["CELERYSCOPE_BROKER_URL_FILE"] == "/run/secrets/broker"
    file = {"CELERYSCOPE_BROKER_URL_FILE": str(project / "broker-url")}
    with running(started(command, "left-alone", project, broker, **file)) as monitor:
        eventually(lambda: "serves http://" in monitor.output or not monitor.running(), 60, 0.2)
        assert monitor.running(), monitor.output
        assert monitor.stop() == 0
    assert (project / "left-alone-state" / "state").exists()


def test_rules(project: Path, broker: RedisServer):
    """Files that Prometheus takes."""
    out = project / "rules"
    ended(told(RUN["rules"]), "rules", project, broker, {"/etc/prometheus/celeryscope": str(out)})
    files = sorted((out / "rules").glob("*.yml"))
    assert files
    checked = subprocess.run(["promtool", "check", "rules", *files], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_boards(project: Path, broker: RedisServer):
    """Into a Grafana by its API, by both pages, and into files."""
    (project / "grafana-token").write_text(GRAFANA_TOKEN)
    ways = {
        "README.md": {"CELERYSCOPE_GRAFANA_TOKEN": GRAFANA_TOKEN},
        "docs/dashboards.md": {"CELERYSCOPE_GRAFANA_TOKEN_FILE": str(project / "grafana-token")},
    }
    for page_of, token in ways.items():
        command = told(RUN["boards"], page_of)
        assert set(token) <= set(command.env)
        with fake_grafana.serving() as grafana:
            ended(command, "push", project, broker, {"https://grafana.example.com": grafana.url}, **token)
            assert "celery-overview" in grafana.boards
    ended(told("celeryscope dashboards build", "docs/dashboards.md"), "build", project, broker)
    assert (project / "out/boards/celery-overview.json").exists()


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
