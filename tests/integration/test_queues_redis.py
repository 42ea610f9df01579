"""Queues on a real Valkey, with real producers and workers: what is published is what is counted."""

from __future__ import annotations

import json
import logging
import re
import time
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import redis
from celery import Celery
from celeryscope.monitor import stamp
from celeryscope.monitor.broker import BrokerConfig
from celeryscope.monitor.queues import QueueFacts
from celeryscope.monitor.queues_sampler import QueueSampler, QueueSamplerThread, open_sampler
from helpers import ROOT, Process, RedisServer, eventually, running, worker_argv

SEP = "\x06\x16"
WORKER_APP = """
import time
from celery import Celery
app = Celery("queue_app", broker={url!r})
app.conf.update(broker_transport_options={options!r}, worker_prefetch_multiplier=4, task_acks_late=True)

@app.task(name="sleep")
def sleep(seconds):
    time.sleep(seconds)
"""


@contextmanager
def producer(url: str, **conf):
    app = Celery("producer", broker=url, set_as_current=False)
    app.conf.update(**conf)
    stamp.connect(app)
    try:
        yield app
    finally:
        app.close()


@contextmanager
def worker(server: RedisServer, folder: Path, *options: str, transport_options: dict | None = None):
    (folder / "queue_app.py").write_text(WORKER_APP.format(url=server.url, options=transport_options or {}))
    argv = worker_argv("queue_app", "--pool", "solo", "--concurrency", "1", *options)
    with running(Process(argv, log=folder / "worker.log", cwd=folder)) as process:
        process.wait_for("ready.", 60)
        yield process


@contextmanager
def sampling(server: RedisServer, url: str | None = None, transport_options: dict | None = None, **options):
    config = BrokerConfig.from_url(url or server.url, transport_options=transport_options or {})
    sampler = open_sampler(config, **options)
    try:
        yield sampler
    finally:
        sampler.close()


def sampled(sampler: QueueSampler, queue: str) -> QueueFacts:
    for _ in sampler.discover(time.time()):
        pass
    sampler.sample(time.time())
    values = {
        sample[0][0]: sample[1]
        for family in sampler.families(time.time())
        if family.metric.name == "celeryscope_collector_success"
        for sample in family.samples
    }
    assert values == {"queues": 1.0}
    return sampler.snapshot.queues.get(queue, QueueFacts())


def problems(sampler: QueueSampler) -> dict[str, int]:
    return {
        labels[1]: value
        for family in sampler.families(time.time())
        if family.metric.name == "celeryscope_sample_unknown_total"
        for labels, value in family.samples
        if value
    }


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 2_000), ({"global_keyprefix": "my*app:", "sep": ":", "priority_steps": list(range(10))}, 400)],
    ids=["defaults", "prefix, separator and steps"],
)
def test_messages_are_counted_by_priority_and_the_oldest_is_found(valkey, options, count):
    """Depth over all priority lists, however kombu is told to name them; the oldest may be in any of them."""
    with (
        producer(valkey.url, broker_transport_options=options) as app,
        sampling(valkey, None, options, queues=["mail"]) as sampler,
    ):
        before = time.time()
        app.send_task("sleep", (0,), queue="mail", priority=6)
        after = time.time()
        with app.producer_pool.acquire(block=True) as channel:
            for number in range(count):
                app.send_task("sleep", (0,), queue="mail", priority=(0, 3, 6, 9)[number % 4], producer=channel)
        facts = sampled(sampler, "mail")
        assert facts.ready == count + 1
        counted = {priority: count for priority, count in facts.priorities.items() if count}
        assert counted == {0: count // 4, 3: count // 4, 6: count // 4 + 1, 9: count // 4}
        assert (facts.unacked, facts.scheduled) == (0, 0)
        assert facts.oldest_source == "stamp"
        assert before - 0.001 <= facts.oldest_at <= after + 0.001


def test_queues_are_found_by_their_bindings_and_remote_control_is_none(valkey):
    """As kombu 5.7 leaves them: tables, permanent sets and deadlines; in one database with everything else."""
    client = redis.Redis.from_url(valkey.url)
    client.mset({f"other{n}": n for n in range(3_000)})
    client.sadd("_kombu.binding.one", SEP.join(("one", "", "one")), SEP.join(("key", "", "two")))
    client.sadd("_kombu.binding_permanent.three", SEP.join(("three", "", "three")))
    client.zadd("_kombu.binding_deadlines", {"four": 1})
    client.sadd("_kombu.binding.celery.pidbox", SEP.join(("", "", "w@host.celery.pidbox")))
    client.sadd("_kombu.binding.celeryev", SEP.join(("worker.#", "", "celeryev.receiver")))
    client.sadd("_kombu.binding.reply.celery.pidbox", SEP.join(("x", "", "x.reply.celery.pidbox")))
    with sampling(valkey, inspect=False) as sampler:
        sampled(sampler, "one")
        assert set(sampler.snapshot.queues) == {"one", "two"}


def test_unacked_and_scheduled_are_told_apart_and_outlive_a_killed_worker(valkey, tmp_path):
    """A late-acknowledging worker with ETA tasks, one task running: three disjoint states, also after a SIGKILL."""
    with producer(valkey.url) as app, sampling(valkey, queues=["mail"]) as sampler:
        eta = datetime.now(timezone.utc) + timedelta(hours=1)
        for _ in range(3):
            app.send_task("sleep", (0,), queue="mail", eta=eta)
        with worker(valkey, tmp_path, "-Q", "mail") as process:
            eventually(lambda: sampled(sampler, "mail").scheduled == 3)
            for _ in range(50):
                app.send_task("sleep", (600,), queue="mail")

            def settled() -> bool:
                facts = sampled(sampler, "mail")
                return facts.ready + facts.unacked == 50 and facts.unacked > 0 and facts.scheduled == 3

            eventually(settled)
            held = sampled(sampler, "mail").unacked
            process.kill_group()
        facts = sampled(sampler, "mail")
        assert (facts.ready, facts.unacked, facts.scheduled) == (50 - held, held, 3)


def test_unfetched_eta_tasks_are_ready_and_not_waiting_yet(valkey):
    with producer(valkey.url) as app, sampling(valkey, queues=["mail"]) as sampler:
        eta = datetime.now(timezone.utc) + timedelta(hours=1)
        app.send_task("sleep", (0,), queue="mail", eta=eta)
        facts = sampled(sampler, "mail")
        assert (facts.ready, facts.scheduled) == (1, 0)
        assert facts.oldest_at == pytest.approx(eta.timestamp(), abs=0.01)


def deliver(client: redis.Redis, tag: str, queue: str, exchange: str = "", eta: str | None = None, score=None) -> None:
    message = {"body": "W10=", "headers": {"id": tag, "eta": eta}, "properties": {"delivery_tag": tag}}
    client.zadd("unacked_index", {tag: time.time() if score is None else score})
    client.hset("unacked", tag, json.dumps([message, exchange, queue]))


def test_unacked_messages_are_followed_as_they_come_and_go(valkey):
    """Thousands of tags, some acknowledged, some delivered again, some by a consumer whose clock is an hour behind."""
    client = redis.Redis.from_url(valkey.url)
    for number in range(3_000):
        deliver(client, f"tag{number}", f"queue{number % 3}")
    with sampling(valkey) as sampler:
        assert [sampled(sampler, f"queue{n}").unacked for n in range(3)] == [1000, 1000, 1000]
        gone = [f"tag{number}" for number in range(0, 1_500, 3)]
        client.zrem("unacked_index", *gone)
        client.hdel("unacked", *gone)
        for number in range(40):
            deliver(client, f"late{number}", "queue1", score=time.time() - 3_600)
        deliver(client, "tag2", "queue2")
        assert [sampled(sampler, f"queue{n}").unacked for n in range(3)] == [500, 1040, 1000]
        client.delete("unacked_index", "unacked")
        assert [sampled(sampler, f"queue{n}").unacked for n in range(3)] == [0, 0, 0]


def test_scheduled_becomes_unacked_when_its_time_has_come(valkey):
    client = redis.Redis.from_url(valkey.url)
    now = time.time()
    deliver(client, "soon", "mail", eta=datetime.fromtimestamp(now + 60, timezone.utc).isoformat())
    with sampling(valkey, queues=["mail"]) as sampler:
        sampler.sample(now)
        assert (sampler.snapshot.queues["mail"].unacked, sampler.snapshot.queues["mail"].scheduled) == (0, 1)
        sampler.sample(now + 61)
        assert (sampler.snapshot.queues["mail"].unacked, sampler.snapshot.queues["mail"].scheduled) == (1, 0)


def test_routes_lead_to_queues_through_bindings_and_what_leads_nowhere_is_unknown(valkey):
    client = redis.Redis.from_url(valkey.url)
    client.sadd("_kombu.binding.direct", SEP.join(("key", "", "mail")))
    client.sadd("_kombu.binding.topic", SEP.join(("news.#", r"^news\..*?$", "news")))
    client.sadd("_kombu.binding.both", SEP.join(("key", "", "mail")), SEP.join(("key", "", "news")))
    deliver(client, "a", "key", "direct")
    deliver(client, "b", "news.sport", "topic")
    deliver(client, "c", "key", "both")
    deliver(client, "d", "no-such-key", "direct")
    with sampling(valkey, inspect=False) as sampler:
        assert sampled(sampler, "mail").unacked == 1
        assert sampled(sampler, "news").unacked == 1
        assert sampled(sampler, "unknown").unacked == 2


def test_bad_input_costs_its_own_fact_and_nothing_else(valkey, caplog):
    """Wrong types, garbage, a 50 MB message at the tail, a queue deleted meanwhile: all else goes on."""
    caplog.set_level(logging.WARNING)
    client = redis.Redis.from_url(valkey.url)
    client.hset("hash", "a", "b")
    client.lpush("garbage", "no json \xff")
    client.lpush("binary", b"\x00\xff\xfe")
    body = "x" * 50_000_000
    big = {"body": body, "headers": {"celeryscope-sent-at": 1000.5}, "properties": {"delivery_tag": "t"}}
    client.lpush("big", json.dumps(big))
    client.lpush("half", '{"body": "x", "headers": {"celeryscope-sent-at": 1000.5')
    client.set("_kombu.binding.broken", "a string")
    # Named, for kombu binds a queue once per process, and the server has been emptied since.
    names = ["mail", "hash", "garbage", "binary", "half", "big", "never-was"]
    with producer(valkey.url) as app, sampling(valkey, queues=names) as sampler:
        app.send_task("sleep", (0,), queue="mail")
        good = sampled(sampler, "mail")
        found = sampler.snapshot.queues
        assert (good.ready, good.oldest_source) == (1, "stamp")
        assert (found["hash"].ready, found["hash"].unacked) == (None, 0)
        assert [found[name].ready for name in names[2:]] == [1, 1, 1, 1, 0]
        assert found["big"].oldest_at == 1000.5
        assert [found[name].oldest_at for name in ("garbage", "binary", "half")] == [None] * 3
        once = problems(sampler)
        assert once["wrong_type"] >= 2
        assert once["not_json"] == 3
        client.delete("mail")
        received = client.info("stats")["total_net_output_bytes"]
        assert sampled(sampler, "mail").ready == 0
        assert client.info("stats")["total_net_output_bytes"] - received < 100_000
        assert problems(sampler)["not_json"] == 6
        assert sum("garbage" in record.getMessage() for record in caplog.records) == 1


def test_headers_longer_than_what_is_fetched_still_tell_the_age(valkey):
    """User headers and argument reprs of 100 kB: the stamp is at their end."""
    with producer(valkey.url) as app, sampling(valkey, queues=["mail"]) as sampler:
        before = time.time()
        app.send_task("sleep", (0,), queue="mail", headers={"mine": "y" * 100_000, "nested": {"eta": "x"}})
        facts = sampled(sampler, "mail")
        assert facts.oldest_source == "stamp"
        assert before - 0.001 <= facts.oldest_at <= time.time()


def test_messages_without_a_stamp_are_dated_by_the_event_or_watched(valkey):
    app = Celery("bare", broker=valkey.url, set_as_current=False)
    app.send_task("sleep", (0,), queue="mail", task_id="known")
    app.send_task("sleep", (0,), queue="post", task_id="never-seen")
    now = time.time()
    with sampling(valkey, queues=["mail", "post"], sent_times={"known": 1000.0}.get) as sampler:
        sampler.sample(now)
        sampler.sample(now + 30)
        mail, post = sampler.snapshot.queues["mail"], sampler.snapshot.queues["post"]
        assert (mail.oldest_at, mail.oldest_source) == (1000.0, "task-sent")
        assert (post.oldest_at, post.oldest_source) == (now, "watched")
    app.close()


def test_stamp_copied_by_a_retry_is_distrusted(valkey):
    app = Celery("bare", broker=valkey.url, set_as_current=False)
    app.send_task("sleep", (0,), queue="mail", task_id="retried", headers={stamp.HEADER: 1000.0})
    with sampling(valkey, queues=["mail"], sent_times={"retried": 5000.0}.get) as sampler:
        facts = sampled(sampler, "mail")
        assert (facts.oldest_at, facts.oldest_source) == (5000.0, "task-sent")
    app.close()


def test_500_queues_are_five_round_trips(valkey):
    """One script for 100 queues, one pipeline for the counts of the unacknowledged: nothing per queue."""
    client = redis.Redis.from_url(valkey.url)
    with sampling(valkey, queues=[f"queue{n}" for n in range(500)], inspect=False) as sampler:
        sampler.sample(time.time())
        client.config_resetstat()
        sampler.sample(time.time())
        stats = client.info("commandstats")
        assert stats["cmdstat_eval_ro"]["calls"] == 5
        assert stats["cmdstat_zcount"]["calls"] == 1
        outside = set(stats) - {"cmdstat_llen", "cmdstat_eval_ro", "cmdstat_zcount", "cmdstat_zrangebyscore"}
        assert outside <= {"cmdstat_config|resetstat", "cmdstat_info"}


@pytest.fixture(name="own_server")
def _own_server(tmp_path):
    server = RedisServer(tmp_path)
    yield server
    server.stop()


def test_outage_keeps_the_last_snapshot_says_so_once_and_heals(own_server, caplog):
    caplog.set_level(logging.INFO)
    redis.Redis.from_url(own_server.url).lpush("mail", "{}")
    with sampling(own_server, queues=["mail"]) as sampler:
        taken = time.time()
        sampled(sampler, "mail")
        own_server.stop()
        sampler.sample(taken + 10)
        sampler.sample(taken + 20)
        assert sum("cannot be sampled" in record.getMessage() for record in caplog.records) == 1
        assert sampler.snapshot.queues["mail"].ready == 1
        assert sampler.snapshot.taken < taken + 10
        families = {family.metric.name: family.samples for family in sampler.families(taken + 20)}
        assert families["celeryscope_collector_success"] == [(("queues",), 0.0)]
        assert families["celeryscope_sample_timestamp_seconds"] == [(("queues",), sampler.snapshot.taken)]
        own_server.start()
        assert eventually(lambda: sampled(sampler, "mail")).ready == 0
        assert any("can be sampled again" in record.getMessage() for record in caplog.records)


def test_thread_samples_asks_workers_leaves_no_key_and_stops_at_once(valkey, tmp_path):
    """The whole sampler beside a real worker: consumers and slots are known, and Redis is as it was before."""
    client = redis.Redis.from_url(valkey.url)
    with worker(valkey, tmp_path, "-Q", "mail,news", "-n", "first@%h") as process, sampling(valkey) as sampler:
        before = {key: client.type(key) for key in client.keys("*")}
        bindings = {key: client.smembers(key) for key, kind in before.items() if kind == b"set"}
        thread = QueueSamplerThread(sampler, interval=0.2)
        thread.start()
        eventually(lambda: sampler.snapshot.queues["mail"].consumers == 1 if sampler.snapshot.queues else False, 30)
        topology = sampler.topology
        (name,) = topology.queues
        assert name.startswith("first@")
        assert topology.queues[name] == {"mail", "news"}
        assert topology.concurrency[name] == 1
        assert topology.pool[name] == "solo"
        sampler.forget_workers([name])
        eventually(lambda: sampler.snapshot.queues["mail"].consumers == 0)
        sampler.know_workers([name])
        eventually(lambda: sampler.snapshot.queues["mail"].consumers == 1, 30)
        start = time.monotonic()
        thread.stop()
        assert time.monotonic() - start < 5
        assert process.running()
        eventually(lambda: {key: client.type(key) for key in client.keys("*")} == before)
        assert {key: client.smembers(key) for key in bindings} == bindings


def documented_acl() -> list[str]:
    """The `ACL SETUSER` line of docs/brokers.md."""
    (line,) = re.findall(r"^ACL SETUSER .*$", (ROOT / "docs/brokers.md").read_text(), re.MULTILINE)
    return line.split()


@contextmanager
def user(server: RedisServer, *rules: str):
    """A connection URL for a user with these rules, who is removed afterwards."""
    client = redis.Redis.from_url(server.url)
    client.execute_command(*rules)
    client.acl_log_reset()
    try:
        yield server.url.replace("redis://", "redis://celeryscope:secret@")
    finally:
        client.acl_deluser("celeryscope")


def refused(server: RedisServer) -> set[str]:
    """What the server has refused to anybody since the user was made."""
    log = redis.Redis.from_url(server.url).acl_log()
    return {entry["object"] for entry in log if entry["reason"] in {"command", "key", "channel"}}


def contents(client: redis.Redis) -> dict[bytes, bytes | None]:
    """Every key with its value; but for kombu's deadlines, which it moves on whenever a reply queue is declared."""
    return {key: None if key == b"_kombu.binding_deadlines" else client.dump(key) for key in client.keys("*")}


def check_documented_acl(server: RedisServer, folder: Path) -> None:
    client = redis.Redis.from_url(server.url)
    client.lpush("mail", json.dumps({"headers": {stamp.HEADER: 1000.0}, "properties": {"delivery_tag": "t"}}))
    deliver(client, "tag", "mail")
    with worker(server, folder, "-Q", "news"), user(server, *documented_acl()) as url:
        before = contents(client)
        with sampling(server, url, queues=["mail"]) as sampler:
            facts = sampled(sampler, "mail")
            assert (facts.ready, facts.unacked, facts.oldest_at) == (1, 1, 1000.0)
            assert "news" in sampler.snapshot.queues
            sampler.inspect(time.time())
            assert set(sampler.topology.queues.values()) == {frozenset({"news"})}
            assert sampled(sampler, "news").consumers == 1
            assert problems(sampler) == {}
        # redis-py introduces itself to servers that know the command, and does not mind being refused.
        assert refused(server) <= {"client|setinfo"}
        eventually(lambda: contents(client) == before)


def test_documented_acl_suffices_on_valkey(valkey, tmp_path):
    check_documented_acl(valkey, tmp_path)


@pytest.mark.system
def test_documented_acl_suffices_on_redis(redis_server, tmp_path):
    redis.Redis.from_url(redis_server.url).flushall()
    check_documented_acl(redis_server, tmp_path)


@pytest.mark.parametrize("missing", ["scan", "smembers", "llen", "eval_ro", "zcount", "zrangebyscore", "hget"])
def test_command_that_is_refused_costs_its_own_fact_only(valkey, missing):
    client = redis.Redis.from_url(valkey.url)
    client.lpush("mail", json.dumps({"headers": {stamp.HEADER: 1000.0}, "properties": {"delivery_tag": "t"}}))
    client.sadd("_kombu.binding.news", SEP.join(("news", "", "news")))
    deliver(client, "tag", "mail")
    with (
        user(valkey, *documented_acl(), f"-{missing}") as url,
        sampling(valkey, url, queues=["mail"], inspect=False) as sampler,
    ):
        facts = sampled(sampler, "mail")
        assert facts.ready == (None if missing == "llen" else 1)
        assert facts.oldest_at == (None if missing in {"llen", "eval_ro"} else 1000.0)
        assert facts.unacked == (None if missing in {"eval_ro", "zcount", "zrangebyscore", "hget"} else 1)
        assert ("news" in sampler.snapshot.queues) == (missing not in {"scan", "smembers"})
        assert problems(sampler)["permission"] >= 1


def test_key_that_is_refused_costs_its_own_facts_only(valkey):
    client = redis.Redis.from_url(valkey.url)
    for queue in ("mail", "secret"):
        client.lpush(queue, json.dumps({"headers": {stamp.HEADER: 1000.0}, "properties": {"delivery_tag": "t"}}))
    rules = [rule for rule in documented_acl() if rule != "%R~*"]
    with (
        user(valkey, *rules, "%R~mail*", "%R~unacked*", "%R~_kombu.*") as url,
        sampling(valkey, url, queues=["mail", "secret"], inspect=False) as sampler,
    ):
        assert sampled(sampler, "mail").ready == 1
        assert sampled(sampler, "secret").ready is None
        assert sampler.snapshot.queues["mail"].unacked == 0


@pytest.mark.system
def test_redis_without_read_only_scripts_is_asked_by_eval(redis_server):
    """As on Redis 6: EVAL_RO is unknown there (here it is renamed away from the user by the ACL)."""
    client = redis.Redis.from_url(redis_server.url)
    client.flushall()
    client.lpush("mail", json.dumps({"headers": {stamp.HEADER: 1000.0}, "properties": {"delivery_tag": "t"}}))
    with (
        user(redis_server, *documented_acl(), "-eval_ro", "+eval", "~*") as url,
        sampling(redis_server, url, queues=["mail"], inspect=False) as sampler,
    ):
        assert sampled(sampler, "mail").oldest_at == 1000.0
