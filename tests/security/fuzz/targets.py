# ruff: noqa: PT017
"""What is fuzzed: each target takes any bytes as one kind of input from outside and raises where a promise is broken.

A target raises nothing for any input: what the product refuses, it refuses by the error that it declares. The tests
call the targets with the corpus, and with what hypothesis makes of it; `run.py` calls them under atheris.
"""

from __future__ import annotations

import base64
import functools
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
from celeryscope.alerts import batches, slack_blocks
from celeryscope.alerts.delivery import DeliveryError
from celeryscope.alerts.incidents import absorb, tallies
from celeryscope.alerts.policy import Plan, plan
from celeryscope.alerts.settings import AlerterSettings
from celeryscope.alerts.slack import SlackWeb, SlackWebhook
from celeryscope.alerts.views import Composer, Links, View, decoded, encoded
from celeryscope.demo.inbox import check_limits
from celeryscope.exporters.text import Series
from celeryscope.exporters.webconfig import WebConfig, WebConfigError
from celeryscope.monitor.broker import BrokerConfig
from celeryscope.monitor.catalog import METRICS
from celeryscope.monitor.compat import CompatCounts
from celeryscope.monitor.configuration import SettingsError, load
from celeryscope.monitor.events import Decoder
from celeryscope.monitor.flower_actions import FlowerError
from celeryscope.monitor.flower_client import FlowerClient
from celeryscope.monitor.inspect import Answer, Inspector, Rounds, _ids, _pool, _queues
from celeryscope.monitor.labels import Caps
from celeryscope.monitor.pipeline import Pipeline
from celeryscope.monitor.queues import (
    Directory,
    QueueFacts,
    QueueSnapshot,
    collector_families,
    slot_families,
    snapshot_families,
)
from celeryscope.monitor.queues_rabbitmq import Management, RabbitReader
from celeryscope.monitor.queues_redis_wire import Bindings, read_held, read_tail
from celeryscope.monitor.schedules import Ledger
from celeryscope.monitor.settings import MonitorSettings
from celeryscope.monitor.statecheck import check
from celeryscope.monitor.statefile import StateError, StateFile, encode
from celeryscope.monitor.watch import BrokerWatch
from pydantic import SecretStr

NOW = 1_790_000_000.0
SECRET = "canary-4f1c"
PLAN = Plan(channel="#general", mention="@here")
BROKER = BrokerConfig.from_url("memory://")


# --- events -----------------------------------------------------------------------------------------------------------


def pipeline(observer: CompatCounts | None = None) -> Pipeline:
    caps = Caps({"task": 50, "queue": 20, "worker": 20, "entry": 20, "exception": 20})
    ledger = Ledger(METRICS, caps)
    return Pipeline(METRICS, caps, most=200, ledger=ledger, observer=observer, clock=lambda: NOW + 60)


def rendered(families: Iterable[Any]) -> bytes:
    """The lines of the page; raises where a family cannot be rendered, as it would be left out of the page then."""
    page: list[str] = []
    for family in families:
        page += Series(family.metric, family.metric.name, {}).lines(family.samples)
        for labels, value in family.samples:
            assert all(len(label) <= 300 for label in labels), (family.metric.name, labels)
            numbers = value if isinstance(value, list) else [value]
            assert all(not math.isnan(float(number)) for number in numbers), (family.metric.name, value)
    return "".join(page).encode()


def live(pipe: Pipeline) -> None:
    """Let time pass, scrape and save: none of it may fail, whatever was fed."""
    for at in (1.0, 61.0, 200.0):
        pipe.tick(NOW + at)
        pipe.connection(up=True, now=NOW + at)
    page = rendered(pipe.families())
    assert b"celeryscope_events_total" in page
    state = pipe.dump(clean=True)
    again = pipeline()
    again.load(msgspec.msgpack.decode(msgspec.msgpack.encode(state)), NOW + 300)
    again.tick(NOW + 301)


def events(data: bytes) -> None:
    """Event messages: as a pub/sub payload, inside kombu's envelope, and as a body of any transport."""
    counts = CompatCounts()
    pipe, decoder = pipeline(counts), Decoder(boot="ours")
    envelope = b'{"body": "' + base64.b64encode(data) + b'", "properties": {"body_encoding": "base64"}}'
    for found in (decoder.redis(b"/0.celeryev/x", data), decoder.redis(b"", envelope), decoder.decode("k", data)):
        pipe.feed(found, NOW)
    decoder.decode("k", data, "application/x-python-serialize")
    assert not data or decoder.malformed["content-type"]
    pipe.connection(up=True, now=NOW)
    live(pipe)
    list(counts.families())


# --- outbox -----------------------------------------------------------------------------------------------------------

LINKS = Links("http://flower:5555", "http://grafana:3000", "http://runbooks")


def _plan_of(sample: batches.Sample) -> Plan:
    return plan([], PLAN, task=sample.task, queue=sample.queue or "", exception=sample.exception, own=sample.settings)


def outbox(data: bytes) -> None:
    """Messages of the failure outbox: read, counted, stored, told on Slack within Slack's limits."""
    try:
        batch = batches.decode(data)
    except batches.RejectedError as error:
        assert "\n" not in str(error)[:20]
        return
    incidents = []
    for number, tally in enumerate(tallies([batch], NOW).values()):
        incident = absorb(None, tally, NOW, f"id{number}")
        absorb(incident, tally, NOW + 60, "other")
        text = batches.sample_text(incident.sample)
        assert len(text) < 100_000, len(text)
        assert batches.sample_from(text) == incident.sample
        assert incident.count < 2**63
        incidents.append(incident)
    if incidents:
        _tell(incidents)


def _tell(incidents: list[Any]) -> None:
    composer = Composer(_plan_of, LINKS)
    for kind, shown in (("incident", incidents[:1]), ("rollup", incidents), ("digest", incidents)):
        view = composer.view(kind, shown[:500], 0, NOW)
        assert decoded(encoded(view)) == view
        for said in (slack_blocks.message(view), slack_blocks.in_words(view), slack_blocks.reply(view)):
            check_limits(said)
            text = json.dumps(said, ensure_ascii=False)
            text.encode()
            # Pings come from the plan alone; text of users' cannot make one.
            assert text.count("<!here>") <= 1
            assert "<!channel>" not in text
            assert "<!everyone>" not in text
            assert "<@U" not in text


# --- files ------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="celeryscope-fuzz-"))
    import atexit

    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.lru_cache(maxsize=1)
def _settings() -> MonitorSettings:
    return load(MonitorSettings, options={"broker_url": ("memory://",)}, environ={}, config=Path("/dev/null"))


def state(data: bytes) -> None:
    """The state file: as it lies on the disk, and with a checksum that is right over a content that is not."""
    try:
        content: object = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        content = None
    try:
        packed = encode(content)
    except (RecursionError, msgspec.MsgspecError, OverflowError):
        packed = encode(None)
    header = encode(None).partition(b"\n")[0]
    for raw in (data, header + b"\n" + data, _sealed(data), packed):
        _restore(raw)


def _sealed(payload: bytes) -> bytes:
    from celeryscope.monitor.statefile import _DIGEST, MAGIC, VERSION

    return b"%s %d %d %s\n" % (MAGIC, VERSION, len(payload), _DIGEST(payload).hexdigest().encode()) + payload


def _restore(raw: bytes) -> None:
    folder = _folder() / "state"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    (folder / "state").write_bytes(raw)
    file = StateFile(folder, lambda: NOW)
    try:
        found = file.open()
    except StateError as error:
        assert "\n" not in str(error)
        return
    finally:
        file.close()
    watch = _watch()
    watch.pipeline = watch._new_pipeline()
    for name in {""} & found.keys():
        try:
            check(found[name])
            watch.load(found[name], NOW)
        except Exception as error:
            # Set aside by the service, which says why and goes on with nothing.
            assert not watch.pipeline.tasks.live
            assert not isinstance(error, msgspec.ValidationError) or len(str(error)) < 1_000
    live(watch.pipeline)


@functools.lru_cache(maxsize=1)
def _watch() -> BrokerWatch:
    return BrokerWatch(_settings(), BROKER, METRICS, clock=lambda: NOW)


def settings(data: bytes) -> None:
    """celeryscope.toml, for both services."""
    path = _folder() / "celeryscope.toml"
    path.write_bytes(data)
    for kind in (MonitorSettings, AlerterSettings):
        try:
            load(kind, options={}, environ={}, config=path, also_known=("alerter", "[alerter]", "[monitor]"))
        except SettingsError as error:
            assert error.problems
            for problem in error.problems:
                assert problem
                assert len(problem) < 3_000, problem


def webconfig(data: bytes) -> None:
    """The web configuration file."""
    path = _folder() / "web.yml"
    path.write_bytes(data)
    try:
        WebConfig(path)
    except WebConfigError as error:
        assert str(error)
        assert len(str(error)) < 5_000


# --- answers ----------------------------------------------------------------------------------------------------------

STATUSES = (200, 200, 200, 200, 404, 401, 302, 500, 429, 204)


def _http(data: bytes) -> Callable[[httpx.Request], httpx.Response]:
    status = STATUSES[data[0] % len(STATUSES)] if data else 200

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, content=data[1:], headers={"Content-Type": "application/json"})

    return answer


def flower(data: bytes) -> None:
    """What Flower answers, as JSON of any shape."""
    client = FlowerClient("http://flower", user="u", password=SECRET, transport=httpx.MockTransport(_http(data)))
    for ask in (
        client.online,
        client.workers,
        client.tasks,
        lambda: client.worker("w@h"),
        lambda: client.task("u"),
    ):
        try:
            ask()
        except FlowerError as error:
            assert SECRET not in str(error)
            assert len(str(error)) < 2_000
    client.close()


def management(data: bytes) -> None:
    """What RabbitMQ's management API answers."""

    class Refused:
        heartbeat = 0

        def connect(self) -> None:
            raise ConnectionRefusedError

        ensure_connection = channel = connect

    transport = httpx.MockTransport(_http(data))
    asked = Management(lambda: httpx.Client(base_url="http://rabbit", transport=transport), "/")
    try:
        asked.queues()
    except (httpx.HTTPError, ValueError):
        return
    reader = RabbitReader(Refused, asked)  # type: ignore[arg-type]
    directory = Directory(["q"])
    directory.see((name for found in reader.discover() for name in found), NOW)
    facts = reader.read(directory.names(), NOW)
    rendered([*snapshot_families(QueueSnapshot(NOW, facts)), *collector_families(None, NOW, reader.problems.counts)])
    asked.close()


def messages(data: bytes) -> None:
    """What lies in queues and binding tables on Redis, as any producer can put it there."""
    tail = read_tail(data)
    read_tail(b'"headers":' + data)
    facts = {}
    if tail is not None:
        facts["q"] = QueueFacts(1, {0: 1}, None, None, tail.sent_at or tail.eta)
    held = read_held(data)
    bindings = Bindings()
    exchange, _, table = data.partition(b"\n")
    known = bindings.learn(exchange.decode(errors="replace"), table.split(b"\n"), "\x06\x16")
    for route in (held.route, (exchange.decode(errors="replace"), table[:200].decode(errors="replace"))):
        queue = bindings.queue(route)
        if queue:
            facts[queue[:200]] = QueueFacts(unacked=1)
    facts.update({queue[:200]: QueueFacts(0) for queue in known})
    rendered(snapshot_families(QueueSnapshot(NOW, facts)))


def inspection(data: bytes) -> None:
    """What a worker replies to `active_queues`, `stats`, `active` and `reserved`, as kombu's JSON hands it over."""
    try:
        came = json.loads(data)
    except (ValueError, RecursionError):
        return
    replies = came if isinstance(came, list) else [came]
    said = {worker: reply for r in replies if isinstance(r, dict) for worker, reply in r.items()}
    answers = {worker: Answer(_queues(reply), *_pool(reply)) for worker, reply in said.items()}
    assert all(isinstance(name, str) for reply in said.values() for name in _ids(reply))
    inspector = Inspector(lambda _: answers, Rounds())
    inspector.round(answers, (), 0.0, NOW)
    rendered(slot_families(inspector.topology, dict.fromkeys(answers, 1), ["q"]))


class _Api:
    """slack_sdk below its retries: answers as the bytes say."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __call__(self, *_: Any, **__: Any) -> Any:
        from slack_sdk.web.slack_response import SlackResponse

        status = STATUSES[self.data[0] % len(STATUSES)] if self.data else 200
        try:
            body = json.loads(self.data[1:])
        except (ValueError, RecursionError):
            body = {"ok": False, "error": self.data[1:80].decode(errors="replace")}
        headers = {"Retry-After": self.data[1:20].decode("latin-1")}
        return SlackResponse(
            client=None, http_verb="POST", api_url="", req_args={}, data=body, headers=headers, status_code=status
        ).validate()


def slack(data: bytes) -> None:
    """What Slack answers to each method, and what it answers to a webhook."""
    statuses: list[str] = []
    web = SlackWeb(SecretStr(SECRET), base_url="http://slack/api/", noted=statuses.append)
    web._client.api_call = _Api(data)  # type: ignore[method-assign]
    view = View("notice", text="text")
    for call in (
        lambda: web.post("#general", view, "id"),
        lambda: web.find("#general", "C0000001", NOW),
        lambda: web.find("#general", "", NOW),
        lambda: web.check(["#general"]),
    ):
        try:
            call()
        except DeliveryError as error:
            assert SECRET not in str(error)
            assert len(error.status) < 80
            seconds = getattr(error, "seconds", 1.0)
            assert 0 < seconds <= 3_600, seconds
    _webhook(data, statuses)
    assert all(len(status) < 80 for status in statuses)


def _webhook(data: bytes, statuses: list[str]) -> None:
    hook = SlackWebhook(SecretStr(f"http://slack/services/{SECRET}"), noted=statuses.append)
    answer = SimpleNamespace(
        status_code=STATUSES[data[0] % len(STATUSES)] if data else 200,
        headers={"retry-after": data[1:20].decode("latin-1")},
        body=data[1:].decode(errors="replace"),
    )
    hook._client.send_dict = lambda *_, **__: answer  # type: ignore[method-assign,assignment]
    try:
        hook.post("#general", View("notice", text="text"), "id")
    except DeliveryError as error:
        assert SECRET not in str(error)


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (events, outbox, state, settings, webconfig, flower, management, messages, inspection, slack)
}
