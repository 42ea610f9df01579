"""`celeryscope control`: who is meant, what is asked before, what is sent and what is said of it."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

import click
import httpx
import pytest
from celeryscope import cli
from celeryscope.monitor.flower_client import FlowerClient
from celeryscope.monitor.flower_settings import ControlSettings

PASSWORD = "hunter2-hunter2"


class Flower:
    """What the API looks like: some workers, some tasks, and every POST is remembered."""

    def __init__(self) -> None:
        self.online = {"mail@one": True, "mail@two": True, "web@one": True, "web@old": False}
        self.tasks: dict[str, dict[str, Any]] = {"1": {"name": "shop.send", "state": "STARTED", "worker": "mail@one"}}
        self.done: list[tuple[str, dict[str, str]]] = []
        self.refuse: Mapping[str, tuple[int, str]] = {}
        self.mute: set[str] = set()
        self.said = 0.0
        self.autoscale: dict[str, int] | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/api/")
        if request.method == "POST":
            self.done.append((path, {key: value for key, (value,) in parse_qs(request.content.decode()).items()}))
            status, text = self.refuse.get(path, (200, ""))
            return (
                httpx.Response(status, json={"message": "as you say"})
                if status == 200
                else httpx.Response(status, text=text)
            )
        if path.startswith("task/info/"):
            task = self.tasks.get(path.removeprefix("task/info/"))
            return httpx.Response(200, json=task) if task else httpx.Response(404, text="Unknown task '2'")
        if "status" in request.url.params:
            return httpx.Response(200, json=self.online)
        return self.inspected(request.url.params.get("workername"))

    def inspected(self, only: str | None) -> httpx.Response:
        self.said += 1
        infos = {name: self.info(name) for name, alive in self.online.items() if alive and only in (None, name)}
        return httpx.Response(200, json=infos) if infos else httpx.Response(404, text=f"Unknown worker '{only}'")

    def info(self, name: str) -> dict[str, Any]:
        registered = ["shop.send", "shop.sum"] if name.startswith("mail") else ["shop.page"]
        stats: dict[str, Any] = {"pool": {"max-concurrency": 2, "processes": [1, 2]}}
        if self.autoscale:
            stats["autoscaler"] = {**self.autoscale, "current": 2, "qty": 0}
        said = 0.5 if name in self.mute else self.said
        return {"stats": stats, "registered": registered, "active": [{}], "active_queues": [], "timestamp": said}


@pytest.fixture(name="flower")
def _flower(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Flower:
    found = Flower()
    made = lambda self: FlowerClient(self.flower_url, transport=httpx.MockTransport(found))  # noqa: E731
    monkeypatch.setattr(ControlSettings, "client", made)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.chdir(tmp_path)
    return found


def ran(*arguments: str) -> int:
    return cli.run(["control", *arguments])


@pytest.mark.parametrize(
    ("arguments", "done"),
    [
        (["revoke", "1", "2"], [("task/revoke/1", {}), ("task/revoke/2", {})]),
        (["terminate", "1"], [("task/revoke/1", {"terminate": "true", "signal": "SIGTERM"})]),
        (["abort", "1"], [("task/abort/1", {})]),
        (["pool-grow", "web"], [("worker/pool/grow/web@one", {"n": "1"})]),
        (["pool-shrink", "web@one"], [("worker/pool/shrink/web@one", {"n": "1"})]),
        (["pool-restart", "web"], [("worker/pool/restart/web@one", {})]),
        (["autoscale", "web", "1", "3"], [("worker/pool/autoscale/web@one", {"min": "1", "max": "3"})]),
        (["add-consumer", "web", "q"], [("worker/queue/add-consumer/web@one", {"queue": "q"})]),
        (["cancel-consumer", "web", "q"], [("worker/queue/cancel-consumer/web@one", {"queue": "q"})]),
        (["shutdown", "web", "mail@two"], [("worker/shutdown/web@one", {}), ("worker/shutdown/mail@two", {})]),
        (
            ["rate-limit", "shop.send", "5/m"],
            [
                ("task/rate-limit/shop.send", {"workername": "mail@one", "ratelimit": "5/m"}),
                ("task/rate-limit/shop.send", {"workername": "mail@two", "ratelimit": "5/m"}),
            ],
        ),
        (
            ["time-limit", "shop.page", "--soft", "3", "--worker", "web"],
            [("task/timeout/shop.page", {"workername": "web@one", "soft": "3"})],
        ),
        (["time-limit", "shop.page", "--none"], [("task/timeout/shop.page", {"workername": "web@one"})]),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) else "",
)
def test_each_command_asks_flower_for_its_action(arguments, done, flower, capsys):
    assert ran(*arguments, "--yes") == 0
    assert flower.done == done
    out = capsys.readouterr().out
    assert out.count("✓") == len(done)
    assert "as you say" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["revoke", "1"],
        ["shutdown", "web"],
        ["pool-shrink", "web"],
        ["time-limit", "shop.page", "--hard", "3"],
        ["rate-limit", "shop.page", "5/h"],
        ["autoscale", "web", "1", "3"],
    ],
)
def test_nothing_destructive_is_done_before_somebody_says_yes(arguments, flower, monkeypatch, capsys):
    """Without a terminal nobody can, and that is no yes."""
    flower.autoscale = {"min": 1, "max": 4}
    assert ran(*arguments) == 1
    answers = iter([False, True])
    monkeypatch.setattr(click, "confirm", lambda *_, **__: next(answers))
    assert ran(*arguments) == 1
    assert flower.done == []
    assert "not confirmed" in capsys.readouterr().err
    assert ran(*arguments) == 0
    assert len(flower.done) == 1


def test_the_question_says_what_flower_knows_of_the_target(flower, capsys):
    flower.tasks["3"] = {"name": "shop.send", "state": "SUCCESS"}
    ran("revoke", "1", "2", "3")
    asked = capsys.readouterr().err
    assert "revoke task 1 (shop.send, STARTED on mail@one)" in asked
    assert "revoke task 2 (Flower has not seen it)" in asked
    assert "revoke task 3 (shop.send, SUCCESS, it has ended already)" in asked
    assert "Do all 3?" in asked


@pytest.mark.parametrize(
    "arguments",
    [
        ["pool-grow", "web", "3"],
        ["autoscale", "web", "1", "4"],
        ["rate-limit", "shop.page", "5/h", "--worker", "web"],
        ["time-limit", "shop.page", "--soft", "3"],
        ["time-limit", "shop.page", "--none"],
    ],
)
def test_harmless_actions_are_done_unasked(arguments, flower):
    flower.autoscale = {"min": 1, "max": 4}
    assert ran(*arguments) == 0
    assert len(flower.done) == 1


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://flower.example.com:5555", True),
        ("https://flower.example.com", False),
        ("http://127.0.0.1:5555", False),
        ("http://localhost:5555", False),
    ],
)
def test_a_password_in_clear_text_to_another_host_is_warned_of_once(url, warned, flower, monkeypatch, capsys):
    monkeypatch.setenv("CELERYSCOPE_FLOWER_AUTH", f"ops:{PASSWORD}")
    assert ran("add-consumer", "web", "q", "--flower-url", url) == 0
    told = capsys.readouterr().err
    assert told.count("celeryscope: warning: --flower-url: the password goes to flower.example.com") == warned
    assert PASSWORD not in told
    monkeypatch.delenv("CELERYSCOPE_FLOWER_AUTH")
    assert ran("add-consumer", "web", "q", "--flower-url", url) == 0
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["pool-grow", "mail"], "several workers are called 'mail'; name one of: mail@one, mail@two"),
        (["pool-grow", "wbe"], "no worker is called 'wbe'; Flower knows: mail@one, mail@two, web@one"),
        (["pool-grow", "web@new"], "no worker is called 'web@new'"),
        (["pool-shrink", "web", "2"], "has 2 slots, and one must remain"),
        (["rate-limit", "shop.sned", "1/s"], "'shop.sned' is not registered by any worker; did you mean shop.send?"),
        (["rate-limit", "shop.send", "1/s", "--worker", "web"], "'shop.send' is not registered by web@one"),
    ],
)
def test_a_wrong_target_is_told_with_the_right_ones(arguments, told, flower, capsys):
    assert ran(*arguments, "--yes") == 1
    assert told in capsys.readouterr().err
    assert flower.done == []


def test_a_worker_that_does_not_answer_is_asked_for_nothing(flower, capsys):
    """Flower itself would say that a worker which is long gone shuts down."""
    flower.mute = {"web@one"}
    assert ran("shutdown", "web", "mail@one", "--yes") == 1
    assert "web@one does not answer" in capsys.readouterr().err
    assert flower.done == [("worker/shutdown/mail@one", {})]


def test_a_limit_for_every_worker_names_those_that_did_not_get_it(flower, capsys):
    """Those that have not got the task are not missed."""
    flower.mute = {"mail@two", "web@one"}
    assert ran("rate-limit", "shop.send", "5/m", "--yes") == 1
    told = capsys.readouterr()
    assert "mail@two does not answer" in told.err
    assert "web@one" not in told.err
    assert flower.done == [("task/rate-limit/shop.send", {"workername": "mail@one", "ratelimit": "5/m"})]


def test_what_celery_does_not_do_at_once_is_said(flower, capsys):
    """It takes the limits on and goes by the old ones until the pool is restarted."""
    assert ran("time-limit", "shop.page", "--hard", "3", "--yes") == 0
    assert "celeryscope control pool-restart" in capsys.readouterr().out
    assert ran("time-limit", "shop.page", "--hard", "3", "--json", "--yes") == 0
    assert "pool-restart" in json.loads(capsys.readouterr().out)[0]["caveat"]


def test_one_refusal_does_not_keep_the_rest_from_being_done(flower, capsys):
    flower.refuse = {"worker/shutdown/web@one": (403, "Read only mode is enabled")}
    assert ran("shutdown", "web", "mail@one", "nobody", "--yes", "--json") == 1
    shown = json.loads(capsys.readouterr().out)
    assert [(one["target"], one["ok"]) for one in shown] == [("web@one", False), ("mail@one", True), ("nobody", False)]
    assert "--read_only" in shown[0]["message"]
    assert shown[1]["request"]["url"] == "http://127.0.0.1:5555/api/worker/shutdown/mail%40one"


def test_refused_credentials_are_exit_code_2(flower, capsys):
    flower.refuse = {"worker/pool/grow/web@one": (401, "Access denied")}
    assert ran("pool-grow", "web") == 2
    assert "CELERYSCOPE_FLOWER_AUTH" in capsys.readouterr().err


def test_a_dry_run_shows_the_requests_and_contacts_nobody(monkeypatch, capsys):
    monkeypatch.setattr(ControlSettings, "client", None)
    monkeypatch.setenv("CELERYSCOPE_FLOWER_AUTH", f"ops:{PASSWORD}")
    assert ran("terminate", "1", "--dry-run") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "POST http://127.0.0.1:5555/api/task/revoke/1"
    assert [line.strip() for line in shown[1:]] == ["Authorization: Basic ops:***", "terminate=true", "signal=SIGTERM"]
    assert ran("rate-limit", "shop.send", "5/m", "--dry-run", "--json", "--flower-url", "https://f.example/x/") == 0
    (request,) = json.loads(capsys.readouterr().out)
    assert request["request"]["url"] == "https://f.example/x/api/task/rate-limit/shop.send"
    assert request["request"]["form"]["workername"] == "<each worker that knows shop.send>"


@pytest.mark.parametrize(
    "arguments",
    [
        ["revoke"],
        ["rate-limit", "shop.send", "often"],
        ["time-limit", "shop.send"],
        ["time-limit", "shop.send", "--none", "--soft", "3"],
        ["autoscale", "web", "3", "1"],
        ["pool-grow", "web", "0"],
        ["terminate", "1", "--signal", "HUP"],
        ["add-consumer", "web", "a&b"],
        ["pool-grow", "web", "--flower-url", "flower:5555"],
        ["pool-grow", "web", "--flower-url", "http://ops:hunter2@flower:5555"],
        ["pool-grow", "web", "--flower-user", "ops"],
        ["pool-grow", "web", "--flower-auth", "ops"],
        ["pool-grow", "web", "--timeout", "0"],
    ],
)
def test_what_makes_no_sense_is_a_mistake_of_usage(arguments, flower, capsys):
    assert ran(*arguments, "--yes") == 2
    told = capsys.readouterr().err
    assert told.startswith("celeryscope: error: ")
    assert "hunter2" not in told
    assert flower.done == []


def test_without_an_action_the_help_is_shown_and_is_no_error(capsys):
    ran()
    shown = "".join(capsys.readouterr())
    assert "pool-grow" in shown
    assert "error:" not in shown


@pytest.mark.parametrize(
    "given",
    [
        {"CELERYSCOPE_FLOWER_AUTH": f"ops:{PASSWORD}"},
        {"CELERYSCOPE_FLOWER_USER": "ops", "CELERYSCOPE_FLOWER_PASSWORD": PASSWORD},
    ],
)
def test_credentials_come_in_one_setting_or_in_two_and_from_files(given, monkeypatch, tmp_path):
    from celeryscope.monitor.configuration import SettingsError, load

    settings = load(ControlSettings, options={}, environ=given)
    assert settings.login == ("ops", PASSWORD)
    assert PASSWORD not in repr(settings)
    (tmp_path / "secret").write_text(f"ops:{PASSWORD}\n")
    file = {"CELERYSCOPE_FLOWER_AUTH_FILE": str(tmp_path / "secret")}
    assert load(ControlSettings, options={}, environ=file).login == ("ops", PASSWORD)
    both = {**given, "CELERYSCOPE_FLOWER_PASSWORD": PASSWORD, "CELERYSCOPE_FLOWER_AUTH": f"ops:{PASSWORD}"}
    with pytest.raises(SettingsError, match="not both"):
        load(ControlSettings, options={}, environ=both)


@pytest.mark.parametrize("wrong", ["ops", ":x", "ops:", "ops:a,b", "ops:sésame"])
def test_credentials_that_flower_cannot_hold_are_refused(wrong):
    """A comma would end the password there; another letter than ASCII makes each login an error of Flower's."""
    from celeryscope.monitor.configuration import SettingsError, load

    with pytest.raises(SettingsError) as caught:
        load(ControlSettings, options={}, environ={"CELERYSCOPE_FLOWER_AUTH": wrong})
    assert "***" in str(caught.value)
    assert wrong not in str(caught.value).replace("USER:PASSWORD", "")
