"""The doctor's checks: each finds the fault that is planted, and nothing in a healthy set-up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from celeryscope.monitor.doctor.examine import LOOKS
from celeryscope.monitor.doctor.facts import (
    FLOWER_METRICS,
    Beat,
    Door,
    Entry,
    Facts,
    Heard,
    Monitored,
    Queue,
    TaskTimes,
)
from celeryscope.monitor.doctor.registry import CHECKS, Severity
from celeryscope.monitor.doctor.verdict import Verdict, judge
from doctoring import (
    HEALTHY,
    WORKER,
    configuration,
    everywhere,
    on_rabbit,
    only_workers,
    with_broker,
    with_heard,
    with_monitored,
    with_project,
    with_redis,
    with_task,
)

CRONTABLESS = {"other": {"task": "shop.pay", "schedule": "<freq: 5.00 seconds>"}}
BEATS = {"b1": Beat(app="shop", hostname="shop@a"), "b2": Beat(app="shop", hostname="shop@b")}
RESTARTED = {  # killed; nothing more was heard of it once its successor was there
    "b1": Beat(app="shop", hostname="shop@a", last=3.0),
    "b2": Beat(app="shop", hostname="shop@a", online=3.5, last=9.0),
}
BEATS_IN_TURN = {**RESTARTED, "b1": replace(RESTARTED["b1"], last=4.0)}  # a message of it was still under way
ROUTED = {"shop.pay": "default", "shop.report": "reports"}
DOOR = Door(what="Flower", url="http://h:5555", host="h", public=True, open=True)


def verdict(facts: Facts) -> Verdict:
    return judge(facts, LOOKS)


def found(facts: Facts) -> dict[str, str]:
    """Return what was seen, by id; several findings of one check are joined."""
    seen: dict[str, str] = {}
    for finding in verdict(facts).findings:
        seen[finding.check.id] = "; ".join(filter(None, (seen.get(finding.check.id), finding.seen)))
    return seen


def unlimited() -> Facts:
    facts = everywhere(task_time_limit=None)
    return replace(facts, workers={name: replace(one, time_limits=None) for name, one in facts.workers.items()})


def astray() -> Facts:
    """A queue that is not declared, and consumed all the same."""
    queues = {"default": {}, "reports": {}, "reprots": {}}
    facts = with_project(routed={"shop.pay": "reprots", "shop.report": "reports"})
    return replace(facts, workers={"w1@host": replace(WORKER, queues=queues)})


FAULTS: list[tuple[str, Facts, str]] = [
    ("broker-unreachable", replace(HEALTHY, broker=replace(HEALTHY.broker, error="refused"), workers={}), "refused"),
    ("no-workers", replace(HEALTHY, workers={}), "w1@host send heartbeats, and nobody answers"),
    (
        "no-workers",
        replace(HEALTHY, workers={}, heard=replace(HEALTHY.heard, skews={})),
        "nobody answered a question to all workers, and no heartbeat came",
    ),
    (
        "startup-retry",
        everywhere(broker_connection_retry_on_startup=None),
        "app shop, worker w1@host: broker_connection",
    ),
    (
        "startup-retry",
        only_workers(broker_connection_retry_on_startup=False),
        "worker w1@host: broker_connection_retry",
    ),
    ("timezone-unset", everywhere(timezone=None), "the crontabs of nightly go by UTC"),
    ("timezone-unset", everywhere(timezone=None, enable_utc=False), "go by each machine's local time"),
    (
        "timezone-unset",
        everywhere(timezone=None, beat_schedule={}, beat_scheduler="redbeat.RedBeatScheduler"),
        "what redbeat.RedBeatScheduler holds",
    ),
    (
        "timezone-disagrees",
        only_workers(timezone="UTC"),
        "app shop: timezone Europe/Berlin, enable_utc True; worker w1",
    ),
    ("timezone-disagrees", only_workers(enable_utc=False), "enable_utc False"),
    (
        "accept-pickle",
        everywhere(accept_content=["json", "pickle"]),
        "app shop, worker w1@host: accept_content has pickle",
    ),
    ("accept-pickle", only_workers(accept_content=["application/x-python-serialize"]), "accept_content has pickle"),
    ("accept-pickle", everywhere(result_serializer="pickle"), "result_serializer has pickle"),
    ("plain-broker", with_broker(tls=False), "rediss://redis.example.com:6379/0 is without TLS"),
    ("plain-broker", with_broker(tls=False, password=False), "and without a password"),
    (
        "open-pages",
        replace(HEALTHY, doors=[DOOR]),
        "Flower answers without credentials at http://h:5555: an address of the",
    ),
    ("open-pages", replace(HEALTHY, doors=[replace(DOOR, what=FLOWER_METRICS)]), "Flower's /metrics answers without"),
    (
        "events-off",
        replace(
            only_workers(worker_send_task_events=False),
            monitored=Monitored(url="http://m"),
            heard=replace(HEALTHY.heard, ran=frozenset({"w1@host"})),
        ),
        "w1@host (it ran tasks meanwhile, and no event of them came)",
    ),
    ("events-off", with_monitored(events_on={"w1@host": False}), "w1@host (it runs tasks, and no event of them came)"),
    ("task-sent-off", everywhere(task_send_sent_event=False), "task_send_sent_event is off"),
    ("no-time-limit", unlimited(), "worker w1@host: nothing ever ends shop.pay"),
    (
        "no-time-limit",
        replace(HEALTHY, workers={"w1@host": replace(WORKER, pool="celery.concurrency.thread:TaskPool")}),
        "nothing ever ends shop.pay, shop.report, since the thread pool knows no time limits",
    ),
    ("late-not-idempotent", with_task(acks_late=True, time_limit=60.0), "without a word on idempotence: shop.new"),
    ("visibility-timeout", with_broker(longest_eta=9000.0), "a worker holds a task with an ETA (9000 s)"),
    (
        "visibility-timeout",
        with_task(acks_late=True, idempotent=True, time_limit=8000.0),
        "shop.new is acknowledged late and may run up to its time limit (8000 s), visibility_timeout is 7200 s",
    ),
    (
        "prefetch-long-tasks",
        replace(
            only_workers(worker_prefetch_multiplier=4),
            monitored=replace(HEALTHY.monitored, tasks={"shop.pay": TaskTimes(runs=9, mean=25.0, slowest=30.0)}),
        ),
        "w1@host reserves 4 messages a slot, and may run shop.pay (25 s) on average",
    ),
    (
        "prefetch-long-tasks",
        replace(
            only_workers(worker_prefetch_multiplier=0),
            monitored=replace(HEALTHY.monitored, tasks={"shop.pay": TaskTimes(runs=9, mean=25.0, slowest=30.0)}),
        ),
        "as many messages as there are",
    ),
    ("retry-storm", with_task(autoretry=True), "autoretry_for without retry_backoff: shop.new"),
    (
        "retry-storm",
        with_task(autoretry=True, backoff=True, jitter=False),
        "retry_backoff with retry_jitter off: shop.new",
    ),
    ("no-dead-letter", with_project(failures_noticed=False), "nothing in the app hears of failures"),
    (
        "no-dead-letter",
        on_rabbit(with_project(failures_noticed=False)),
        "no x-dead-letter-exchange on default, reports",
    ),
    (
        "queue-unconsumed",
        with_broker(queues={"lost": Queue(ready=1)}),
        "lost holds 1 message, and no worker consumes it",
    ),
    ("queue-unconsumed", with_project(routed={"other.task": "mail"}, queues={}), "mail is empty so far, and no worker"),
    (
        "route-undeclared",
        astray(),
        "shop.pay → reprots, which is not in task_queues",
    ),
    (
        "task-unregistered",
        with_project(entries=[Entry(name="nightly", task="shop.gone", queue="reports")]),
        "w1@host consumes reports and does not know shop.gone",
    ),
    (
        "task-unregistered",
        with_project(entries=[Entry(name="n", task="other.x")], routed={**ROUTED, "other.*": "reports"}),
        "w1@host consumes reports and does not know other.x",
    ),
    (
        "task-unregistered",
        replace(
            HEALTHY,
            project=None,
            workers={"w1@host": WORKER, "w2@host": replace(WORKER, tasks=frozenset({"shop.pay"}))},
        ),
        "w2@host consumes default and does not know shop.report",
    ),
    ("priority-steps", with_task(priority=5), "priority 5 is used, and priority_steps are 0, 3, 6, 9"),
    ("priority-steps", with_project(route_priorities=frozenset({4})), "priority 4 is used"),
    (
        "priority-steps",
        on_rabbit(with_task(priority=3), **{"x-dead-letter-exchange": "dead"}),
        "priority 3 is used, and default, reports has no x-max-priority",
    ),
    ("reply-keys", with_redis(reply_keys=1693), "1693 reply queues (*.reply.celery.pidbox)"),
    ("several-beats", with_monitored(beats={"shop": 2}), "2 beats lead shop (shop@host)"),
    ("several-beats", with_heard(beats=BEATS), "2 beats lead shop (shop@a, shop@b)"),
    (
        "several-beats",
        with_heard(beats={**RESTARTED, "b1": replace(RESTARTED["b1"], last=5.0)}),
        "2 beats lead shop (shop@a, shop@a)",
    ),
    (
        "several-beats",
        with_heard(beats={**BEATS, "b3": Beat(app="shop", hostname="shop@c", online=5.0, last=5.0)}),
        "2 beats lead shop (shop@a, shop@b, shop@c)",
    ),
    (
        "beat-in-worker",
        with_heard(beats={"b1": Beat(app="shop", hostname="shop@host", embedded=True)}),
        "the beat of shop on shop@host was started by a worker (-B)",
    ),
    ("clock-skew", with_heard(skews={"w1@host": 7.04}), "w1@host by +7.0 s"),
    ("clock-skew", with_heard(skews={"w1@host": -7.0, "w2@host": -7.1}), "all of them, so it may be this machine"),
    (
        "grace-period",
        with_monitored(tasks={"shop.pay": TaskTimes(runs=9, mean=2.0, slowest=300.0)}),
        "shop.pay (300 s or more): longer than 60 s",
    ),
    (
        "redis-eviction",
        with_redis(policy="allkeys-lru"),
        "maxmemory-policy is allkeys-lru, maxmemory is not set so far",
    ),
    ("redis-eviction", with_redis(policy="volatile-ttl", maxmemory=1024), "maxmemory is 1024 bytes"),
    (
        "redis-pubsub-limit",
        with_redis(pubsub_limit=(1 << 20, 0, 0)),
        "pubsub 1048576 0 0; 30 s of events at 20/s need 8 MB",
    ),
    ("redis-pubsub-limit", with_heard(events=220_000, bytes=176_000_000), "30 s of events at 20000/s need 458 MB"),
    ("redis-pubsub-limit", with_redis(pubsub_limit=(0, 1 << 20, 10)), "pubsub 0 1048576 10"),
    ("redis-persistence", with_redis(appendonly=False), 'appendonly is "no" and save is empty'),
]


def test_nothing_is_found_in_a_healthy_set_up() -> None:
    """Whoever has done it all right hears that, and of everything that was looked at."""
    result = verdict(HEALTHY)
    assert [finding.seen for finding in result.findings] == []
    assert [(one.check.id, one.because) for one in result.not_checked] == []
    assert [check.id for check in result.passed] == list(CHECKS)
    assert not result.failed


def test_every_check_is_made_and_has_a_fault_here() -> None:
    assert set(LOOKS) == set(CHECKS)
    assert {name for name, _, _ in FAULTS} | {"results-unused"} == set(CHECKS)


@pytest.mark.parametrize(
    ("name", "facts", "seen"), FAULTS, ids=[f"{name}-{at}" for at, (name, *_) in enumerate(FAULTS)]
)
def test_each_fault_is_found_and_no_other(name: str, facts: Facts, seen: str) -> None:
    result = found(facts)
    assert set(result) == {name}
    assert seen in result[name]


def test_results_that_nobody_stores() -> None:
    """One task that keeps its result is reason enough for a backend."""
    unused = {name: replace(task, ignore_result=True) for name, task in configuration("").tasks.items()}
    facts = with_project(configuration=replace(configuration("app shop"), tasks=unused))
    assert found(facts) == {"results-unused": "app shop: result_backend is set, and all 2 tasks ignore their results"}
    without = with_project(configuration=replace(configuration("app shop", result_backend=None), tasks=unused))
    assert found(without) == {}


def test_what_is_no_fault() -> None:
    """Things that look like one."""
    for facts in (
        everywhere(timezone=None, beat_schedule=CRONTABLESS),  # no crontab, no time zone needed
        replace(
            only_workers(worker_send_task_events=False), heard=with_heard(task_events_of=frozenset({"w1@host"})).heard
        ),
        only_workers(task_time_limit=None),  # the pool has one, by --time-limit
        replace(everywhere(worker_prefetch_multiplier=4)),  # and all tasks are short
        with_broker(tls=False, hosts=["localhost"]),
        with_heard(beats=RESTARTED),  # and the monitor says that there is one
        replace(with_heard(beats=BEATS_IN_TURN), monitored=replace(HEALTHY.monitored, beats={"shop": 1})),
        everywhere(broker_transport_options={}, task_time_limit=60),  # kombu's own timeout is an hour
        with_heard(beats={**BEATS, "b2": replace(BEATS["b2"], leader=False)}),  # a standby
        with_redis(pubsub_limit=(0, 0, 0)),
        with_redis(appendonly=False, save="3600 1"),
        with_project(queues={}, routed={"shop.pay": "default", "shop.report": "reports"}),
        on_rabbit(),
        on_rabbit(with_task(priority=3), **{"x-max-priority": 5}),
        everywhere(broker_transport_options={"visibility_timeout": 7200, "priority_steps": list(range(10))}),
    ):
        assert found(facts) == {}, facts


UNKNOWN: list[tuple[Facts, set[str], str]] = [
    (
        replace(HEALTHY, project=None),
        {"no-dead-letter", "route-undeclared", "timezone-disagrees"},
        "only the app shows its routes: give it with -A",
    ),
    (
        replace(HEALTHY, monitored=Monitored(url="http://m", error="cannot be read"), doors=[]),
        {"grace-period", "open-pages"},
        "how long tasks take only a monitor's page tells (--url), and there is none",
    ),
    (
        replace(with_heard(beats={}), monitored=replace(HEALTHY.monitored, beats={})),
        {"several-beats", "beat-in-worker"},
        "no beat was heard in 11 s: none runs, or celeryscope.install(app) is missing there",
    ),
    (
        replace(
            HEALTHY, heard=Heard(error="listening failed"), monitored=replace(HEALTHY.monitored, skews={}, beats={})
        ),
        {"several-beats", "beat-in-worker", "clock-skew"},
        "listening failed",
    ),
    (
        with_redis(policy=None, pubsub_limit=None, appendonly=None, save=None, refused="CONFIG GET is refused: NOPERM"),
        {"redis-eviction", "redis-pubsub-limit", "redis-persistence"},
        "CONFIG GET is refused: NOPERM",
    ),
    (with_redis(reply_keys=None, unsearched="SCAN is refused"), {"reply-keys"}, "SCAN is refused"),
    (
        with_broker(overlooked="only some 20000 keys were looked at, there are more"),
        {"queue-unconsumed"},
        "only some 20000 keys were looked at, there are more: a queue that nobody consumes may be among the rest",
    ),
    (
        replace(on_rabbit(**{"x-dead-letter-exchange": "dead"}), project=None),
        {"queue-unconsumed", "route-undeclared", "timezone-disagrees"},
        "this broker does not list its queues, and the app was not given (-A)",
    ),
    (
        replace(only_workers(worker_send_task_events=False), monitored=replace(HEALTHY.monitored, events_on={})),
        {"events-off"},
        (
            "w1@host ran nothing meanwhile, and only its runs show whether it was started with -E: look while "
            "it is busy, or ask a monitor (--url)"
        ),
    ),
    (
        replace(with_heard(beats=RESTARTED), monitored=replace(HEALTHY.monitored, beats={})),
        {"several-beats"},
        (
            "a beat of shop came online meanwhile, and the one before was not heard again: it was restarted, or "
            "look once more"
        ),
    ),
    (with_broker(longest_eta=None, eta_unknown="too many"), {"visibility-timeout"}, "too many"),
    (
        with_project(unroutable=["shop.pay (KeyError)"]),
        {"route-undeclared"},
        "where these lead cannot be read: shop.pay (KeyError)",
    ),
    (
        replace(HEALTHY, workers={}, workers_error="this transport has no remote control"),
        {"no-workers", "prefetch-long-tasks", "queue-unconsumed", "task-unregistered", "timezone-disagrees"},
        "this transport has no remote control",
    ),
    (replace(HEALTHY, doors=[replace(DOOR, open=None)]), {"open-pages"}, "nothing answers at http://h:5555"),
]


@pytest.mark.parametrize(("facts", "names", "because"), UNKNOWN, ids=[min(names) for _, names, _ in UNKNOWN])
def test_what_cannot_be_learnt_is_said(facts: Facts, names: set[str], because: str) -> None:
    """Never a silent pass."""
    result = verdict(facts)
    assert {one.check.id for one in result.not_checked} == names
    assert because in {one.because for one in result.not_checked}
    assert not names & {check.id for check in result.passed}
    assert not result.findings


def test_nothing_is_known_without_broker_and_app() -> None:
    broker = replace(HEALTHY.broker, error="refused", redis=None, longest_eta=None)
    result = verdict(Facts(broker=broker, monitored=Monitored(error="no page was named (--url)")))
    assert [finding.check.id for finding in result.findings] == ["broker-unreachable"]
    assert len(result.not_checked) == len(CHECKS) - 2, "plain-broker needs the URL alone"


def test_severities_follow_the_harm() -> None:
    """Only advice is no failure."""
    without_grace = replace(with_monitored(tasks={"t": TaskTimes(runs=9, mean=1.0, slowest=300.0)}), grace=None)
    (finding,) = verdict(without_grace).findings
    assert (finding.severity, verdict(without_grace).failed) == (Severity.INFO, False)
    assert "Kubernetes' default of 30 s" in finding.seen
    (inside,) = verdict(replace(HEALTHY, doors=[replace(DOOR, public=False)])).findings
    assert inside.severity is Severity.INFO
    for host in ("redis", "redis.shop.svc", "redis.shop.svc.cluster.local"):
        (hidden,) = verdict(with_broker(tls=False, hosts=["localhost", host])).findings
        assert (hidden.check.id, hidden.severity) == ("plain-broker", Severity.INFO)
    for host in ("redis.example.com", "10.0.0.7", "fd00::7"):
        (across,) = verdict(with_broker(tls=False, hosts=["redis", host])).findings
        assert (across.check.id, across.severity) == ("plain-broker", Severity.WARNING)
    (metrics,) = verdict(replace(HEALTHY, doors=[replace(DOOR, what=FLOWER_METRICS)])).findings
    assert "return 403" in metrics.fix
    strict = everywhere(task_create_missing_queues=False)
    assert strict.project is not None
    raising = replace(strict, project=replace(strict.project, routed={"shop.pay": "nowhere"}))
    severities = {finding.check.id: finding.severity for finding in verdict(raising).findings}
    assert severities["route-undeclared"] is Severity.ERROR


def test_errors_come_first_and_the_ignored_are_left_out() -> None:
    facts = replace(everywhere(task_send_sent_event=False, accept_content=["pickle"]))
    assert [finding.check.id for finding in verdict(facts).findings] == ["accept-pickle", "task-sent-off"]
    result = judge(facts, LOOKS, ["accept-pickle", "task-sent-off"])
    assert ([one.id for one in result.ignored], result.failed) == (["accept-pickle", "task-sent-off"], False)


def test_a_check_that_breaks_is_said_and_costs_no_other() -> None:
    """Whatever workers tell, in whatever version."""
    result = verdict(everywhere(worker_prefetch_multiplier="many"))
    (broken,) = result.not_checked
    assert broken.check.id == "prefetch-long-tasks"
    assert broken.because.startswith("the check itself failed (ValueError: ")
    assert not result.failed
