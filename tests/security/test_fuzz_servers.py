"""Servers and workers that answer for ever, too much, or in other languages; failures that nobody had."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from celeryscope.alerts.batches import RejectedError, decode
from celeryscope.alerts.dispatcher import Dispatcher
from celeryscope.alerts.intake import Intake
from celeryscope.alerts.mailbox import Mailbox, Pace
from celeryscope.alerts.policy import GuardLimits, Plan
from celeryscope.alerts.slack import SlackWeb
from celeryscope.alerts.store import Database
from celeryscope.alerts.views import Composer, Links
from celeryscope.demo.inbox import TOKEN, Inbox
from celeryscope.monitor import answers
from celeryscope.monitor.broker import BrokerConfig
from celeryscope.monitor.flower_actions import FlowerError
from celeryscope.monitor.flower_client import FlowerClient
from celeryscope.monitor.inspect import replies
from celeryscope.monitor.queues_rabbitmq import Management, RabbitReader
from helpers import eventually, system_command
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.pidbox import Mailbox as Pidbox
from pydantic import SecretStr

NOW = 1_790_000_000.0


# --- HTTP -------------------------------------------------------------------------------------------------------------


@contextmanager
def serving(answer: Any) -> Iterator[str]:
    """An HTTP server that does what `answer(handler)` does, whatever it is asked."""
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):  # who asked has hung up
                answer(self, ended)

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def endless(handler: Any, ended: threading.Event) -> None:
    handler.send_response(200)
    handler.end_headers()
    while not ended.is_set():
        handler.wfile.write(b" " * 65_536)


def dripping(handler: Any, ended: threading.Event) -> None:
    handler.send_response(200)
    handler.end_headers()
    while not ended.wait(0.02):
        handler.wfile.write(b" ")


def redirecting(handler: Any, ended: threading.Event) -> None:
    handler.send_response(302)
    handler.send_header("Location", "http://169.254.169.254/latest/meta-data/")
    handler.end_headers()


def bomb(handler: Any, ended: threading.Event) -> None:
    import gzip

    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.end_headers()
    handler.wfile.write(gzip.compress(b" " * (20 << 20)))


UNUSABLE = {
    "endless": (endless, "longer than 4 MB"),
    "dripping": (dripping, "does not answer in time"),
    "redirecting": (redirecting, "redirects"),
    "bomb": (bomb, "longer than 4 MB"),
}


@pytest.mark.parametrize("kind", sorted(UNUSABLE))
def test_flower_that_answers_without_end_is_given_up(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says so: a redirect is followed nowhere, and neither size nor time are without a bound."""
    monkeypatch.setattr(answers, "LARGEST", 4 << 20)
    answer, expected = UNUSABLE[kind]
    with serving(answer) as url:
        client = FlowerClient(url, timeout=0.5)
        with pytest.raises(FlowerError, match=expected):
            client.workers()
        client.close()


@pytest.mark.parametrize("kind", ["bomb", "dripping", "endless"])
def test_a_management_api_that_answers_without_end_is_given_up(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler falls back to asking the broker itself, as for any API that fails."""
    monkeypatch.setattr(answers, "LARGEST", 4 << 20)
    monkeypatch.setattr("celeryscope.monitor.queues_rabbitmq.TIMEOUT", 0.5)
    with serving(UNUSABLE[kind][0]) as url:
        management = Management(lambda: httpx.Client(base_url=url, timeout=0.5), "/")
        reader = RabbitReader(lambda: pytest.fail("it has no queues to ask for"), management)
        assert reader.read([], NOW) == {}
        assert reader.problems.counts["unsupported"] == 1
        reader.close()


# --- workers that lie -------------------------------------------------------------------------------------------------

HONEST = {"queues": [{"name": "pay"}], "slots": 4}


@contextmanager
def answering(url: str, *answer_with: Any) -> Iterator[None]:
    """Whoever is asked by `celery.pidbox`: each of `answer_with` gets (channel, reply_to, ticket), in this order."""
    ended, ready = threading.Event(), threading.Event()

    def answer(body: Any, message: Any) -> None:
        message.ack()
        for one in answer_with:
            with Connection(url) as connection:
                one(connection.channel(), body["reply_to"], body["ticket"], ended)

    def listen() -> None:
        exchange = Exchange("celery.pidbox", type="fanout", durable=False)
        with Connection(url) as connection:
            queue = Queue("w@h.celery.pidbox", exchange, auto_delete=True, durable=False)
            with Consumer(connection.channel(), [queue], callbacks=[answer], accept=["json"]):
                ready.set()
                while not ended.is_set():
                    with contextlib.suppress(TimeoutError):
                        connection.drain_events(timeout=0.05)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield
    finally:
        ended.set()
        thread.join(10)


def _reply(channel: Any, to: Any, ticket: str, body: Any, **how: Any) -> None:
    exchange = Exchange(to["exchange"], type="direct", durable=False)
    given = {"serializer": "json", "headers": {"ticket": ticket}, **how}
    Producer(channel, exchange=exchange, auto_declare=True).publish(body, routing_key=to["routing_key"], **given)


def honestly(channel: Any, to: Any, ticket: str, ended: Any) -> None:
    _reply(channel, to, ticket, {"honest@h": HONEST})


class _Ran:
    """What a pickle runs when it is opened."""

    def __reduce__(self) -> Any:
        return (Path.touch, (_Ran.mark,))

    mark = Path("celeryscope-was-run")


def hostilely(channel: Any, to: Any, ticket: str, ended: Any) -> None:
    _reply(channel, to, ticket, _Ran(), serializer="pickle")
    _reply(
        channel, to, ticket, b"\x00\xff", content_type="application/data", content_encoding="binary", serializer=None
    )
    _reply(channel, to, ticket, b"{", content_type="application/json", content_encoding="utf-8", serializer=None)
    _reply(channel, to, ticket, {"honest@h": {"queues": []}}, headers={"ticket": "another question's"})
    _reply(channel, to, ticket, {f"nobody{n}@h": None for n in range(9_000)})
    _reply(channel, to, ticket, [None, 1, {"a": "b"}])
    _reply(channel, to, ticket, {"big@h": "x" * (5 << 20)})


def talkatively(channel: Any, to: Any, ticket: str, ended: Any) -> None:
    """Replies again and again, sooner each time than one would stop waiting."""

    def talk() -> None:
        with Connection(channel.connection.client.as_uri()) as connection:
            for number in range(1_000):
                if ended.wait(0.1):
                    return
                _reply(connection.channel(), to, ticket, {"talker@h": number})

    threading.Thread(target=talk, daemon=True).start()


def test_replies_that_nobody_can_read_do_not_cost_those_of_others(valkey: Any, tmp_path: Path) -> None:
    """A pickle is not opened, and neither it nor any other reply keeps honest workers from being heard."""
    _Ran.mark = tmp_path / "ran"
    with answering(valkey.url, hostilely, honestly), Connection(valkey.url) as connection:
        everybody = replies(connection, "celery", "stats", (), 1.0)
        named = replies(connection, "celery", "stats", ["honest@h", "gone@h"], 1.0)
    assert "honest@h" not in everybody or everybody["honest@h"] == HONEST
    assert len(everybody) == 5_000
    assert "big@h" not in everybody
    assert named == {"honest@h": HONEST}
    assert not _Ran.mark.exists()


def test_the_fixture_does_send_a_pickle_that_runs(tmp_path: Path) -> None:
    """Whoever accepts pickles runs it: that is what the test above is worth."""
    import pickle

    _Ran.mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(_Ran()))
    assert _Ran.mark.exists()


def test_who_replies_for_ever_is_not_waited_for(valkey: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The question ends although the next reply always comes before anybody would give up."""
    monkeypatch.setattr("celeryscope.monitor.replies.LONGEST", 0.5)
    asked: list[dict[str, Any]] = []
    with answering(valkey.url, honestly, talkatively):

        def ask() -> None:
            with Connection(valkey.url) as connection:
                asked.append(replies(connection, "celery", "stats", (), 0.5))

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        eventually(lambda: asked, 20)
        thread.join()
    assert asked[0]["honest@h"] == HONEST
    assert "talker@h" in asked[0]


def test_a_monitor_takes_no_pickle_unless_it_is_told_to() -> None:
    """Neither events nor replies nor failures: a pickle that arrives is counted, and never opened."""
    assert "application/x-python-serialize" not in BrokerConfig.from_url("memory://").loads()
    assert Pidbox.accept == ["json"]
    with pytest.raises(RejectedError, match="json"):
        decode(b"\x80\x04\x95.")


# --- failures that nobody had -----------------------------------------------------------------------------------------


def _failures() -> Iterator[bytes]:
    honest = {"kind": "failure", "task": "shop.pay", "exception": "shop.Error", "message": "no", "environment": "prod"}
    entry = {"fingerprint": "honest", "count": 3, "first": NOW - 5, "last": NOW, "sample": honest}
    yield json.dumps({"v": 1, "id": "honest-1", "entries": [entry]}).encode()
    lie = {**entry, "sample": {**honest, "task": "lie.task"}}
    for number, odd in enumerate([0, -1, 1e308, 10**400, True, None, "1", [], {}]):
        for field in ("count", "first", "last", "fingerprint", "sample"):
            yield json.dumps({"v": 1, "id": f"l{number}{field}", "entries": [{**lie, field: odd}]}).encode()
        yield json.dumps({"v": odd, "id": f"v{number}", "entries": [lie]}).encode()
        yield json.dumps({"v": 1, "id": odd, "entries": odd}).encode()
    yield b'{"v":1,"id":"n","entries":[{"fingerprint":"honest","count":1,"first":NaN,"last":Infinity,"sample":{}}]}'
    hostile = "<!channel> <@U0123456> `*_~\n```&amp;\u202e\x00\ud800" + "y" * 9_000
    sample = dict.fromkeys((*honest, "traceback", "queue", "worker", "uuid", "frame", "release"), hostile)
    sample |= {"args": {hostile: hostile}, "kwargs": {f"k{n}": hostile for n in range(99)}, "retries": -5,
               "gave_up": True,
               "settings": {"runbook": "javascript:alert(1)", "channel": "#general", "severity": "worst"}}  # fmt: skip
    for number in range(3):
        liar = {"fingerprint": f"liar{number}", "count": 10**9, "first": 1.0, "last": 9e10, "sample": sample}
        yield json.dumps({"v": 1, "id": f"liar{number}", "entries": [liar]}).encode()
    yield json.dumps({"v": 1, "id": "honest-2", "entries": [{**entry, "count": 4}]}).encode()
    yield json.dumps({"v": 1, "id": "honest-2", "entries": [{**entry, "count": 4}]}).encode()


def test_failures_that_nobody_had_change_nothing_of_those_that_somebody_had(tmp_path: Path) -> None:
    """Through the store and to Slack: honest failures are counted once each, and Slack takes every message."""
    inbox = Inbox(["general"])
    database = Database(f"sqlite:///{tmp_path / 'incidents.db'}", lambda: NOW)
    database.open()
    plan = Plan("#general")
    intake = Intake(database, lambda _: plan)
    mailbox = Mailbox(database, lambda _: plan, Pace(call=0.0), GuardLimits(100, 300.0))
    rejected = refused = 0
    for body in _failures():
        try:
            refused += len(intake.take([decode(body)], NOW))
        except RejectedError:
            rejected += 1
    assert refused == 0
    assert rejected > 50
    with inbox.serving():
        slack = SlackWeb(SecretStr(TOKEN), base_url=inbox.api_url, noted=lambda _: None)
        composer = Composer(lambda _: plan, Links("http://flower", "http://grafana", "http://runbooks"))
        dispatcher = Dispatcher(mailbox, slack, composer, lambda: NOW, rng=None)  # type: ignore[arg-type]
        mailbox.assign(NOW)
        while dispatcher.step():
            pass
        messages = inbox.top("general")
    database.close()
    texts = [json.dumps(message.body) for message in messages]
    honest = [text for text in texts if "shop.pay" in text]
    assert len(honest) == 1
    assert "7 failures" in honest[0]
    assert len(texts) == 6  # of the odd ones, a fingerprint "1" and an empty sample are none of another shape
    assert not any(ping in text for text in texts for ping in ("<!channel>", "<@U0123456>", "javascript:"))


# --- names ------------------------------------------------------------------------------------------------------------


class _Channel:
    def queue_declare(self, queue: str, passive: bool) -> Any:
        assert len(queue.encode()) <= 255, "amqp breaks the connection for this"
        return type("Told", (), {"message_count": 3, "consumer_count": 1})


def test_a_name_that_amqp_cannot_carry_does_not_cost_the_other_queues() -> None:
    """A liar's queue may have 200 characters, of four bytes each."""
    reader = RabbitReader(lambda: pytest.fail("there is a channel"))
    reader._connection = reader._channel = _Channel()  # type: ignore[assignment]
    facts = reader.read(["pay", "😀" * 100, "mail"], NOW)
    assert facts.keys() == {"pay", "mail"}
    assert reader.problems.counts["gone"] == 1


@pytest.mark.system
def test_promtool_reads_the_page_of_a_monitor_that_was_lied_to() -> None:
    """Prometheus' own parser and linter take every line of it."""
    from hostile import told
    from security.test_liars import CAPS, LIES

    page = told([message for lies in LIES for message in lies()], **CAPS).page()
    done = subprocess.run(
        [system_command("promtool"), "check", "metrics"], input=page, capture_output=True, text=True, check=False
    )
    assert "error while linting" not in done.stderr
    assert done.returncode in (0, 3), done.stderr[-2000:]  # 3: advice on names
