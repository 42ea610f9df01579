"""No secret gets out: everything of ours runs at DEBUG with planted secrets, fails, crashes, and is searched."""

from __future__ import annotations

import contextlib
import json
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bcrypt
import httpx
import pytest
import redis
from alerting import batch, entry, publish
from canaries import MARK, SHAPES, Canaries, of_files, of_processes, of_redis, of_slack
from celery import Celery
from celeryscope.alerts.settings import AlerterSettings
from celeryscope.demo.inbox import Inbox
from celeryscope.exporters.doctor_settings import DoctorSettings
from celeryscope.exporters.status import StatusSettings
from celeryscope.monitor.configuration import Settings, SettingsError, load
from celeryscope.monitor.flower_launch import LaunchSettings
from celeryscope.monitor.flower_settings import ControlSettings
from celeryscope.monitor.settings import MonitorSettings
from fake_grafana import serving
from helpers import ROOT, Process, RedisServer, eventually, free_port, worker_argv

WEB_USER = "prometheus"
LOUD = Path(__file__).resolve().parent.parent / "loudly.py"


@dataclass
class World:
    """A broker with users of its own, and a folder into which all that runs writes; `gathered` is all that came out."""

    folder: Path
    server: RedisServer
    canaries: Canaries
    stack: contextlib.ExitStack
    gathered: dict[str, str | bytes] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)

    def url(self, user: str, password: str, db: int = 0) -> str:
        return f"redis://{user}:{password}@127.0.0.1:{self.server.port}/{db}"

    def user(self, name: str, db: int = 0) -> str:
        """Make a user of the broker with a password that no URL likes; return the address to log in with."""
        quoted = self.canaries.in_url(name)
        with redis.Redis.from_url(self.server.url) as client:
            client.acl_setuser(name, enabled=True, passwords=f"+{urllib.parse.unquote(quoted)}", commands=["+@all"],
                               keys=["*"], channels=["*"])  # fmt: skip
        return self.url(name, quoted, db)

    def run(self, name: str, *arguments: str | Path, **env: str) -> Process:
        """Start one of our commands, loudly."""
        command = [sys.executable, LOUD, *arguments]
        process = Process(command, log=self.folder / f"{name}.log", cwd=self.folder, env={**QUIET, **env})
        self.stack.callback(process.stop)
        self.processes[name] = process
        return process

    def ended(self, name: str, code: int | None = None) -> str:
        """Wait until a command has ended by itself; return what it said."""
        process = self.processes[name]
        eventually(lambda: not process.running(), 60)
        assert code is None or process.popen.returncode == code, process.output
        return process.output

    def gather(self, name: str, content: str | bytes) -> None:
        self.gathered[name] = content

    def leaks(self) -> dict[str, list[str]]:
        return {name: found[:3] for name, content in self.gathered.items() if (found := self.canaries.found(content))}


QUIET = {"KOMBU_LOG_DEBUG": "1", "KOMBU_LOG_CONNECTION": "1", "CELERY_BROKER_URL": "", "CELERY_RESULT_BACKEND": ""}
"""Kombu's own ways to be loud, and nobody's settings of Celery."""


@pytest.fixture(name="world")
def _world(tmp_path: Path) -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        home = tmp_path / "broker"
        home.mkdir()
        server = RedisServer(home)
        stack.callback(server.stop)
        folder = tmp_path / "out"
        folder.mkdir()
        yield World(folder, server, Canaries(), stack)


def fetched(url: str, password: str = "") -> str:
    """Return a page with its headers, whatever its status."""
    answer = httpx.get(url, auth=(WEB_USER, password) if password else None, trust_env=False, timeout=30)
    return f"{answer.status_code} {answer.headers} {answer.text}"


def served(process: Process) -> str:
    process.wait_for("/metrics", 60)
    return eventually(lambda: process.output.split("serves ", 1)[1].split("/metrics", 1)[0])


def web_config(world: World) -> str:
    """Write a web configuration; return the password that it takes."""
    password = world.canaries.plant("web", "@'\"")
    hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
    # The file holds a hash and no password: it stays among what is searched.
    (world.folder / "web.yml").write_text(f"basic_auth_users:\n  {WEB_USER}: {hashed}\n")
    return password


def fail_tasks(world: World, broker: str) -> None:
    """Let real tasks of a real worker fail, with secrets in every place."""
    texts = {shape: text.format(world.canaries.plant(f"task{shape.replace(' ', '')}0123456789"))
             for shape, text in SHAPES.items()}  # fmt: skip
    env = {**QUIET, "BROKER": broker, "TEXTS": json.dumps(texts), "PYTHONPATH": str(ROOT / "tests" / "apps"),
           "RUNBOOK": f"https://ops:{world.canaries.in_url('runbook')}@wiki.example/fails"}  # fmt: skip
    argv = worker_argv("canary_app", "-P", "threads", "-c", "2", "-E", "--loglevel", "WARNING")
    # Celery's own log of its worker quotes tasks' exceptions: it is not ours, and lies elsewhere.
    worker = Process(argv, log=world.folder.parent / "worker.log", cwd=world.folder.parent, env=env)
    world.stack.callback(worker.stop)
    app = Celery("producer", broker=broker, set_as_current=False)
    app.conf.task_send_sent_event = True
    argument = world.canaries.plant("argument")
    for shape in texts:
        given = {"order": texts["url"], "password": argument, "options": {"token": argument, "n": 1}}
        app.send_task("canary_app.fails", (shape, argument), given)
    for name in ("chained", "strange", "fine"):
        app.send_task(f"canary_app.{name}", (argument,), {})
    app.close()


def forge(world: World, broker: str) -> None:
    """Publish failures as nobody's worker would: with nothing redacted."""
    for number, text in enumerate(SHAPES.values()):
        secret = world.canaries.plant(f"forged{number}0123456789")
        told = entry(f"forged{number}", task=f"forged.task{number}", message=text.format(secret),
                     traceback=f"Traceback:\n  pay()\nValueError: {text.format(secret)}\n",
                     kwargs={"password": secret, "order": text.format(secret)})  # fmt: skip
        publish(broker, [batch(told)])


def start_services(world: World, inbox: Inbox, password: str) -> dict[str, str]:
    """Start the monitor, the alerter and Flower with secrets in all their settings; return where they serve."""
    first, second = world.user("first"), world.user("second", db=1)
    refused = f"amqp://guest:{world.canaries.in_url('third')}@127.0.0.1:{free_port()}//"
    management = f"third=http://ops:{world.canaries.in_url('management')}@127.0.0.1:{free_port()}"
    monitor = world.run(
        "monitor", "monitor", "--listen", "127.0.0.1:0", "--state-dir", world.folder / "state", "--log-level", "debug",
        "--compat", "celery-exporter", "--web.config.file", world.folder / "web.yml", "--state-save-interval", "0.5",
        CELERYSCOPE_BROKER_URL=f"first={first} second={second} third={refused}",
        CELERYSCOPE_RABBITMQ_MANAGEMENT_URL=management,
    )  # fmt: skip
    alerter = world.run(
        "alerter", "alerter", "--listen", "127.0.0.1:0", "--state-dir", world.folder / "alerts", "--log-level", "debug",
        "--slack-channel", "#general", "--slack-base-url", inbox.api_url, "--log-format", "json",
        CELERYSCOPE_BROKER_URL=first, CELERYSCOPE_SLACK_TOKEN=inbox.token,
    )  # fmt: skip
    port = free_port()
    login = f"ops:{world.canaries.plant('flower')}"
    world.run("flower", "flower", "--listen", f"127.0.0.1:{port}",
              CELERYSCOPE_BROKER_URL=first, CELERYSCOPE_FLOWER_AUTH=login)  # fmt: skip
    eventually(lambda: "wants" in _flower(port) or "401" in _flower(port), 60)
    return {
        "monitor": served(monitor), "alerter": served(alerter), "flower": f"http://127.0.0.1:{port}", "broker": first,
        "login": login, "password": password,
    }  # fmt: skip


def _flower(port: int) -> str:
    with contextlib.suppress(httpx.TransportError):
        return str(httpx.get(f"http://127.0.0.1:{port}/workers", trust_env=False, timeout=5).status_code)
    return ""


SERVICES = {"monitor", "alerter", "flower"}


def run_short_commands(world: World, at: Mapping[str, str]) -> None:
    """Run everything that ends by itself, once with the right credentials and once with wrong ones."""
    wrong = world.canaries.in_url("wrong")
    nobody = free_port()
    ends: dict[str, int | None] = {}
    for name, address, word, code in (
        ("status", at["monitor"], at["password"], None),
        ("status-refused", at["monitor"], wrong, 2),
        ("status-nobody", f"http://u:{wrong}@127.0.0.1:{nobody}", "", 2),
    ):
        more = ("--user", WEB_USER) if word else ()
        world.run(name, "status", "--url", address, *more, CELERYSCOPE_STATUS_PASSWORD=word)
        ends[name] = code
    doctor = ("doctor", "--listen-for", "0.1", "--answer-timeout", "0.5", "--flower-url", at["flower"])
    world.run("doctor", *doctor, "--url", at["monitor"], "--user", WEB_USER, "--json",
              CELERYSCOPE_BROKER_URL=at["broker"], CELERYSCOPE_STATUS_PASSWORD=at["password"])  # fmt: skip
    refused = f"redis://first:{wrong}@127.0.0.1:{world.server.port}/0"
    world.run("doctor-refused", *doctor, CELERYSCOPE_BROKER_URL=refused)
    for name, login, code in (("control", at["login"], None), ("control-refused", f"ops:{MARK}wrong", 2)):
        env = {"CELERYSCOPE_FLOWER_AUTH": login}
        world.run(name, "control", "revoke", "--yes", "no-such-task", "--flower-url", at["flower"], **env)
        ends[name] = code
        world.run(f"{name}-dry", "control", "revoke", "--dry-run", "no-such-task", "--json", **env)
    for name, arguments in (("list", ("list",)), ("json", ("list", "--json")), ("show", ("show", "nothing"))):
        world.run(f"incidents-{name}", "incidents", *arguments, "--state-dir", world.folder / "alerts")
    store = f"postgresql://alerts:{world.canaries.in_url('store')}@127.0.0.1:{nobody}/alerts?sslpassword={wrong}"
    world.run("incidents-store", "incidents", "list", CELERYSCOPE_STORE=store)
    ends["incidents-store"] = 2
    with serving() as grafana:
        address = grafana.url.replace("://", f"://admin:{world.canaries.in_url('grafana')}@")
        token = {"CELERYSCOPE_GRAFANA_URL": address, "CELERYSCOPE_GRAFANA_TOKEN": world.canaries.plant("glsa_")}
        world.run("push", "dashboards", "push", **token)
        world.ended("push", 2)
    for name in world.processes.keys() - SERVICES:
        world.ended(name, ends.get(name))


def run_into_errors(world: World, inbox: Inbox, at: Mapping[str, str]) -> None:
    """Start services that cannot do their work: a wrong password, a store and a Slack that are not there."""
    wrong = world.canaries.in_url("wrong")
    hook = f"http://127.0.0.1:{free_port()}/services/T0/B0/{world.canaries.plant('hook')}"
    store = f"postgresql://alerts:{world.canaries.in_url('store')}@127.0.0.1:{free_port()}/alerts"
    bad = f"redis://first:{wrong}@127.0.0.1:{world.server.port}/0"
    base = ("--listen", "127.0.0.1:0", "--log-level", "debug")
    slack = ("--slack-channel", "#general", "--slack-base-url", inbox.api_url)
    world.run("monitor-refused", "monitor", *base, CELERYSCOPE_BROKER_URL=bad)
    world.run("alerter-refused", "alerter", *base, *slack, "--state-dir", world.folder / "refused",
              CELERYSCOPE_BROKER_URL=bad, CELERYSCOPE_SLACK_TOKEN=world.canaries.plant("xoxb-wrong-"))  # fmt: skip
    world.run("alerter-hook", "alerter", *base, "--test-message", "--slack-channel", "#general",
              CELERYSCOPE_BROKER_URL=at["broker"], CELERYSCOPE_SLACK_WEBHOOK_URL=hook)  # fmt: skip
    world.run("alerter-token", "alerter", *base, *slack, "--check", CELERYSCOPE_BROKER_URL=at["broker"],
              CELERYSCOPE_SLACK_TOKEN=world.canaries.plant("xoxb-wrong-"))  # fmt: skip
    world.run("alerter-store", "alerter", *base, *slack, CELERYSCOPE_BROKER_URL=at["broker"],
              CELERYSCOPE_SLACK_TOKEN=inbox.token, CELERYSCOPE_STORE=store)  # fmt: skip
    for name in ("alerter-hook", "alerter-token", "alerter-store"):
        world.ended(name, 2)
    eventually(lambda: "wrong user name or password" in world.processes["monitor-refused"].output, 60)
    eventually(lambda: "password" in world.processes["alerter-refused"].output, 60)


def test_no_secret_is_in_anything_that_comes_out(world: World) -> None:
    """Logs, pages, saved state, incident store, Slack, keys on the broker, lists of processes; whatever fails."""
    password = web_config(world)
    inbox = Inbox(["general"], token=world.canaries.plant("xoxb-"))
    world.stack.enter_context(inbox.serving())
    at = start_services(world, inbox, password)
    fail_tasks(world, at["broker"])
    forge(world, at["broker"])
    eventually(lambda: fetched(f"{at['monitor']}/metrics", password).count("celery_task_exceptions_total{") > 2, 60)
    eventually(lambda: sum("forged.task" in message.everything for message in inbox.messages) >= 9, 60)
    eventually(lambda: "canary_app.chained" in of_slack(inbox.messages), 60)
    eventually(lambda: fetched(f"{at['alerter']}/metrics").count("notified") > 0)
    run_short_commands(world, at)
    run_into_errors(world, inbox, at)
    for path in ("/", "/metrics", "/metrics/celery-exporter", "/-/ready", "/-/healthy", "/nothing"):
        world.gather(f"page {path}", fetched(at["monitor"] + path, password))
    world.gather("page, wrong password", fetched(f"{at['monitor']}/metrics", world.canaries.plant("guess")))
    world.gather("alerter's page", fetched(f"{at['alerter']}/metrics"))
    world.gather("processes", of_processes(*(process.pid for process in world.processes.values())))
    world.gather("broker", of_redis(world.server.url, "*celeryscope*"))
    world.gather("Slack", of_slack(inbox.messages))
    eventually((world.folder / "state" / "state").exists)
    world.server.stop()  # with all of them at work: what is said of a lost broker
    eventually(lambda: "trying again" in world.processes["monitor"].output, 60)
    eventually(lambda: "Connection refused" in world.processes["alerter"].output, 60)
    for name in ("monitor", "alerter", "flower", "monitor-refused", "alerter-refused"):
        world.processes[name].stop()
    for name, content in of_files(world.folder):
        world.gather(name, content)
    assert {"monitor.log", "state/state", "alerts/incidents.db"} <= set(world.gathered)
    assert b"DEBUG" in world.gathered["monitor.log"]
    assert "--listen" in str(world.gathered["processes"])
    assert world.leaks() == {}


COMMANDS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "monitor": (("--listen", "127.0.0.1:0"), {"BROKER_URL": "redis://u:{}@127.0.0.1:1/0"}),
    "alerter": (("--slack-channel", "x"), {"BROKER_URL": "redis://u:{}@127.0.0.1:1/0", "SLACK_TOKEN": "xoxb-{}"}),
    "alerter hook": ((), {"BROKER_URL": "redis://", "SLACK_WEBHOOK_URL": "https://hooks.example/services/{}"}),
    "alerter store": (("--slack-channel", "x"), {"BROKER_URL": "redis://", "SLACK_TOKEN": "xoxb-{}",
                      "STORE": "postgresql://u:{}@127.0.0.1:1/db"}),
    "status": ((), {"STATUS_PASSWORD": "{}", "STATUS_URL": "http://u:{}@127.0.0.1:1"}),
    "doctor": ((), {"BROKER_URL": "redis://:{}@127.0.0.1:1/0", "STATUS_PASSWORD": "{}"}),
    "control": (("revoke", "x"), {"FLOWER_AUTH": "ops:{}"}),
    "flower": ((), {"FLOWER_AUTH": "ops:{}", "BROKER_URL": "redis://:{}@127.0.0.1:1/0"}),
    "incidents": (("list",), {"STORE": "postgresql://u:{}@127.0.0.1:1/db"}),
    "dashboards": (("push",), {"GRAFANA_URL": "http://u:{}@127.0.0.1:1", "GRAFANA_TOKEN": "{}"}),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_crash_prints_holds_no_secret(world: World, name: str) -> None:
    """An error of ours, in a thread and in the end of the process, that quotes every secret as it is and in a repr."""
    arguments, variables = COMMANDS[name]
    secret = world.canaries.plant("crash")
    env = {f"CELERYSCOPE_{key}": value.format(secret) for key, value in variables.items()}
    quoted = " ".join(value.format(secret) for value in variables.values())
    world.run("crash", name.split(maxsplit=1)[0], *arguments, **env, CRASH_WITH=f"{quoted} and {secret} alone")
    said = world.ended("crash", 1)
    assert said.count("RuntimeError: ") == 2
    assert "Traceback" in said
    assert "***" in said
    assert world.canaries.found(said) == []


SETTINGS: dict[type[Settings], dict[str, str]] = {
    MonitorSettings: {"BROKER_URL": "redis://u:{}@h/0?password={}", "RABBITMQ_MANAGEMENT_URL": "http://u:{}@h"},
    AlerterSettings: {"BROKER_URL": "redis://u:{}@h/0", "SLACK_TOKEN": "{}", "SLACK_CHANNEL": "#x",
                      "STORE": "postgresql://u:{}@h/d"},
    StatusSettings: {"STATUS_URL": "http://u:{}@h", "STATUS_PASSWORD": "{}"},
    DoctorSettings: {"BROKER_URL": "redis://u:{}@h/0", "FLOWER_URL": "http://u:{}@h", "STATUS_PASSWORD": "{}"},
    ControlSettings: {"FLOWER_AUTH": "u:{}"},
    LaunchSettings: {"FLOWER_AUTH": "u:{}", "BROKER_URL": "redis://u:{}@h/0"},
}  # fmt: skip


@pytest.mark.parametrize("kind", SETTINGS)
def test_no_repr_of_settings_holds_a_secret(kind: type[Settings]) -> None:
    """Nor does their str; and what they say is secret holds each of them, for the logs to leave out."""
    variables = {f"CELERYSCOPE_{name}": value.replace("{}", f"{MARK}-x") for name, value in SETTINGS[kind].items()}
    settings = load(kind, options={}, environ=variables, config=Path("/dev/null"))
    assert MARK not in repr(settings) + str(settings)
    assert f"{MARK}-x" in settings.secrets


@pytest.mark.parametrize("kind", SETTINGS)
def test_no_error_about_settings_holds_a_secret(kind: type[Settings]) -> None:
    """However it is wrong: quotes and blanks in it, a port that is none, no scheme."""
    for wrong in ("redis://u:{}'\"@h:99999/0", "nothing-{}", "http://u:{} x@h:port", "ftp://u:{}@h"):
        variables: dict[str, Any] = {
            f"CELERYSCOPE_{name}": wrong.format(MARK) for name in SETTINGS[kind] if name != "SLACK_CHANNEL"
        }
        with pytest.raises(SettingsError) as caught:
            load(kind, options={}, environ={**variables, "CELERYSCOPE_NO_SUCH": "1"}, config=Path("/dev/null"))
        assert MARK not in str(caught.value)
