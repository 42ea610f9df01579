"""A producer that lies, claims and floods cannot change what is told of others, nor break the page that tells it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from celeryscope.monitor.guard import Guard
from hostile import APP, START, TASKS, WORKERS, Watched, enveloped, event, payload, told
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

NAMES = [
    "",
    "x\n# EOF\n",
    'a"} 1\n',
    "\\",
    "é😀",
    "\u2028\x85\r",
    "\0",
    "n" * 10_000,
    "unknown",
    "__other__",
    "%s%n",
    "{}",
]
CAPS = {"task": 200, "queue": 100, "worker": 100, "exception": 50, "entry": 200}
NUMBERS = [1e308, -1e308, -1, 0, 1e-300, 1e10, 99_999_999_999.0, 2**63, 10**400, True, "1", None, [], {}]


def lie(kind: str, /, **fields: Any) -> dict[str, Any]:
    """A liar's event: unless it says otherwise of a worker, a task and a run of its own."""
    given = {"uuid": "lie", "name": "lie.task", "queue": "lies"} if kind.startswith("task") else {}
    given |= {"app": "lies", "boot": "lie"} if kind.startswith("beat") else {}
    return {**event(kind, "liar@n9", 5.0, **given), **fields}


def odd_numbers() -> list[bytes]:
    """Each number of each event is one that no honest clock, counter or process has; NaN and infinities, too."""
    fields = ("timestamp", "pid", "clock", "retries", "runtime", "active", "processed", "freq", "utcoffset")
    kinds = ("task-sent", "task-received", "task-started", "task-succeeded", "worker-heartbeat", "worker-online")
    lies = [
        payload(lie(kind, uuid=f"{kind}{field}", **{field: n})) for kind in kinds for field in fields for n in NUMBERS
    ]
    text = json.dumps(lie("task-succeeded"))
    unreal = [text.replace(str(START + 5.0), word) for word in ("NaN", "Infinity", "-Infinity", "1e999")]
    return [*lies, *(enveloped(word.encode()) for word in unreal)]


def odd_names() -> list[bytes]:
    """Every name is none; with lone surrogates and bytes that are no UTF-8, also as whole messages."""
    kinds = ("task-sent", "task-received", "task-failed", "worker-online", "worker-offline", "beat-online")
    fields = ("hostname", "uuid", "name", "queue", "exception", "traceback", "eta", "expires", "app", "boot", "sw_ver")
    lies = [payload(lie(kind, **{field: name})) for kind in kinds for field in fields for name in NAMES]
    raw = json.dumps(lie("task-sent", name="@", queue="@")).encode()
    return [*lies, *(enveloped(raw.replace(b"@", junk)) for junk in (b"\xff", b"\\ud800", b"\\udfff\\ud800", b"\xc3"))]


def depths() -> list[bytes]:
    """Nesting without end, lists without end, and strings of the longest message that is read and of longer ones."""
    deep, wide = b"[" * 100_000, b"[" + b"0," * 500_000 + b"0]"
    long = ["x" * size for size in (1_000_000, 3_000_000, 8_000_000)]
    fields = ("name", "queue", "exception", "result", "kwargs", "unheard-of")
    texts = [
        payload(lie("task-sent", uuid=f, **{f: text})) for text in long for f in fields[: 6 if text is long[0] else 2]
    ]
    inside = [json.dumps(lie("task-failed", traceback="@")).encode().replace(b'"@"', junk) for junk in (deep, wide)]
    return [enveloped(deep), enveloped(wide), enveloped(b"[" * 900 + b"]" * 900), *map(enveloped, inside), *texts]


def multitudes() -> list[bytes]:
    """Hundreds of tasks, queues, workers and exceptions that nobody has, over every cap below."""
    return [
        payload([
            lie("task-sent", uuid=f"m{n}", name=f"lie.{n}", queue=f"q{n}"),
            lie("task-failed", uuid=f"m{n}", hostname=f"w{n}@lies", exception=f"E{n}('x')"),
            lie("worker-heartbeat", hostname=f"w{n}@lies", processed=n, active=n),
        ])
        for n in range(600)
    ]  # fmt: skip


def times() -> list[bytes]:
    """ETAs and expiries at the ends of the calendar, starts and ends years ahead and behind."""
    moments = [
        "9999-12-31T23:59:59-23:59",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59.999999",
        "nan",
        "5e9",
        "Z",
    ]
    kinds = ("task-received", "task-started", "task-succeeded", "task-retried", "worker-heartbeat", "worker-offline")
    lies = [payload(lie("task-sent", uuid=f"t{n}{m}", eta=m, expires=m)) for n in range(3) for m in moments]
    far = (START + 40 * 365 * 86_400.0, 1.0, 9e10)
    return lies + [payload(lie(kind, uuid=f"f{at}", timestamp=at)) for at in far for kind in kinds]


def schedules() -> list[bytes]:
    """Beats of an app of its own: entries by the thousand, intervals that are none, specs that nobody ends reading."""
    specs = ["* * * * *", "0 0 30 2 *", "*/0 * * * *", "9" * 490 + " * * * *", ",".join(["1-59"] * 90) + " * * * *"]
    entries = [
        {"entry": f"e{n}", "task": "lie.t", "kind": kind, "spec": spec, "tz": tz, "every": every, "next_due": due,
         "dispatched": 2**53, "last_dispatch": last}
        for n, (kind, spec, tz, every, due, last) in enumerate(
            [("crontab", s, z, None, START, 1.0) for s in specs for z in ("UTC", "../../etc/passwd", "x" * 4_000)]
            + [(k, "x", None, e, START, 1.0) for k in ("interval", "relative") for e in (1e-300, 1e-6, 0.0, 9e10)]
            + [(k, s, None, None, 9e10, 9e10) for k in ("solar", "clocked", "x" * 999)
               for s in ("sunset 1e308 nan", "9999-12-31", "")]
        )
    ]  # fmt: skip
    many = [{"entry": f"many{n}", "kind": "interval", "every": 60.0} for n in range(600)]
    boots = [lie("beat-online", boot=f"b{n}", app=f"app{n}") for n in range(200)]
    runs = [
        lie(
            "beat-dispatched",
            entry=f"e{n}",
            uuid=f"u{n}",
            sent=at,
            due=at,
            dispatched=2**53 - n,
            kind="interval",
            every=e,
        )
        for n, (at, e) in enumerate([(1.0, 1e-300), (9e10, 1e-3), (START, 1e-9), (START, 9e10)])
    ]
    beats = [lie("beat-heartbeat", seq=n, last_tick=9e10, asof=9e10, full=True, dropped=2**53,
                 totals={"e1": [2**53, 2**53, 9e10], "": [1, 1, 1]}) for n in (1, 2, 2**53)]  # fmt: skip
    listing = [lie("beat-schedule", listing=1, entries=chunk) for chunk in (entries, many)]
    return [payload(part) for part in ([lie("beat-online")], *[[one] for one in listing], runs, beats, boots, beats)]


def echoes() -> list[bytes]:
    """Echoes of other monitors, of none, and of this one: its boot is known to whoever listens."""
    return [payload(lie("celeryscope-echo", boot=b, seq=s, timestamp=at))
            for b in ("ours", "theirs", "") for s in (0, 2**53) for at in (1.0, 9e10)]  # fmt: skip


LIES = (odd_numbers, odd_names, depths, multitudes, times, schedules, echoes)


@pytest.fixture(scope="module", name="truth")
def _truth() -> Any:
    Guard.reraise = True
    return told(**CAPS).honest_series()


def test_the_honest_application_has_series_of_all_kinds(truth: Any) -> None:
    """What is compared below is worth comparing: tasks, workers and entries, counts, histograms and gauges."""
    names = {name for name, _ in truth}
    assert truth["celery_task_sent_total", (TASKS[0], "pay")] == 239
    assert truth["celery_worker_starts_missed_total", (WORKERS[0],)] == 0
    assert truth["celery_beat_dispatched_total", (APP, "tick")] == 7
    assert truth["celery_beat_missed_total", (APP, "nightly")] > 0
    assert sum(truth["celery_task_runtime_seconds", (TASKS[0], "pay", "succeeded")][:-1]) > 100
    assert len(names) > 40


@pytest.mark.parametrize("lies", LIES, ids=lambda lies: lies.__name__)
def test_a_lie_changes_nothing_that_is_told_of_others(lies: Any, truth: Any) -> None:
    """Every series of honest tasks, workers and entries is as it is where nobody lies; the page can be read."""
    watched = told(lies(), **CAPS)
    assert watched.honest_series() == truth
    _readable(watched)


def test_all_lies_at_once_change_nothing_either(truth: Any) -> None:
    """One after the other, in one stream; and all that was not taken for true is counted as malformed."""
    watched = told([message for lies in LIES for message in lies()], **CAPS)
    assert watched.honest_series() == truth
    assert watched.decoder.malformed["field"] > 300
    assert watched.decoder.malformed["size"] >= 2
    assert watched.decoder.malformed["json"] >= 2
    _readable(watched)


def _readable(watched: Watched) -> None:
    text, openmetrics = watched.page(), watched.page(openmetrics=True)
    assert "celeryscope_collector_success" not in text  # `own` is off: what fails is seen by what is missing
    for read, page in ((read_text, text), (read_openmetrics, openmetrics)):
        assert sum(len(family.samples) for family in read(page)) > 100
    assert 'celery_task_sent_total{queue="pay",task="shop.pay"} 239' in text


def test_who_comes_after_a_flood_of_names_is_counted_together_with_the_others() -> None:
    """The label caps are there for the page's sake: nothing is lost, and the overflow is told."""
    watched = Watched(task=50, queue=50, worker=50, exception=20, entry=20)
    for message in multitudes()[:500]:
        watched.hear(1.0, message)
    flooded = watched.series()
    mine = [event("task-sent", "web@n0", 2.0, uuid=f"mine{n}", name="shop.late", queue="late") for n in range(9)]
    watched.hear(2.0, payload(mine))
    series = watched.series()
    assert _total(series, "celery_task_sent_total") == _total(flooded, "celery_task_sent_total") + 9 == 509
    assert series["celery_task_sent_total", ("__other__", "__other__")] >= 9
    assert series["celeryscope_label_overflow_total", ("task",)] > 400
    assert series["celeryscope_label_overflow_total", ("queue",)] > 400
    assert series["celeryscope_label_overflow_total", ("worker",)] > 400
    assert len({labels for name, labels in series if name == "celery_worker_up"}) <= 51


def _total(series: Any, name: str) -> float:
    return sum(value for (metric, _), value in series.items() if metric == name)


CLAIMS: Sequence[dict[str, Any]] = (
    lie("worker-heartbeat", hostname=WORKERS[0], processed=2**53, active=0),
    lie("worker-offline", hostname=WORKERS[0]),
    lie("worker-online", hostname=WORKERS[0], pid=99),
    lie("worker-heartbeat", hostname=WORKERS[0], pid=-4),
    lie("task-started", hostname=WORKERS[0], timestamp=9e10),
    lie("worker-heartbeat", hostname=WORKERS[0], timestamp=1.0, loadavg=[1e308, 0, 0]),
)


@pytest.mark.parametrize(
    "claim", CLAIMS, ids=lambda claim: f"{claim['type']}-{claim.get('pid')}-{claim['timestamp']:g}"
)
def test_who_claims_to_be_a_worker_harms_that_worker_alone(claim: dict[str, Any], truth: Any) -> None:
    """What is told of other workers, of all tasks' counts and of beat is as it was; the worker itself recovers."""
    watched = told([payload(claim)], every=120, **CAPS)
    series, bound = watched.honest_series(), dict(truth)
    mine = {key for key in {*series, *bound} if WORKERS[0] in key[1]}
    # A restart that never was orphans and silently ends what the worker ran: gauges of its task, for a while.
    ran = {key for key in {*series, *bound} if key[1][:1] == (TASKS[0],) and _of_runs(key[0])}
    for key in mine | ran:
        series.pop(key, None)
        bound.pop(key, None)
    assert series == bound
    last = watched.series()
    assert last["celery_worker_up", (WORKERS[0],)] == 1
    assert last["celery_worker_starts_missed_total", (WORKERS[0],)] + last[
        "celery_worker_starts_untracked_total", (WORKERS[0],)
    ] <= 2**53  # fmt: skip


def _of_runs(name: str) -> bool:
    return name.startswith(("celery_tasks_", "celery_task_oldest_", "celery_task_silent_end"))
