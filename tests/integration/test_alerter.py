"""The alerter between a real broker and a Slack that misbehaves over HTTP: nothing lost, nothing said twice."""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import sqlite3
import sys
import time

import httpx
import pytest
import redis
from alerting import PostgresServer, alerter_process, batch, entry, publish, quick_alerter, task_of, told
from celery import Celery
from celeryscope.alerts.alerter import Alerter, Config
from celeryscope.alerts.consumer import REJECTED_QUEUE
from celeryscope.alerts.failure import QUEUE
from celeryscope.alerts.mailbox import Pace
from celeryscope.alerts.policy import Plan
from celeryscope.alerts.slack import SlackWeb
from celeryscope.alerts.slack_blocks import COLORS
from celeryscope.alerts.store import Database
from celeryscope.alerts.successes import SuccessWatch
from celeryscope.demo.inbox import TOKEN, Inbox
from celeryscope.monitor.broker import BrokerConfig
from celeryscope.monitor.sources import Source
from helpers import Process, RedisServer, eventually, running, worker_argv
from kombu import Connection
from ordeal import KINDS, Ordeal, one_in
from pydantic import SecretStr


@pytest.fixture(name="inbox")
def _inbox():
    with Inbox(["general", "payments", "ops"]).serving() as inbox:
        yield inbox


def storm(rounds: int) -> list[bytes]:
    """So many failures of each of 30 kinds, as workers would send them: few messages, each about many kinds."""
    return [
        batch(*(entry(f"f{kind}", count=rounds // 4, task=f"shop.task{kind}") for kind in range(KINDS)))
        for _ in range(4)
    ]


def test_every_failure_is_told_once_whatever_slack_and_the_alerter_go_through(valkey, inbox, tmp_path):
    """3 000 failures of 30 kinds; Slack down, then slow, then losing answers; the alerter killed twice."""

    def fail(rounds: int) -> None:
        publish(valkey.url, storm(rounds))

    Ordeal(tmp_path, valkey.url, inbox, fail, "shop.task", calls_a_second=20).run(100)


def in_process(folder, broker: str, inbox: Inbox, successes: SuccessWatch | None = None, **config) -> Alerter:
    """An alerter within the test, whose incidents are resolved after a second of quiet."""
    defaults = {"quiet": 1.0, "settle_every": 0.2, "pace": Pace(update=1.0, call=0.05)}
    return Alerter(
        Config(default=Plan("#general"), **{**defaults, **config}),
        Database(f"sqlite:///{folder}/incidents.db", time.time),
        lambda noted: SlackWeb(SecretStr(TOKEN), base_url=inbox.api_url, noted=noted),
        [BrokerConfig.from_url(broker)],
        successes or SuccessWatch(),
    )


@contextlib.contextmanager
def started(alerter: Alerter):
    alerter.start()
    try:
        yield alerter
    finally:
        alerter.stop()


def test_unreadable_messages_are_set_aside_and_the_rest_is_told(valkey, inbox, tmp_path):
    """Not JSON, another version or shape, 50 MB, and what is no message at all: counted, kept, in nobody's way."""
    huge = b'{"v": 1, "id": "x", "entries": [], "pad": "' + b"x" * 50_000_000 + b'"}'
    alerter = in_process(tmp_path, valkey.url, inbox)
    with redis.Redis.from_url(valkey.url) as client, started(alerter):
        publish(valkey.url, [b"\xff not json", batch().replace(b'"v":1', b'"v":9'), huge, b'{"v": 1, "id": 7}'])
        client.lpush(QUEUE, "no message")
        publish(valkey.url, [batch(entry())])
        eventually(lambda: len(inbox.top()) == 1, 60)
        eventually(lambda: client.hlen("celeryscope.unacked") == 0 and client.llen(QUEUE) == 0)
        raw = [base64.b64decode(json.loads(message)["body"]) for message in client.lrange(REJECTED_QUEUE, 0, -1)]
    kept = {note["reason"].split(":")[0]: note for note in map(json.loads, raw)}
    assert set(kept) == {"json", "version", "size", "shape", "envelope"}
    assert len(kept["size"]["body"]) == 64 * 1024
    assert kept["envelope"]["body"] == "no message"
    assert alerter.intake.results["rejected"] == 5
    assert alerter.intake.results["notified"] == 1


def test_while_the_store_cannot_be_written_failures_wait_on_the_broker(valkey, inbox, tmp_path, caplog):
    """And nothing is lost or counted twice when it can be again."""
    alerter = in_process(tmp_path, valkey.url, inbox)
    with redis.Redis.from_url(valkey.url) as client, started(alerter):
        with contextlib.closing(sqlite3.connect(tmp_path / "incidents.db")) as file, file:
            file.execute("ALTER TABLE celeryscope_batches RENAME TO away")
        publish(valkey.url, [batch(entry(count=7, message="sesame"))])
        eventually(lambda: "incident store cannot be used" in caplog.text)
        eventually(lambda: client.llen(QUEUE) == 1)
        with contextlib.closing(sqlite3.connect(tmp_path / "incidents.db")) as file, file:
            file.execute("ALTER TABLE away RENAME TO celeryscope_batches")
        eventually(lambda: inbox.top() and told(inbox.top()[0]) == 7, 40)
        assert "sesame" not in caplog.text


def test_it_outlives_a_broker_that_goes_and_comes_back(inbox, tmp_path, caplog):
    server = RedisServer(tmp_path)
    with started(in_process(tmp_path, server.url, inbox)) as alerter:
        eventually(lambda: alerter.consumers[0].waiting == 0)
        server.stop()
        eventually(lambda: "failures cannot be fetched" in caplog.text)
        eventually(lambda: alerter.consumers[0].waiting is None)
        server.start()
        publish(server.url, [batch(entry())])
        eventually(lambda: len(inbox.top()) == 1, 40)
    server.stop()
    assert sum("failures cannot be fetched" in record.message for record in caplog.records) == 1


def test_the_users_unacknowledged_tasks_are_left_alone(valkey, inbox, tmp_path):
    """With kombu's default keys the alerter would put back, and so run again, whatever is under way for a minute."""
    with redis.Redis.from_url(valkey.url) as client, Connection(valkey.url) as user:
        queue = user.SimpleQueue("work")
        queue.put({"a": "task that takes its time"})
        queue.get(timeout=5)
        client.zadd("unacked_index", dict.fromkeys(client.zrange("unacked_index", 0, -1), 1))  # since 1970
        with started(in_process(tmp_path, valkey.url, inbox)):
            publish(valkey.url, [batch(entry())])
            eventually(lambda: len(inbox.top()) == 1)
            assert client.llen("work") == 0
            assert client.hlen("unacked") == client.zcard("unacked_index") == 1
        queue.close()


def test_from_a_failing_task_to_slack_and_green_again(valkey, inbox, tmp_path):
    """A real worker: a failure reported by its hook, then a success of the same task, seen in Celery's events."""
    (tmp_path / "flaky.py").write_text(APP)
    successes = SuccessWatch()
    environment = {"BROKER": valkey.url, "PYTHONPATH": str(tmp_path)}
    process = Process(worker_argv("flaky", "-P", "solo"), log=tmp_path / "worker.log", cwd=tmp_path, env=environment)
    source = Source(BrokerConfig.from_url(valkey.url), successes)
    with running(process) as worker, started(in_process(tmp_path, valkey.url, inbox, successes)) as alerter:
        source.start()
        worker.wait_for("ready.")
        eventually(lambda: source.subscribed)
        app = Celery(broker=valkey.url)
        for _ in range(3):
            app.send_task("flaky.charge", args=(17,))
        eventually(lambda: inbox.top() and told(inbox.top()[0]) == 3, 40)
        (message,) = inbox.top()
        assert task_of(message) == "flaky.charge"
        assert "ValueError" in message.everything
        assert "in charge" in message.everything
        assert "staging" in message.everything

        def resolved() -> bool:
            # The first one may run before the alerter has said which tasks matter.
            app.send_task("flaky.charge", args=(1,))
            return inbox.top()[0].text.startswith("[resolved] flaky.charge")

        eventually(resolved, 40, interval=0.5)
        assert inbox.top()[0].body["attachments"][0]["color"] == COLORS["resolved"]
        assert dict(alerter.facts.states)["open"] == 0
        source.stop()
        app.close()


def test_the_monitor_runs_it_in_its_own_process_if_asked(valkey, inbox, tmp_path):
    """One page shows the facts of both."""
    arguments = ["--broker", valkey.url, "--listen", "127.0.0.1:0", "--state-dir", tmp_path, "--with-alerter"]
    environment = {
        "CELERYSCOPE_SLACK_TOKEN": TOKEN,
        "CELERYSCOPE_SLACK_CHANNEL": "#general",
        "CELERYSCOPE_SLACK_BASE_URL": inbox.api_url,
    }
    command = [sys.executable, "-m", "celeryscope", "monitor", *arguments]
    with running(Process(command, log=tmp_path / "monitor.log", cwd=tmp_path, env=environment)) as monitor:
        monitor.wait_for("and serves")
        address = monitor.output.split("and serves ")[1].split()[0]
        publish(valkey.url, [batch(entry(count=7))])
        eventually(lambda: inbox.top() and told(inbox.top()[0]) == 7)
        page = httpx.get(address, trust_env=False).text
        assert 'celeryscope_alerter_failures_total{result="notified"} 1' in page
        assert "celeryscope_connected" in page
        healthy = httpx.get(address.replace("/metrics", "/-/healthy"), trust_env=False)
        assert (healthy.status_code, healthy.text) == (200, "ok alerter\n")
        assert monitor.stop() == 0


APP = """
import os
import celeryscope
from celery import Celery

app = Celery("flaky", broker=os.environ["BROKER"])
app.conf.broker_connection_retry_on_startup = True
celeryscope.install(app, environment="staging")


@app.task
def charge(order):
    if order == 17:
        raise ValueError(f"order {order} is unlucky")
"""


@pytest.fixture(scope="module", name="postgres")
def _postgres(tmp_path_factory):
    server = PostgresServer(tmp_path_factory.mktemp("postgres"))
    yield server
    server.stop()


@pytest.mark.system
@pytest.mark.timeout(240)
def test_two_alerters_share_a_store_and_one_dies(redis_server, postgres, inbox, tmp_path):
    """On PostgreSQL: 3 000 failures are each counted once and told once, also those that the dead one held."""
    inbox.per_second = 8
    inbox.script = one_in(5)
    with (
        running(quick_alerter(tmp_path, redis_server.url, inbox, store=postgres.url, name="one")) as one,
        running(quick_alerter(tmp_path, redis_server.url, inbox, store=postgres.url, name="two")),
    ):
        publish(redis_server.url, storm(40))
        eventually(lambda: len(inbox.top()) >= 5, 60)
        publish(redis_server.url, storm(60))
        one.send(signal.SIGKILL)
        # What the dead one had not acknowledged comes back after a minute.
        eventually(lambda: len(inbox.top()) >= 28, 90)
        inbox.script = lambda _method: None
        eventually(lambda: len(inbox.top()) == KINDS and {told(m) for m in inbox.top()} == {100}, 120)
        assert len({task_of(message) for message in inbox.top()}) == KINDS
        assert sum(inbox.accepted.values()) < 150


@pytest.mark.system
def test_failures_on_rabbitmq(rabbit, inbox, tmp_path):
    """The queue is the one that workers declare; what cannot be read goes to a bounded one."""
    alerter = in_process(tmp_path, rabbit.url, inbox)
    with started(alerter):
        publish(rabbit.url, [b"rubbish"] * 3 + [batch(entry(count=7))])
        eventually(lambda: inbox.top() and told(inbox.top()[0]) == 7, 40)
        with Connection(rabbit.url) as connection, connection.channel() as channel:
            assert channel.queue_declare(REJECTED_QUEUE, passive=True).message_count == 3
            eventually(lambda: channel.queue_declare(QUEUE, passive=True).message_count == 0)
        eventually(lambda: alerter.consumers[0].waiting == 0)


@pytest.mark.system
@pytest.mark.timeout(300)
def test_a_long_task_and_one_with_an_eta_run_once_beside_the_alerter(redis_server, inbox, tmp_path):
    """A 90 s acks_late task outlives the alerter's visibility timeout of a minute; the site's own is 12 hours."""
    (tmp_path / "lasting.py").write_text(LASTING)
    environment = {"BROKER": redis_server.url, "PYTHONPATH": str(tmp_path), "RUNS": str(tmp_path / "runs")}
    process = Process(worker_argv("lasting", "-c", "2"), log=tmp_path / "w.log", cwd=tmp_path, env=environment)
    with running(process) as worker, running(alerter_process(tmp_path, redis_server.url, inbox)):
        worker.wait_for("ready.")
        app = Celery(broker=redis_server.url)
        app.send_task("lasting.long")
        app.send_task("lasting.short", countdown=75)
        publish(redis_server.url, [batch(entry())])
        eventually(lambda: len(inbox.top()) == 1, 30)
        eventually(lambda: (tmp_path / "runs").read_text().count("end") == 2, 150, interval=1)
        app.close()
    assert sorted((tmp_path / "runs").read_text().split()) == ["end", "end", "start", "start"]


LASTING = """
import os
import time
from celery import Celery

app = Celery("lasting", broker=os.environ["BROKER"])
app.conf.broker_transport_options = {"visibility_timeout": 43_200}
app.conf.broker_connection_retry_on_startup = True
app.conf.task_acks_late = True


def note(word):
    with open(os.environ["RUNS"], "a") as runs:
        runs.write(word + "\\n")


@app.task
def long():
    note("start")
    time.sleep(90)
    note("end")


@app.task
def short():
    note("start")
    note("end")
"""
