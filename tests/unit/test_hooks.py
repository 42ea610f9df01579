"""The hook sits in front of Celery's handler and changes nothing of it, whatever goes wrong in us."""

from __future__ import annotations

import gc
import json
import logging
import sys
import traceback
import weakref
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import celeryscope
import pytest
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery import Celery, Task, signals
from celery.exceptions import Ignore, Reject, Retry
from celery.worker.request import Request
from celeryscope.alerts import failure, hooks
from celeryscope.alerts.options import Options, task_settings
from celeryscope.alerts.reports import class_name, queue_of, shortened
from celeryscope.monitor.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Callable


class CardError(Exception):
    """A failure of the user's."""


class Wire:
    """A publisher that keeps what it is given."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def publish(self, body: bytes, message_id: str) -> int:
        self.entries += json.loads(body)["entries"]
        return 0

    def close(self) -> None:
        """Nothing to close."""


class BaseRequest:
    """Stands for Celery's `Request`: what happens in its `on_failure` is the test's choice."""

    outcome: Callable[[], object] = staticmethod(lambda: "returned")
    root_id = parent_id = eta = time_start = None
    id = "u1"
    args: Any = ()

    def __init__(self, app: Celery, task: Any, retries: int = 0) -> None:
        self.app, self.task = app, task
        self.request_dict = {"retries": retries}
        self.kwargs: dict[Any, Any] = {}
        self.delivery_info = {"exchange": "", "routing_key": "work"}
        self.sent: list[str] = []

    def send_event(self, type: str, **fields: object) -> None:  # noqa: A002
        self.sent.append(type)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> object:
        return self.outcome()

    def on_timeout(self, soft: bool, timeout: float) -> object:
        return self.outcome()


class Sender:
    """A worker or its consumer, as signals show them."""

    hostname = "w@h"

    def __init__(self, app: Celery) -> None:
        self.app = app


class Site:
    """An app with one task, its reporter, and requests for it."""

    def __init__(self, **options: Any) -> None:
        self.wire = Wire()
        self.app = Celery("shop", broker="memory://", set_as_current=False)
        self.reporter = hooks.connect(self.app, Options(**options))
        self.reporter.outbox._connect = lambda: self.wire

        @self.app.task(shared=False, name="shop.charge")
        def charge(order: int, card: str = "") -> None:
            """Fail."""

        self.task = self.app.tasks["shop.charge"]
        self.kind = hooks.reporting(BaseRequest)

    def request(self, outcome: Callable[[Any], object] | None = None, **fields: Any) -> Any:
        request = self.kind(self.app, self.task, **fields)
        if outcome is not None:
            request.outcome = lambda: outcome(request)
        return request

    def told(self) -> list[dict[str, Any]]:
        assert self.reporter.outbox.flush(30)
        return self.wire.entries


@pytest.fixture(name="site")
def _site() -> Site:
    return Site()


def einfo(error: BaseException) -> Any:
    """What Celery hands to `on_failure`."""
    try:
        raise error
    except BaseException as raised:  # SystemExit is one of the cases
        return SimpleNamespace(exception=raised, traceback=traceback.format_exc(), type=type(raised))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (CardError("x"), "failure"),
        (MemoryError("x"), "failure"),
        (TimeLimitExceeded(3), "time_limit"),
        (WorkerLostError("x"), "lost"),
        (SystemExit(3), "lost"),
        (KeyboardInterrupt(), "lost"),
        (Reject("x", requeue=False), "rejected"),
        (Reject("x", requeue=True), None),
        (Ignore(), None),
        (Terminated("x"), None),
        (Retry("x"), None),
    ],
)
def test_what_is_a_failure(site: Site, error: BaseException, kind: str | None) -> None:
    assert site.request().on_failure(einfo(error)) == "returned"
    assert [entry["sample"]["kind"] for entry in site.told()] == ([kind] if kind else [])


@pytest.mark.parametrize(("event", "told"), [("task-succeeded", 0), ("task-retried", 0), ("task-failed", 1)])
def test_celery_decides_what_became_of_a_lost_process(site: Site, event: str, told: int) -> None:
    """It may have stored its success, or be retried: what Celery announces is what counts, and still goes out."""
    request = site.request(lambda request: request.send_event(event))
    request.on_failure(einfo(WorkerLostError("gone")))
    assert len(site.told()) == told
    assert request.sent == [event]
    assert "send_event" not in request.__dict__


def test_anothers_wrapper_of_send_event_stays(site: Site) -> None:
    """Other instrumentation may have put its own on the very same request."""
    request = site.request(lambda request: request.send_event("task-failed"))
    theirs: list[str] = []
    request.send_event = wrapper = theirs.append
    request.on_failure(einfo(CardError("x")))
    assert theirs == ["task-failed"]
    assert request.send_event is wrapper


@pytest.mark.parametrize("requeue", [True, False])
def test_a_requeued_message_says_so(site: Site, requeue: bool) -> None:
    site.request(lambda request: request.send_event("task-rejected", requeue=requeue)).on_failure(
        einfo(WorkerLostError("gone"))
    )
    assert site.told()[0]["sample"].get("requeued", False) is requeue


@pytest.mark.parametrize("flag", ["_already_revoked", "_already_cancelled"])
def test_what_was_revoked_or_cancelled_is_no_failure(site: Site, flag: str) -> None:
    request = site.request()
    setattr(request, flag, True)
    request.on_failure(einfo(SystemExit(1)))
    request.on_timeout(False, 3)
    assert site.told() == []


def test_one_report_a_request(site: Site) -> None:
    """A hard limit calls `on_timeout` and then `on_failure`, and some paths `on_failure` twice."""
    request = site.request()
    request.on_timeout(True, 1)
    request.on_timeout(False, 3)
    request.on_failure(einfo(TimeLimitExceeded(3)))
    request.on_failure(einfo(WorkerLostError("x")))
    (entry,) = site.told()
    assert (entry["count"], entry["sample"]["message"]) == (1, "the hard time limit of 3 s was exceeded")


def test_throws_are_told_where_asked_for(site: Site) -> None:
    """`throws` are expected; app-wide and per task they can be asked for."""
    site.task.throws = (CardError,)
    site.request().on_failure(einfo(CardError("x")))
    assert site.told() == []
    site.reporter.configure(Options(report_throws=True))
    site.request().on_failure(einfo(CardError("x")))
    assert len(site.told()) == 1


def test_retries_are_told_where_asked_for(site: Site) -> None:
    site.task.celeryscope = {"report_retries": True}
    site.request(retries=1).on_failure(einfo(Retry("again", CardError("x"))))
    assert [entry["sample"]["kind"] for entry in site.told()] == ["retry"]


def test_gave_up_means_no_retry_is_left(site: Site) -> None:
    site.task.max_retries = 2
    for retries in (0, 2):
        site.request(retries=retries).on_failure(einfo(CardError(f"after {retries}")))
    assert site.told()[0]["count"] == 2
    site.request(retries=2).on_failure(einfo(KeyError("other")))
    assert site.told()[1]["sample"]["gave_up"] is True


@pytest.mark.guard_swallows
@pytest.mark.parametrize("broken", ["_report", "_over", "_listen", "_reporter"])
def test_our_errors_change_nothing(site: Site, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of ours raises: Celery's handler runs once, and returns or raises what it did without us."""

    def breaks(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(hooks, broken, breaks)
    runs = []
    assert site.request(runs.append).on_failure(einfo(CardError("x"))) is None
    assert len(runs) == 1

    def raises(_: object) -> None:
        raise MemoryError("Celery's own")

    with pytest.raises(MemoryError, match="Celery's own"):
        site.request(raises).on_failure(einfo(CardError("x")))
    with pytest.raises(MemoryError, match="Celery's own"):
        site.request(raises).on_timeout(False, 1)


def test_our_errors_are_seen_in_tests(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard lets a bug through here, so that it cannot hide."""
    monkeypatch.setattr(hooks, "_report", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        site.request().on_failure(einfo(CardError("x")))


def test_celerys_error_still_is_reported(site: Site) -> None:
    """`MemoryError` makes Celery end the worker from within its handler: the failure is told all the same."""

    def ends(_: object) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        site.request(ends).on_failure(einfo(MemoryError("all of it")))
    assert site.told()[0]["sample"]["exception"] == "MemoryError"


class Hostile(CardError):
    """Whatever is asked of it raises."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __hash__ = __str__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "text",
    [None, 17, "", "x" * 10**7, "\ud800 \x00 Traceback", traceback],
    ids=["none", "number", "empty", "huge", "not text", "module"],
)
def test_hostile_tracebacks(site: Site, text: object) -> None:
    info = SimpleNamespace(exception=Hostile(), traceback=text, type=Hostile)
    site.request().on_failure(info)
    (entry,) = site.told()
    assert entry["sample"]["exception"]


def test_hostile_arguments() -> None:
    """Neither their repr nor their size matters."""
    site = Site(include_args=True)
    request = site.request()
    request.args = (Hostile(), "x" * 10**8, [Hostile()] * 10)
    request.kwargs = {"password": "hunter2", "card": Hostile(), 3: 4}
    request.on_failure(einfo(CardError("x")))
    sample = site.told()[0]["sample"]
    assert list(sample["args"]) == ["order", "card", "arg2"]
    assert sample["args"]["order"] == f"<{__name__}.Hostile>"
    assert sample["kwargs"] == {"password": "***", "card": f"<{__name__}.Hostile>"}
    assert len(json.dumps(sample)) < 10_000


def test_a_recursion_error_near_the_limit(site: Site) -> None:
    """Deep in the user's stack the hook may fail, but only Celery's outcome is seen."""

    def deep(levels: int) -> object:
        return deep(levels - 1) if levels else site.request().on_failure(einfo(CardError("x")))

    assert deep(sys.getrecursionlimit() - 300) == "returned"


def test_arguments_are_withheld_unless_named(site: Site) -> None:
    site.task.celeryscope = {"include_args": ["order"]}
    request = site.request()
    request.args, request.kwargs = (17,), {"card": "4111"}
    request.on_failure(einfo(CardError("x")))
    sample = site.told()[0]["sample"]
    assert sample["args"] == {"order": "17"}
    assert "4111" not in json.dumps(sample)


def test_a_storm_costs_one_entry(site: Site) -> None:
    info = einfo(CardError("x"))
    for _ in range(2_000):
        site.request().on_failure(info)
    assert sum(entry["count"] for entry in site.told()) == 2_000
    assert len({entry["fingerprint"] for entry in site.told()}) == 1


def test_a_users_own_request_stays() -> None:
    """It is subclassed and not replaced; twice hooked is hooked once."""

    class Own(Request):
        pass

    app = Celery("shop", broker="memory://", set_as_current=False)

    @app.task(shared=False, name="own", Request=Own)
    def own() -> None:
        """Nothing."""

    hooks.hook_tasks(app)
    first = app.tasks["own"].Request
    assert issubclass(first, Own)
    assert first.__name__ == "Own"
    hooks.hook_tasks(app)
    assert app.tasks["own"].Request is first
    assert issubclass(app.tasks["celery.chord"].Request, hooks.Reporting)


def test_alerting_task_connects_its_app() -> None:
    """It is enough by itself, and `install` as well is not too much."""
    app = Celery("shop", broker="memory://", set_as_current=False, task_cls=celeryscope.AlertingTask)

    @app.task(shared=False, name="own")
    def own() -> None:
        """Nothing."""

    kind = app.tasks["own"].Request
    assert issubclass(kind, hooks.Reporting)
    reporter = hooks.connect(app)
    celeryscope.install(app, environment="prod")
    assert hooks.connect(app, reporter.options) is reporter
    hooks.hook_tasks(app)
    assert app.tasks["own"].Request is kind
    assert Task.Request == "celery.worker.request:Request"


def test_one_alerting_task_is_one() -> None:
    """Said of one task, it does not report every other task of the app; `install` does, before or after."""
    app = Celery("shop", broker="memory://", set_as_current=False)

    @app.task(shared=False, name="loud", base=celeryscope.AlertingTask)
    def loud() -> None:
        """Nothing."""

    @app.task(shared=False, name="quiet")
    def quiet() -> None:
        """Nothing."""

    assert issubclass(app.tasks["loud"].Request, hooks.Reporting)
    signals.worker_init.send(sender=Sender(app))
    assert app.tasks["quiet"].Request == Task.Request
    celeryscope.install(app)
    signals.worker_init.send(sender=Sender(app))
    assert issubclass(app.tasks["quiet"].Request, hooks.Reporting)


def test_an_app_that_is_gone_leaves_nothing_behind() -> None:
    """A test suite makes thousands of them; a signal must not call the hooks of each."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    celeryscope.install(app, notify_eager=True)
    connection = weakref.ref(hooks._connections[app])
    app.close()
    del app
    gc.collect()
    gc.collect()  # what had been kept for the app is garbage only once that is gone
    assert connection() is None


def test_nothing_runs_in_pool_children(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Receivers that Celery calls in a child, too, look at the process they are in."""
    signals.worker_init.send(sender=Sender(site.app))
    consumer = Sender(site.app)
    message = SimpleNamespace(headers={"task": "x"}, delivery_info={})
    signals.task_rejected.send(sender=consumer, message=message, exc=None)
    assert len(site.told()) == 1
    monkeypatch.setattr("os.getpid", lambda: 1)
    signals.task_rejected.send(sender=consumer, message=message, exc=None)
    monkeypatch.undo()
    assert len(site.told()) == 1


def test_two_apps_do_not_mix(site: Site) -> None:
    """Signals are the process's; each app's hooks heed their own app only."""
    other = Site()
    signals.worker_init.send(sender=Sender(other.app))
    message = SimpleNamespace(headers={"task": "x"}, delivery_info={})
    signals.task_rejected.send(sender=Sender(other.app), message=message, exc=None)
    assert len(other.told()) == 1
    assert site.told() == []


@pytest.mark.parametrize("notify", [True, False])
def test_eager_tasks(notify: bool) -> None:
    """Off by default: a web process or a test suite must not look for a broker."""
    site = Site(notify_eager=notify)

    @site.app.task(shared=False, name="eager")
    def eager() -> None:
        raise CardError("declined")

    assert site.app.tasks["eager"].apply().state == "FAILURE"
    assert [entry["sample"]["task"] for entry in site.told()] == (["eager"] if notify else [])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"environment": 3}, "environment must be a string, not 3"),
        ({"include_args": ["order"]}, "include_args must be True or False"),
        ({"user_packages": "shop"}, "user_packages must be a list of strings, not 'shop'"),
        ({"user_packages": [1]}, "it holds 1"),
        ({"redact": ["("]}, "not a regular expression"),
        ({"redact": 3}, "redact must be a list"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], said: str) -> None:
    app = Celery("shop", broker="memory://", set_as_current=False)
    with pytest.raises((TypeError, ValueError), match=said):
        celeryscope.install(app, **options)


@pytest.mark.parametrize(
    ("raw", "wrong"),
    [
        (None, None),
        ({"channel": "#a", "severity": "critical", "mute": True, "runbook": "https://r"}, None),
        ({"include_args": True}, None),
        ({"colour": "red"}, "has no setting 'colour'"),
        ({"mute": "yes"}, "['mute'] must be a bool, not 'yes'"),
        ({"include_args": "order"}, "include_args must be a list of strings"),
        ("#a", "must be a dict, not str"),
    ],
)
def test_settings_of_a_task(raw: object, wrong: str | None) -> None:
    """What is wrong is named and left out; nothing raises."""
    settings, problems = task_settings("shop.charge", raw)
    assert (wrong is None and problems == []) or wrong in problems[0]
    assert "colour" not in settings.sent


@pytest.mark.guard_swallows
def test_what_cannot_be_read_of_a_request_does_not_cost_its_failure(site: Site) -> None:
    request = site.request()
    request.delivery_info = {"exchange": "own", "routing_key": "x"}
    request.app.amqp.queues = None  # whatever it is that a user's set-up has there
    request.on_failure(einfo(CardError("declined")))
    (entry,) = site.told()
    assert (entry["sample"]["message"], "queue" in entry["sample"]) == ("declined", False)


def test_samples_that_wait_for_the_broker_are_bounded(site: Site) -> None:
    """Up to 1 000 of them, for as long as it is away; a message may be a whole page."""
    waiting = site.reporter.outbox._pending
    site.reporter.outbox._window = 60.0
    site.request().on_failure(einfo(CardError("word " * 100_000)))
    (entry,) = waiting._entries.values()
    assert 3_000 < len(entry.sample.message) <= 4_000
    assert len(entry.sample.traceback or "") <= 4_000


def test_wrong_settings_are_logged_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.task.celeryscope = {"colour": "red"}
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            site.request().on_failure(einfo(CardError("x")))
    assert caplog.text.count("colour") == 1


def test_the_queue_is_never_guessed() -> None:
    """The default exchange names it; another one only where the worker consumes just one queue of it."""

    def queue(name: str, exchange: str, key: str) -> tuple[str, SimpleNamespace]:
        return name, SimpleNamespace(name=name, exchange=SimpleNamespace(name=exchange), routing_key=key)

    consumed = dict([queue("one", "topic", "a.#"), queue("two", "direct", "b"), queue("three", "direct", "c")])
    app = SimpleNamespace(amqp=SimpleNamespace(queues=SimpleNamespace(consume_from=consumed)))
    assert queue_of(app, {"exchange": "", "routing_key": "work"}) == "work"
    assert queue_of(app, {"exchange": "topic", "routing_key": "a.b"}) == "one"
    assert queue_of(app, {"exchange": "direct", "routing_key": "c"}) == "three"
    assert queue_of(app, {"exchange": "direct", "routing_key": "zzz"}) is None
    assert queue_of(app, None) is None


def test_a_long_message_does_not_push_out_the_frames() -> None:
    text = "Traceback (most recent call last):\n  frame\nValueError: "
    message = "word " * 10_000 + "end"
    short = shortened(text + message, message)
    assert short.startswith(text)
    assert len(short) < 1_000


def test_class_names_are_a_tracebacks() -> None:
    assert class_name(ValueError) == "ValueError"
    assert class_name(CardError) == f"{__name__}.CardError"
    assert class_name(TimeLimitExceeded) == "billiard.exceptions.TimeLimitExceeded"


def test_the_guard_counts(site: Site) -> None:
    """No step of ours failed in any test here unnoticed."""
    assert failure.KINDS
    before = dict(Guard.errors)
    site.request().on_failure(einfo(CardError("x")))
    assert dict(Guard.errors) == before
