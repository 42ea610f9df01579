"""`celeryscope alerter --check` and `celeryscope incidents`, as people run them; and what resolves incidents."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from types import SimpleNamespace

import httpx
import pytest
from alerting import batch, entry
from celeryscope.alerts.batches import decode
from celeryscope.alerts.intake import Intake
from celeryscope.alerts.policy import Plan
from celeryscope.alerts.store import Database
from celeryscope.alerts.successes import SuccessWatch
from celeryscope.cli import run
from celeryscope.demo.inbox import TOKEN, Inbox
from celeryscope.exporters import serve
from celeryscope.monitor.events import TaskEvent
from helpers import eventually

ROUTES = """
[alerter]
slack_channel = "#general"
[[alerter.routes]]
name = "payments"
task = "shop.*"
channel = "#pay"
severity = "critical"
threshold = "5 in 10min"
"""


@pytest.fixture(name="inbox", scope="module")
def _inbox():
    with Inbox(["general", "pay"]).serving() as inbox:
        yield inbox


@pytest.fixture(name="command")
def _command(tmp_path, monkeypatch, inbox, capsys):
    """Run a command in a folder with routes; return its exit code and all that it wrote."""
    (tmp_path / "celeryscope.toml").write_text(ROUTES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CELERYSCOPE_BROKER_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("CELERYSCOPE_SLACK_TOKEN", TOKEN)
    monkeypatch.setenv("CELERYSCOPE_SLACK_BASE_URL", inbox.api_url)
    monkeypatch.setattr("celeryscope.monitor.logs.configure", lambda *_args: None)

    def command(*arguments: str) -> tuple[int, str]:
        code = run(arguments)
        written = capsys.readouterr()
        return code, written.out + written.err

    return command


def test_check_says_where_a_tasks_failures_go_and_why(command):
    code, said = command("alerter", "--check", "--task", "shop.charge")
    assert code == 0
    assert "shop.charge: #pay (route 'payments')" in said
    assert "threshold: 5 in 600 s" in said
    assert "ok: 1 routes, 2 channels" in said
    assert "#general (no route matches: the default)" in command("alerter", "--check", "--task", "mail.send")[1]


def test_check_names_a_channel_that_does_not_exist(command, tmp_path):
    (tmp_path / "celeryscope.toml").write_text(ROUTES.replace("#pay", "#paid"))
    code, said = command("alerter", "--check")
    assert code == 2
    assert "Slack channel #paid: channel_not_found: no such channel" in said


def test_check_names_a_wrong_token(command, monkeypatch):
    monkeypatch.setenv("CELERYSCOPE_SLACK_TOKEN", "xoxb-wrong-one")
    code, said = command("alerter", "--check")
    assert code == 2
    assert "invalid_auth: the token is wrong" in said
    assert "wrong-one" not in said


def test_a_test_message_arrives(command, inbox):
    assert command("alerter", "--test-message") == (0, "posted to #general\n")
    assert "A test message" in inbox.top("general")[-1].text


def test_a_store_that_cannot_be_used_ends_it_with_one_line(command):
    code, said = command("alerter", "--store", "mysql://u:sesame@h/x")
    assert code == 2
    assert said.splitlines()[-1].startswith("celeryscope: error: store mysql://u:***@h/x: must be sqlite")


@pytest.fixture(name="filled")
def _filled(tmp_path):
    """A store with two incidents where the commands look for it."""
    database = Database(f"sqlite:///{tmp_path / 'celeryscope-state' / 'incidents.db'}", time.time)
    database.open()
    Intake(database, lambda _sample: Plan("#x")).absorb(
        [decode(batch(entry("a", 7), entry("b", 1, task="mail.[send]", message="no <route>")))], time.time()
    )
    return database


def listed(command, *options):
    code, said = command("incidents", "list", "--json", *options)
    assert code == 0
    return json.loads(said)


def test_incidents_are_listed_shown_resolved_and_muted(command, filled):
    found = {one["task"]: one for one in listed(command)}
    assert found["shop.charge"]["count"] == 7
    first = found["shop.charge"]["id"]
    code, table = command("incidents", "list")
    assert code == 0
    assert "mail.[send]" in table  # no markup to rich
    code, shown = command("incidents", "show", first[:8])
    assert "shop.errors.CardError: card declined" in shown
    assert command("incidents", "resolve", first) == (0, f"{first}: resolved\n")
    assert [one["id"] for one in listed(command, "--state", "resolved")] == [first]
    assert command("incidents", "mute", first, "--for", "2h")[1].startswith(f"{first}: muted until")
    assert listed(command, "--state", "resolved")[0]["muted_until"] > time.time() + 7_000
    assert command("incidents", "mute", first, "--off") == (0, f"{first}: speaks again\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "zz"), "no incident has the id 'zz'"),
        (("show", ""), "several incidents' ids begin with ''"),
        (("mute", "zz"), "give --for TIME"),
        (("mute", "zz", "--for", "soon"), "--for: must be a length of time such as 90s, 10min, 2h or 1d, not 'soon'"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(command, filled, arguments, message):
    code, said = command("incidents", *arguments)
    assert code == 2
    assert message in said
    assert "Traceback" not in said


def test_without_a_store_the_commands_say_so(command):
    code, said = command("incidents", "list")
    assert code == 2
    assert "there is none yet" in said


def event(type_, uuid="u1", name=None, at=100.0):
    return TaskEvent(type=type_, hostname="h", timestamp=at, uuid=uuid, name=name)


def test_a_success_is_known_by_the_name_that_came_before():
    watch = SuccessWatch()
    watch.watch(["a"])
    watch.feed([event("task-received", name="a"), event("task-succeeded", at=101.0)], 200.0)
    assert watch.last_success("a") == 101.0
    watch.feed([event("task-received", "u2", "b"), event("task-succeeded", "u2")], 200.0)
    assert watch.last_success("b") is None  # nobody asked for it


def test_a_success_seen_half_way_a_failure_and_a_clock_ahead():
    watch = SuccessWatch()
    watch.watch(["a"])
    watch.feed([event("task-succeeded"), event("task-sent", "u2", "a"), event("task-failed", "u2")], 200.0)
    assert watch.last_success("a") is None
    watch.feed([event("task-sent", "u3", "a"), event("task-succeeded", "u3", at=999.0)], 200.0)
    assert watch.last_success("a") == 200.0
    watch.watch([])
    assert watch.last_success("a") is None


def test_memory_of_runs_is_bounded():
    watch = SuccessWatch(most_runs=2)
    watch.watch(["a"])
    watch.feed([event("task-received", f"u{n}", "a") for n in range(3)], 200.0)
    watch.feed([event("task-succeeded", "u0")], 200.0)
    assert watch.last_success("a") is None
    watch.feed([event("task-succeeded", "u2")], 200.0)
    assert watch.last_success("a") == 100.0


def test_a_monitor_whose_alerter_gives_up_goes_on_and_says_that_it_is_not_healthy(command, tmp_path, monkeypatch):
    """An alerter of another machine has taken the store: a supervisor has a reason to start the process anew."""
    store = tmp_path / "incidents.db"
    monkeypatch.setenv("CELERYSCOPE_STORE", f"sqlite:///{store}")
    monkeypatch.setattr("celeryscope.alerts.alerter.REGISTER_EVERY", 0.1)
    heard = []

    def serving(settings, _others, _secrets, faults):
        with serve._server(settings, SimpleNamespace(readiness=list), {}, faults) as server:

            def health():
                answer = httpx.get(f"{server.url}/-/healthy", trust_env=False)
                return answer.status_code, answer.text

            heard.append(health())
            with closing(sqlite3.connect(store, timeout=30)) as database, database:
                row = ("x", "elsewhere", "another-host", time.time())
                database.execute("INSERT INTO celeryscope_alerters (owner, host, name, seen) VALUES (?, ?, ?, ?)", row)
            heard.append(eventually(lambda: (found := health())[0] != 200 and found, 60))

    monkeypatch.setattr("celeryscope.exporters.serve.serve", serving)
    code, said = command("monitor", "--with-alerter", "--listen", "127.0.0.1:0")
    assert code == 0, said
    assert heard[0] == (200, "ok alerter\n")
    assert heard[1][0] == 503
    assert heard[1][1].startswith(f"failed alerter: store sqlite:///{store}: an alerter on another machine")
