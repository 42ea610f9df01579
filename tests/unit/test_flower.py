"""Flower as celeryscope sees it: the links to its pages, its API, and what it means when it refuses."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
from celeryscope.monitor import flower_actions as actions
from celeryscope.monitor.flower import FlowerLinks
from celeryscope.monitor.flower_actions import Action, FlowerError
from celeryscope.monitor.flower_client import FlowerClient, Task

URL = "http://flower.example:5555/ops"
PASSWORD = "hunter2-hunter2"
Answer = Callable[[httpx.Request], httpx.Response]


def client(answer: Answer, **options: Any) -> FlowerClient:
    given = {"user": "ops", "password": PASSWORD, **options}
    return FlowerClient(URL, transport=httpx.MockTransport(answer), **given)


def always(status: int, text: str = "", **headers: str) -> Answer:
    return lambda _: httpx.Response(status, text=text, headers=headers)


def refused(answer: Answer, action: Action, **options: Any) -> FlowerError:
    with pytest.raises(FlowerError) as caught:
        client(answer, **options).perform(action)
    assert PASSWORD not in str(caught.value)
    return caught.value


def test_links_lead_to_the_pages_of_a_flower_behind_a_prefix():
    pages = FlowerLinks("https://ops.example/flower/")
    assert pages.task("7f3e/1") == "https://ops.example/flower/task/7f3e%2F1"
    assert pages.worker("mail@host one") == "https://ops.example/flower/worker/mail%40host%20one"
    assert pages.tasks() == "https://ops.example/flower/tasks"
    assert pages.tasks(name="shop.send", state="FAILURE", worker="mail@h") == (
        "https://ops.example/flower/tasks?name=shop.send&state=FAILURE&worker=mail%40h"
    )
    assert FlowerLinks.below("https://ops.example/", "/flower/").task("1") == "https://ops.example/flower/task/1"
    assert FlowerLinks.below("https://ops.example", "").task("1") == "https://ops.example/task/1"


def test_a_password_in_the_address_is_in_no_link():
    """Links go to chats."""
    pages = FlowerLinks("https://ops:hunter2@flower.example/")
    assert pages.task("1") == "https://flower.example/task/1"
    assert FlowerLinks("https://flower.example/a@b").base == "https://flower.example/a@b"
    assert not FlowerLinks("")


@pytest.mark.parametrize(
    ("action", "path", "form"),
    [
        (actions.revoke("a b"), "task/revoke/a%20b", {}),
        (actions.terminate("1", "SIGKILL"), "task/revoke/1", {"terminate": "true", "signal": "SIGKILL"}),
        (actions.abort("1"), "task/abort/1", {}),
        (actions.rate_limit("t", "5/m", "w@h"), "task/rate-limit/t", {"workername": "w@h", "ratelimit": "5/m"}),
        (
            actions.time_limit("t", "w@h", soft=1.5, hard=9),
            "task/timeout/t",
            {"workername": "w@h", "soft": "1.5", "hard": "9"},
        ),
        (actions.time_limit("t", "w@h"), "task/timeout/t", {"workername": "w@h"}),
        (actions.pool_grow("w@h", 2), "worker/pool/grow/w%40h", {"n": "2"}),
        (actions.pool_shrink("w@h", 2), "worker/pool/shrink/w%40h", {"n": "2"}),
        (actions.pool_restart("w@h"), "worker/pool/restart/w%40h", {}),
        (actions.autoscale("w@h", 1, 4), "worker/pool/autoscale/w%40h", {"min": "1", "max": "4"}),
        (actions.add_consumer("w@h", "q+1"), "worker/queue/add-consumer/w%40h", {"queue": "q+1"}),
        (actions.cancel_consumer("w@h", "q"), "worker/queue/cancel-consumer/w%40h", {"queue": "q"}),
        (actions.shutdown("w@h"), "worker/shutdown/w%40h", {}),
    ],
    ids=lambda value: value.name if isinstance(value, Action) else "",
)
def test_each_action_is_one_request_with_credentials(action, path, form):
    """To Flower's documented address, below the prefix."""
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json={"message": "done"})

    assert client(answer).perform(action) == "done"
    (request,) = asked
    assert request.method == "POST"
    assert request.url.raw_path.decode() == f"/ops/api/{path}"
    assert {key: value for key, (value,) in parse_qs(request.content.decode()).items()} == form
    assert request.headers["Authorization"] == httpx.BasicAuth("ops", PASSWORD)._auth_header


def test_what_ends_or_throws_away_work_is_said_to_be_destructive():
    destructive = {
        actions.revoke("1"),
        actions.terminate("1"),
        actions.abort("1"),
        actions.pool_shrink("w"),
        actions.pool_restart("w"),
        actions.cancel_consumer("w", "q"),
        actions.shutdown("w"),
    }
    harmless = {
        actions.rate_limit("t", "1/s", "w"),
        actions.time_limit("t", "w", soft=1),
        actions.pool_grow("w"),
        actions.autoscale("w", 1, 2),
        actions.add_consumer("w", "q"),
    }
    assert [action.name for action in destructive if not action.destructive] == []
    assert [action.name for action in harmless if action.destructive] == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: actions.rate_limit("t", "often", "w"),
        lambda: actions.rate_limit("t", "5/d", "w"),
        lambda: actions.rate_limit("t", "-1", "w"),
        lambda: actions.time_limit("t", "w", soft=9, hard=3),
        lambda: actions.time_limit("t", "w", soft=0),
        lambda: actions.autoscale("w", 5, 2),
        lambda: actions.autoscale("w", -1, 2),
        lambda: actions.autoscale("w", 0, 0),
        lambda: actions.add_consumer("w", "a&b"),
        lambda: actions.cancel_consumer("w", "<q>"),
    ],
)
def test_what_makes_no_sense_is_no_action(make):
    with pytest.raises(ValueError, match=r"."):
        make()


@pytest.mark.parametrize(
    ("action", "status", "said", "told"),
    [
        (actions.rate_limit("shop.x", "1/s", "w"), 404, "Unknown task 'shop.x'", "started with -A"),
        (actions.time_limit("shop.x", "w"), 404, "Unknown task 'shop.x'", "started with -A"),
        (
            actions.pool_restart("w"),
            403,
            "Failed to x: ValueError('Pool restarts not enabled')",
            "worker_pool_restarts",
        ),
        (actions.autoscale("w", 1, 2), 403, "Failed to scale 'w': ValueError('Autoscale not enabled')", "--autoscale"),
        (actions.pool_grow("w"), 403, "pool_grow is not supported with autoscale.", "celeryscope control autoscale"),
        (actions.pool_shrink("w"), 403, "Can't shrink pool. All processes busy!", "when some are idle"),
        (actions.pool_grow("w"), 403, "Unknown reason", "is unknown"),
        (actions.revoke("1"), 403, "Read only mode is enabled", "--read_only"),
        (actions.shutdown("w"), 404, "Unknown worker 'w'", "Unknown worker 'w'"),
        (actions.shutdown("w"), 404, "<!DOCTYPE html><html>404</html>", "url_prefix"),
        (actions.abort("1"), 503, "", "result backend"),
        (actions.revoke("1"), 503, "Broker or result backend unavailable", "Broker or result backend unavailable"),
        (actions.revoke("1"), 500, "", "see its log"),
        (actions.revoke("1"), 403, "", "no reason"),
    ],
)
def test_a_refusal_says_what_would_have_to_be_otherwise(action, status, said, told):
    error = refused(always(status, said), action)
    assert told in str(error)
    assert "\n" not in str(error)
    assert "Failed to" not in str(error)
    assert "ValueError" not in str(error)
    assert error.kind == "refused"


@pytest.mark.parametrize(
    ("said", "options", "told"),
    [
        ("Access denied", {}, "does not accept these credentials"),
        ("", {"user": "", "password": ""}, "set CELERYSCOPE_FLOWER_AUTH"),
        ("FLOWER_UNAUTHENTICATED_API environment variable is required", {"user": ""}, "without authentication"),
    ],
)
def test_a_401_says_whose_credentials_are_missing(said, options, told):
    error = refused(always(401, said), actions.revoke("1"), **options)
    assert (told in str(error), error.kind) == (True, "credentials")


def test_a_login_page_for_people_is_not_followed():
    """The credentials would go along."""
    error = refused(always(302, Location="https://login.example/"), actions.revoke("1"))
    assert ("login for people" in str(error), error.kind) == (True, "credentials")


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (httpx.ConnectError("Connection refused"), "no Flower at http://flower.example:5555/ops"),
        (httpx.ReadTimeout("slow"), "whether it did shut down w is unknown"),
        (httpx.RemoteProtocolError("what?"), "what?"),
    ],
)
def test_an_unreachable_flower_is_named(raised, told):
    def answer(request: httpx.Request) -> httpx.Response:
        raise raised

    error = refused(answer, actions.shutdown("w"))
    assert (told in str(error), error.kind) == (True, "unreachable")


def test_a_page_that_is_not_flowers_is_not_taken_for_it():
    with pytest.raises(FlowerError, match="is not Flower's API"):
        client(always(200, "<html>hello</html>")).online()
    with pytest.raises(FlowerError, match="no Flower API at"):
        client(always(404, "<html>nothing</html>")).online()
    with pytest.raises(FlowerError, match="answers 502"):
        client(always(502)).tasks()
    with pytest.raises(FlowerError, match="not understood"):
        client(always(200, '{"1": {"name": [1]}}')).tasks()


def inspected(**facts: Any) -> dict[str, Any]:
    pool = {"max-concurrency": 4, "processes": [1, 2, 3]}
    queue = {"name": "mail", "exchange": {}}
    registered = ["shop.send [rate_limit=5/m]", "shop.sum"]
    known = {"stats": {"pool": pool}, "active_queues": [queue], "registered": registered, "active": [{}]}
    return {**known, "timestamp": 100.0, **facts}


def test_a_worker_answered_if_flower_heard_something_new():
    """Flower tells for ever what a worker once said, also of one that is long gone."""
    said = iter([100.0, 100.0, 100.0, 101.0])
    known = client(lambda _: httpx.Response(200, json={"w@h": inspected(timestamp=next(said))}))
    gone, there = known.worker("w@h"), known.worker("w@h")
    assert gone is not None
    assert there is not None
    assert (gone.answered, there.answered) == (False, True)
    assert (there.slots, there.queues, there.active) == (3, ["mail"], 1)
    assert there.tasks == {"shop.send": "rate_limit=5/m", "shop.sum": ""}


def test_a_worker_that_flower_meets_for_the_first_time_answered():
    answers = iter([httpx.Response(404, text="Unknown worker 'w@h'"), httpx.Response(200, json={"w@h": inspected()})])
    found = client(lambda _: next(answers)).worker("w@h")
    assert found is not None
    assert found.answered
    assert client(always(404, "Unknown worker 'w@h'")).worker("w@h") is None


def test_workers_of_other_pools_tell_their_limit_as_slots():
    stats = {"pool": {"max-concurrency": 8}, "autoscaler": {"min": 1, "max": 8, "current": 2}}
    both = iter([{}, {"w@h": inspected(stats=stats), "new@h": {}}])
    found = client(lambda _: httpx.Response(200, json=next(both))).workers()
    assert (found["w@h"].slots, found["w@h"].autoscale) == (8, {"min": 1, "max": 8})
    assert not found["new@h"].answered


def test_tasks_are_read_with_what_is_known_of_them():
    info = {"uuid": "1", "name": "shop.send", "state": "STARTED", "worker": "w@h", "retries": 0}
    assert client(lambda _: httpx.Response(200, json=info)).task("1") == Task("1", "shop.send", "STARTED", "w@h")
    assert client(always(404, "Unknown task '1'")).task("1") is None
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json={"1": info, "2": {"state": "SUCCESS", "name": None}})

    found = client(answer).tasks(name="shop.send", state="STARTED")
    assert [(task.uuid, task.ended) for task in found] == [("1", False), ("2", True)]
    assert dict(asked[0].url.params) == {
        "taskname": "shop.send",
        "state": "STARTED",
        "limit": "100",
        "sort_by": "-received",
    }


def test_online_says_whose_heartbeats_are_heard():
    known = client(lambda _: httpx.Response(200, json={"a@h": True, "b@h": False}))
    assert known.online() == {"a@h": True, "b@h": False}


def test_no_log_line_and_no_repr_holds_the_password(caplog):
    with caplog.at_level(logging.DEBUG):
        known = client(lambda _: httpx.Response(200, content=json.dumps({"message": "x"})))
        known.perform(actions.shutdown("w"))
    assert caplog.text
    header = httpx.BasicAuth("ops", PASSWORD)._auth_header.split()[1]
    assert not [secret for secret in (PASSWORD, header) if secret in caplog.text + repr(known) + repr(vars(known))]
