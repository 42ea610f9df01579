"""The doctor's edges and its report: what it reads of apps, brokers and pages, and how it tells people and scripts."""

from __future__ import annotations

import io
import json
import math
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import celeryscope
import httpx
import pytest
import redis
from celery import Celery, Task, _state, signals
from celery.schedules import crontab
from celeryscope.cli import run
from celeryscope.exporters.doctor_cli import _pages, monitored
from celeryscope.exporters.doctor_settings import DoctorSettings
from celeryscope.exporters.reading import Page
from celeryscope.monitor.beat_reports import Reports
from celeryscope.monitor.broker import BrokerConfig
from celeryscope.monitor.doctor import doors, gather_app, gather_broker, gather_workers
from celeryscope.monitor.doctor.examine import LOOKS, Errand, Errands
from celeryscope.monitor.doctor.facts import FLOWER_METRICS, Monitored, TaskTimes
from celeryscope.monitor.doctor.listen import Ear
from celeryscope.monitor.doctor.page import page
from celeryscope.monitor.doctor.registry import CHECKS
from celeryscope.monitor.doctor.report import as_json, render
from celeryscope.monitor.doctor.verdict import judge
from doctoring import HEALTHY, everywhere, with_redis
from helpers import RedisServer
from kombu import Queue
from rich.console import Console

# --- the report ---------------------------------------------------------------------------------------------------


def shown(*, width: int = 80, colour: bool = False) -> str:
    facts = replace(everywhere(accept_content=["pickle"], task_send_sent_event=False), doors=[])
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False, force_terminal=colour)
    console.print(render(judge(facts, LOOKS, ["reply-keys"])))
    return out.getvalue()


def test_the_report_in_80_columns() -> None:
    """Word for word: what was looked at, what is wrong with why and how to fix it, what was not looked at, the sum."""
    assert shown() == (
        "app        app shop\n"
        "broker     broker rediss://redis.example.com:6379/0\n"
        "workers    w1@host\n"
        "listening  220 events in 11 s\n"
        "monitor    http://127.0.0.1:9808\n"
        "\n"
        "✗ error  accept-pickle\n"
        "  Messages may be pickled\n"
        "  seen  app shop, worker w1@host: accept_content has pickle\n"
        "  why   Whoever can write to the broker runs any code in every worker.\n"
        '  fix   app.conf.accept_content = ["json"]; app.conf.task_serializer = "json";\n'
        '        app.conf.result_serializer = "json"\n'
        "\n"
        "! warning  task-sent-off\n"
        "  Producers do not say what they send\n"
        "  seen  app shop, worker w1@host: task_send_sent_event is off\n"
        "  why   Without task-sent the queue of a task and the time it waited there are\n"
        "        unknown, and what is never fetched is never seen.\n"
        "  fix   celeryscope.install(app), or app.conf.task_send_sent_event = True, in\n"
        "        the producers too.\n"
        "\n"
        "? not checked: open-pages, because no page is known that answers: --url for the\n"
        "  monitor, --flower-url for Flower\n" + passed() + "ignored: reply-keys\n"
        "More on each: celeryscope's docs/doctor.md\n"
        "\n"
        "1 error, 1 warning · 25 passed · 1 not checked · 1 ignored\n"
    )


def passed() -> str:
    """The names of what passed, wrapped by hand."""
    left_out = {"accept-pickle", "task-sent-off", "open-pages", "reply-keys"}
    lines, line = [], "passed:"
    for number, name in enumerate(names := [name for name in CHECKS if name not in left_out], 1):
        word = name + ("," if number < len(names) else "")
        if len(line) + 1 + len(word) > 80:
            lines.append(line)
            line = " " * 7
        line += f" {word}"
    return "\n".join([*lines, line]) + "\n"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal_nor_than_prose_should_be(width: int) -> None:
    assert max(len(line) for line in shown(width=width).splitlines()) <= min(width, 100)


def test_colour_only_adds_to_what_is_said_without() -> None:
    """Severity is a word, too."""
    assert "\x1b" in shown(colour=True)
    assert re.sub(r"\x1b\][^\x1b]*\x1b\\|\x1b\[[0-9;]*m", "", shown(colour=True)) == shown()


def test_scripts_get_the_same_as_data() -> None:
    facts = replace(with_redis(policy="allkeys-lru"), doors=[])
    data = json.loads(json.dumps(as_json(judge(facts, LOOKS, ["reply-keys"]))))
    assert data["failed"] is True
    (finding,) = data["findings"]
    assert finding["id"] == "redis-eviction"
    assert finding["link"].endswith("docs/doctor.md#redis-eviction")
    assert set(finding) == {"id", "severity", "title", "seen", "why", "fix", "link"}
    assert [one["id"] for one in data["not_checked"]] == ["open-pages"]
    assert data["ignored"] == ["reply-keys"]
    assert set(data["passed"]) == set(CHECKS) - {"redis-eviction", "open-pages", "reply-keys"}


def test_every_check_has_its_section_and_its_words() -> None:
    sections = re.findall(r"^### (.+)$", page(), re.MULTILINE)
    assert sections == list(CHECKS)
    for check in CHECKS.values():
        assert all((check.title, check.why, check.fix, check.looks)), check.id


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture(name="_quiet")
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("CELERY_BROKER_URL", "BROKER"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize(
    ("options", "error"),
    [
        (
            ["--broker", "redis://h", "--ignore", "acept-pickle"],
            "did you mean accept-pickle? There are: broker-unreach",
        ),
        ([], "no broker is named"),
        (["-A", "there_is_no_such_app"], "--app: cannot use 'there_is_no_such_app'"),
        (["--broker", "nope://:hunter2@x"], "broker nope://:***@x: No such transport: nope; usual schemes are redis"),
        (["--broker", "a=redis://h", "--broker", "b=redis://h"], "one broker at a time"),
    ],
)
def test_what_cannot_be_used_is_exit_code_2(options: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", *options]) == 2
    streams = capsys.readouterr()
    assert error in streams.err
    assert streams.out == ""


@pytest.mark.usefixtures("_quiet")
def test_a_broker_that_is_away_is_a_failed_check_unless_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    """With the reason, and without the password."""
    arguments = ["doctor", "--broker", "redis://:hunter2@127.0.0.1:1/0", "--url", "", "--listen-for", "0"]
    assert run(arguments) == 1
    streams = capsys.readouterr()
    assert "broker-unreachable" in streams.out
    assert "hunter2" not in streams.out
    assert run([*arguments, "--ignore", "broker-unreachable", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []


# --- what it reads ------------------------------------------------------------------------------------------------


def nothing() -> None: ...


def safe() -> None:
    """Do nothing, twice if need be: Idempotent."""


@pytest.fixture(name="unheard")
def _unheard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever other tests have connected or imported is not heard of here."""
    for heard in (signals.task_failure, signals.task_unknown):
        monkeypatch.setattr(heard, "receivers", [])
    # A shared task of a module that any other test has imported would be a task of this app, too.
    own = {made for made in _state._on_app_finalizers if made.__module__ == "celery.app.builtins"}
    monkeypatch.setattr(_state, "_on_app_finalizers", own)


@pytest.fixture(name="app")
def _app(unheard: None) -> Iterator[Celery]:
    """An app that nobody else sees: other tests go on with theirs."""
    app = Celery("shop", broker="redis://127.0.0.1:1/0", set_as_current=False)
    app.conf.update(
        task_queues=[Queue("work", queue_arguments={"x-max-priority": 3}), Queue("spare", max_priority=5)],
        task_default_queue="work",
        task_acks_late=True,
        task_default_priority=5,
        task_routes={"shop.mail": {"queue": "mial"}},
        beat_schedule={
            "nightly": {"task": "shop.report", "schedule": crontab(hour="3"), "options": {"queue": Queue("reports")}},
            "often": {"task": "shop.pay", "schedule": 30.0, "options": {"priority": 9}},
        },
    )

    for name in ("pay", "mail"):
        app.task(name=f"shop.{name}", shared=False, autoretry_for=(KeyError,), retry_jitter=False)(nothing)
    app.task(name="shop.report", shared=False, time_limit=7200, ignore_result=True)(safe)
    yield app
    app.close()


def test_an_app_is_read(app: Celery) -> None:
    found = gather_app.project(app, "shop")
    assert found.configuration.where == "app shop"
    assert set(found.configuration.settings) == set(gather_app.SETTINGS)
    assert found.queues == {"work": {"x-max-priority": 3}, "spare": {"x-max-priority": 5}}
    assert found.routed == {"shop.pay": "work", "shop.mail": "mial", "shop.report": "work"}
    assert [(entry.name, entry.queue, entry.crontab, entry.priority) for entry in found.entries] == [
        ("nightly", "reports", True, None),
        ("often", None, False, 9),
    ]
    pay, report = found.configuration.tasks["shop.pay"], found.configuration.tasks["shop.report"]
    assert (pay.acks_late, pay.priority, pay.autoretry, pay.backoff, pay.jitter) == (True, 5, True, False, False)
    assert (report.time_limit, report.ignore_result, report.idempotent, pay.idempotent) == (7200, True, True, False)
    assert not any(name.startswith("celery.") for name in found.configuration.tasks)


def test_routes_of_every_kind_are_followed(app: Celery) -> None:
    """Patterns, pairs, plain names, functions; what raises is named."""

    def route(name: str, *_: object, **__: object) -> object:
        if name == "shop.mail":
            raise KeyError("args")
        answers = {
            "shop.pay": {"queue": "by_hand", "priority": 4},
            "shop.text": "text",
            "shop.topic": {"exchange": "media", "routing_key": "media.video"},
        }
        return answers.get(name)

    for name in ("text", "topic"):
        app.task(name=f"shop.{name}", shared=False)(nothing)

    app.conf.task_routes = ([("shop.rep*", {"queue": "reports"}), ("other.*", "others")], route)
    found = gather_app.project(app, "shop")
    hand_made = {"shop.pay": "by_hand", "shop.text": "text"}
    assert found.routed == {"shop.report": "reports", "other.*": "others", **hand_made}
    assert found.unroutable == ["shop.mail (KeyError)", "shop.topic (by exchange and routing key)"]
    assert found.route_priorities == {4}


def test_a_router_that_exits_is_one_that_cannot_be_followed(app: Celery) -> None:
    """Only whoever sits there ends the doctor."""

    def route(name: str, *_: object, **__: object) -> object:
        raise SystemExit(name) if name != "shop.pay" else ending

    app.conf.task_routes = (route,)
    ending: BaseException = GeneratorExit()
    found = gather_app.project(app, "shop")
    assert found.unroutable == ["shop.pay (GeneratorExit)", "shop.mail (SystemExit)", "shop.report (SystemExit)"]
    ending = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        gather_app.project(app, "shop")


def test_who_hears_of_failures(app: Celery) -> None:
    """celeryscope's reports, or an `on_failure` of a task's own."""
    assert not gather_app.project(app, "shop").failures_noticed

    class Careful(Task):  # type: ignore[type-arg]
        def on_failure(self, *_: object) -> None: ...

    app.task(name="shop.careful", shared=False, base=Careful)(nothing)
    assert gather_app.project(app, "shop").failures_noticed


def test_an_installed_app_hears_of_failures(unheard: None) -> None:
    app = Celery("installed", broker="redis://127.0.0.1:1/0", set_as_current=False)
    celeryscope.install(app)
    assert gather_app.project(app, "installed").failures_noticed
    app.close()


def test_what_workers_tell_is_read() -> None:
    """Also in the old spelling, and whatever is of the wrong kind is not known."""
    line = (
        "shop.pay [acks_late=True time_limit=9 autoretry_for=(<class 'A b'>, <class 'B'>) retry_backoff=0 priority=3]"
    )
    stats = {"pool": {"max-concurrency": 4, "timeouts": [0, 60], "implementation": "p"}, "prefetch_count": 16}
    queues = [{"name": "work", "queue_arguments": {"x-max-priority": 3}}, {"name": "bad.celery.pidbox"}]
    found = gather_workers.worker("w", stats, queues, [line, "shop.plain"], {"CELERY_TIMEZONE": "Asia/Tokyo"})
    assert found.configuration is not None
    assert found.configuration.settings["timezone"] == "Asia/Tokyo"
    task = found.configuration.tasks["shop.pay"]
    assert (task.acks_late, task.time_limit, task.autoretry, task.backoff, task.priority) == (True, 9, True, False, 3)
    assert found.tasks == {"shop.pay", "shop.plain"}
    assert found.queues == {"work": {"x-max-priority": 3}}
    assert (found.slots, found.prefetch, found.time_limits) == (4, 16, (0, 60))
    silent = gather_workers.worker("w", None, "no", {"error": "x"}, {"error": "x"})
    assert (silent.configuration, silent.tasks, silent.queues, silent.time_limits) == (None, None, None, None)


@pytest.mark.parametrize("prefix", ["", "shop:"])
def test_a_redis_is_read_and_not_changed(valkey: RedisServer, prefix: str) -> None:
    """Also where it is shared with others, by a prefix of all keys."""
    config = BrokerConfig.from_url(valkey.url, transport_options={"global_keyprefix": prefix})
    with redis.Redis.from_url(valkey.url) as client:
        client.sadd(f"{prefix}_kombu.binding.work", "\x06\x16\x06\x16work", "\x06\x16\x06\x16other")
        client.sadd(f"{prefix}_kombu.binding.celery.pidbox", "\x06\x16\x06\x16w.celery.pidbox")
        client.sadd(f"{prefix}_kombu.binding.reply.celery.pidbox", "x\x06\x16\x06\x16x.reply.celery.pidbox")
        client.lpush(f"{prefix}work", "a", "b")
        client.lpush(f"{prefix}work\x06\x163", "c")
        client.hset(f"{prefix}unacked", "tag", "message")
        for number in range(3):
            client.lpush(f"{prefix}{number}.reply.celery.pidbox", "x")
        before = sorted(client.keys())
        found = gather_broker.broker(config, ["named"], 10)
        assert sorted(client.keys()) == before
    assert found.error == ""
    assert {name: queue.ready for name, queue in found.queues.items()} == {"work": 3, "other": 0, "named": 0}
    assert found.redis is not None
    assert (found.redis.policy, found.redis.appendonly, found.redis.save) == ("noeviction", False, "")
    assert (found.redis.reply_keys, found.redis.held) == (3, 1)
    assert found.redis.pubsub_limit == (33554432, 8388608, 60)


@pytest.mark.parametrize(
    ("limit", "value", "overlooked"),
    [
        ("SCANNED", 1, "keys were looked at, there are more"),
        ("BINDINGS", 1, "only 1 of 2 exchanges were looked at"),
        ("QUEUES", 1, "only 1 of 2 queues were looked at"),
        ("QUEUES", 2, ""),
    ],
)
def test_what_was_not_looked_at_is_not_taken_for_nothing(
    valkey: RedisServer, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, overlooked: str
) -> None:
    """On a great server the search ends early."""
    monkeypatch.setattr(gather_broker, limit, value)
    monkeypatch.setattr(gather_broker, "SCAN_STEP", 10 if limit == "SCANNED" else 1_000)
    with redis.Redis.from_url(valkey.url) as client:
        client.mset({f"result-{number}": "x" for number in range(200)})
        client.sadd("_kombu.binding.work", "\x06\x16\x06\x16work")
        client.sadd("_kombu.binding.other", "\x06\x16\x06\x16other")
        found = gather_broker.broker(BrokerConfig.from_url(valkey.url), [], 10)
    assert overlooked in found.overlooked
    assert bool(found.overlooked) == bool(overlooked)


def test_a_redis_that_refuses_says_what(valkey: RedisServer) -> None:
    """As managed ones do: CONFIG, SCAN, INFO."""
    with redis.Redis.from_url(valkey.url) as client:
        client.acl_setuser(
            "guest",
            True,
            passwords=["+secret"],
            keys=["*"],
            channels=["*"],
            commands=["+@all", "-config", "-scan", "-info"],
        )
        found = gather_broker.broker(BrokerConfig.from_url(valkey.url.replace("://", "://guest:secret@")), [], 10)
        client.acl_deluser("guest")
    assert found.redis is not None
    assert (found.redis.policy, found.redis.save, found.redis.reply_keys) == (None, None, None)
    assert "CONFIG GET is refused" in found.redis.refused
    assert "SCAN is refused" in found.redis.unsearched
    assert "SCAN is refused" in found.overlooked
    assert "secret" not in found.label


@pytest.mark.parametrize(
    ("url", "transport", "remote", "tls"),
    [
        ("redis://127.0.0.2:1/0", "redis", [], False),
        ("redis://queue.example.com/0", "redis", ["queue.example.com"], False),
        ("rediss://queue.example.com/0", "redis", ["queue.example.com"], True),
        ("sentinel://a:1/0;sentinel://b:1/0", "redis", ["a", "b"], False),
        ("amqps://u:p@rabbit//", "amqp", ["rabbit"], True),
        ("sqs://", "sqs", [], False),
    ],
)
def test_a_url_tells_how_the_broker_is_spoken_to(url: str, transport: str, remote: list[str], tls: bool) -> None:
    found = gather_broker.describe(BrokerConfig.from_url(url))
    assert (found.transport, list(found.remote), found.tls) == (transport, remote, tls)


def test_pages_are_knocked_at_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on this machine alone is asked for where strangers would ask."""
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if request.url.host == "192.0.2.9":
            raise httpx.ConnectError("refused")
        return httpx.Response(401 if request.url.port == 5555 else 200)

    monkeypatch.setattr(doors, "own_address", lambda: "192.0.2.9")
    pages = [
        ("monitor", "http://me:secret@8.8.8.8:9808/metrics"),
        ("Flower", "http://10.0.0.7:5555"),
        ("at home", "http://127.0.0.1:1/"),
    ]
    found = {door.what: door for door in doors.knock(pages, httpx.MockTransport(answer))}
    assert [(door.public, door.open) for door in found.values()] == [(True, True), (False, False), (False, False)]
    assert all("Authorization" not in request.headers for request in asked)
    assert "secret" not in found["monitor"].url


def test_listening_keeps_who_speaks_and_whose_clock_is_off() -> None:
    ear = Ear(lambda: 1000.0)
    for delay in (3.0, 0.5):
        ear.decode(
            "worker.heartbeat", json.dumps({"type": "worker-heartbeat", "hostname": "w", "timestamp": 1007 - delay})
        )
    ear.decode(
        "task.multi", json.dumps([{"type": "task-started", "hostname": "w"}, {"type": "task-sent", "hostname": "p"}])
    )
    beat = {
        "type": "beat-heartbeat",
        "hostname": "shop@h",
        "app": "shop",
        "boot": "b",
        "leader": True,
        "embedded": True,
    }
    ear.decode("beat.heartbeat", json.dumps(beat))
    ear.decode("beat.heartbeat", json.dumps({**beat, "boot": "gone"}))
    ear.decode("beat.offline", json.dumps({"type": "beat-offline", "boot": "gone"}))
    ear.decode("worker.heartbeat", b"\xff nonsense")
    assert ear.skews == {"w": 6.5}
    assert ear.task_events_of == {"w"}
    assert [(one.app, one.embedded) for one in ear.beats.values()] == [("shop", True)]
    assert ear.events == 7


def test_a_worker_ran_something_where_its_own_count_grows() -> None:
    """And once more was heard of it: the events of those runs may come after the heartbeat that counts them."""
    ear = Ear(lambda: 1000.0)

    def heartbeats(host: str, *counts: int | None) -> None:
        for processed in counts:
            event = {"type": "worker-heartbeat", "hostname": host, "timestamp": 1000.0, "processed": processed}
            ear.decode("worker.heartbeat", json.dumps(event))

    heartbeats("idle", 7, 7, 7)
    heartbeats("forced", None, None)
    heartbeats("just now", 7, 7, 8)
    heartbeats("restarted", 7, 0, 0)
    assert ear.ran == set()
    heartbeats("busy", 7, 9, 9)
    assert ear.ran == {"busy"}


def test_a_beat_that_came_online_meanwhile_is_known_to_have() -> None:
    now = 1000.0
    ear = Ear(lambda: now)

    def said(kind: str, boot: str) -> None:
        event = {"type": f"beat-{kind}", "hostname": "shop@h", "app": "shop", "boot": boot, "leader": None}
        ear.decode(f"beat.{kind}", json.dumps(event))

    said("heartbeat", "before")
    now = 1004.0
    said("online", "new")
    said("heartbeat", "new")
    now = 1014.0
    said("heartbeat", "new")
    told = {boot: (beat.online, beat.last) for boot, beat in ear.beats.items()}
    assert told == {"before": (-math.inf, 1000.0), "new": (1004.0, 1014.0)}


def test_flower_is_asked_for_its_metrics_too() -> None:
    """They stay open whatever password it has."""
    settings = DoctorSettings(flower_url="https://f.example/flower/", status_url="")
    assert list(_pages(settings, Monitored(error="none"))) == [
        ("Flower", "https://f.example/flower/"),
        (FLOWER_METRICS, "https://f.example/flower/metrics"),
    ]


PAGE = """
celery_worker_events_enabled{worker="w"} 0
celery_beats{app="shop"} 2
celery_worker_clock_skew_seconds{worker="w"} -3.5
celery_task_runtime_seconds_bucket{task="t",queue="q",outcome="succeeded",le="1.0"} 5
celery_task_runtime_seconds_bucket{task="t",queue="q",outcome="succeeded",le="10.0"} 9
celery_task_runtime_seconds_bucket{task="t",queue="q",outcome="succeeded",le="60.0"} 10
celery_task_runtime_seconds_bucket{task="t",queue="q",outcome="succeeded",le="+Inf"} 10
celery_task_runtime_seconds_sum{task="t",queue="q",outcome="succeeded"} 25
celery_task_runtime_seconds_count{task="t",queue="q",outcome="succeeded"} 10
celery_task_runtime_seconds_bucket{task="once",queue="q",outcome="succeeded",le="1.0"} 1
celery_task_runtime_seconds_bucket{task="once",queue="q",outcome="succeeded",le="+Inf"} 1
celery_task_runtime_seconds_sum{task="once",queue="q",outcome="succeeded"} 0.5
celery_task_runtime_seconds_count{task="once",queue="q",outcome="succeeded"} 1
celery_task_oldest_running_seconds{task="once",queue="q"} 95
"""


def test_a_monitors_page_tells_times_that_are_certain() -> None:
    """The bound that a run has exceeded, or how long one has been under way; no mean of a few."""
    found = monitored(Page(PAGE), "http://m")
    assert found.tasks == {
        "t": TaskTimes(runs=10, mean=2.5, slowest=10.0),
        "once": TaskTimes(runs=1, mean=0.0, slowest=95.0),
    }
    assert (found.events_on, found.beats, found.skews) == ({"w": False}, {"shop": 2}, {"w": -3.5})


def test_an_errand_is_not_waited_for_for_ever() -> None:
    gate = threading.Event()
    with pytest.raises(TimeoutError, match="asking took more than 0 s"):
        Errand("asking", gate.wait).result(0)
    gate.set()
    assert Errand("asking", lambda: 7).result(10) == 7
    with pytest.raises(KeyError):
        Errand("asking", {}.popitem).result(10)


def test_errands_that_are_broken_off_are_waited_for() -> None:
    """Ctrl-C comes while the main thread waits for one of them; each gets to put away what it has on the broker."""
    errands, put_away = Errands(), []

    def listening() -> None:
        assert errands.stop.wait(60)
        put_away.append("subscription")

    errand = errands.begin("listening", listening)
    # SIGINT itself may be ignored where tests run side by side, and pytest's own deadline is SIGALRM.
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    pressed = threading.Timer(0.05, signal.pthread_kill, (threading.get_ident(), signal.SIGUSR1))

    def wait() -> None:
        pressed.start()
        errand.result(60)

    try:
        with pytest.raises(KeyboardInterrupt):
            wait()
    finally:
        pressed.join(60)
        signal.signal(signal.SIGUSR1, before)
    errands.abandon(60)
    assert put_away == ["subscription"]


def test_the_healthy_set_up_needs_no_words() -> None:
    out = io.StringIO()
    Console(file=out, width=80, highlight=False).print(render(judge(HEALTHY, LOOKS)))
    assert "✓ no check failed · 29 passed\n" in out.getvalue()
    assert "docs/doctor.md" not in out.getvalue()


@pytest.mark.parametrize(("name", "embedded"), [("Beat", True), ("MainThread", False)])
def test_a_beat_tells_whether_a_worker_runs_it(name: str, embedded: bool) -> None:
    """Celery calls the thread or the process so that `celery worker -B` starts, and no other."""
    told: list[bool] = []
    reading = threading.Thread(name=name, target=lambda: told.append(Reports(SimpleNamespace(scheduler=None)).embedded))  # type: ignore[arg-type]
    reading.start()
    reading.join()
    assert told == [embedded]
