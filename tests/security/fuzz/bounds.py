"""One kind of lie in great quantity, under a limit of the system's: `python bounds.py NAME MEGABYTES`.

A process of its own, which ends with a MemoryError (or a signal, for time) where it takes more than so many megabytes
on top of what the imports took: no stopwatch, and no peak that a garbage collector explains.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import targets
from celeryscope.alerts import batches
from celeryscope.alerts.incidents import tallies
from celeryscope.alerts.intake import Intake
from celeryscope.alerts.store import Database
from celeryscope.alerts.successes import SuccessWatch
from celeryscope.monitor.queues_redis_wire import Bindings
from celeryscope.monitor.replies import _Found
from hostile import START, Watched, event, payload

CPU_SECONDS = 120
LONG = "x" * 3_000_000


def _beat(*events: dict[str, Any]) -> bytes:
    return payload(
        [event("beat-online", "b", 1, app="lies", boot="lie"), *({**e, "app": "lies", "boot": "lie"} for e in events)]
    )


def _heard(message: Callable[[int], bytes], times: int) -> None:
    watched = Watched()
    for n in range(times):
        watched.hear(1.0, message(n))
    page = watched.page()
    assert len(page) < 50 << 20
    assert 'celeryscope_events_total{type="' in page, "what raises is left out of the page"


def entry_names() -> None:
    """Schedule entries whose names are as long as a message may be."""
    _heard(lambda n: _beat(event("beat-heartbeat", "b", 1, seq=n, totals={f"{n}{LONG}": [1, 0, START]})), 60)


def entry_fields() -> None:
    """Entries whose time zones, queues and specs are that long."""
    fields = ("tz", "queue", "spec")
    for name in fields:
        _heard(
            lambda n, name=name: _beat(event("beat-schedule", "b", 1, entries=[{"entry": f"{n}", name: f"{n}{LONG}"}])),
            40,
        )


def entries() -> None:
    """Apps with ten thousand entries each."""
    _heard(lambda n: payload([
        event("beat-online", "b", 1, app=f"a{n // 50}", boot="lie"),
        event("beat-schedule", "b", 1, app=f"a{n // 50}", boot="lie",
              entries=[{"entry": f"{n}.{i}", "kind": "interval", "every": 30.0} for i in range(200)]),
    ]), 700)  # fmt: skip


def dispatched_ids() -> None:
    """Ids of dispatched runs that are that long."""
    _heard(
        lambda n: _beat(
            event("beat-heartbeat", "b", 1, seq=n, totals={"e": [n + 1, 0, START + n]}, uuids={"e": f"{n}{LONG}"})
        ),
        60,
    )


def old_schedules() -> None:
    """Minutely entries that claim to have last run in 1970, by a clock of 1970: decades of slots to walk over."""
    old = {"kind": "crontab", "spec": "* * * * *", "tz": "UTC", "dispatched": 1, "last_dispatch": 1.0}
    listing = {
        **event("beat-schedule", "b", 1),
        "timestamp": 1.0,
        "entries": [{"entry": f"{n}", **old} for n in range(200)],
    }
    watched = Watched()
    watched.hear(1.0, payload([{**event("beat-online", "b", 1, app="lies", boot="lie"), "timestamp": 1.0},
                               {**listing, "app": "lies", "boot": "lie"}]))  # fmt: skip
    for n in range(400):
        beat = event("beat-heartbeat", "b", 1, app="lies", boot="lie", seq=n, asof=9e10, full=True)
        watched.hear(1.0 + n / 4, payload({**beat, "timestamp": 1.0}))


def workers() -> None:
    """Workers without end, each heard of once."""
    _heard(lambda n: payload([event("worker-heartbeat", f"w{n}-{i}@lies", 1, processed=1) for i in range(100)]), 150)


def rows() -> None:
    """Every task on every queue, two hundred thousand pairs: the page stays one that can be scraped."""
    pairs = [{"name": f"t{i // 500}", "queue": f"q{i % 500}"} for i in range(200_000)]
    _heard(
        lambda n: payload([event("task-sent", "p", 1, uuid=f"{n}-{i}", **pairs[n * 100 + i]) for i in range(100)]),
        2_000,
    )


def starts() -> None:
    """Runs without end of which nobody has ever seen the beginning."""
    _heard(lambda n: payload([event("task-started", "w@lies", 1, uuid=f"{n}-{i}") for i in range(100)]), 600)


def one_id() -> None:
    """One task id for everything."""
    _heard(lambda n: payload([event("task-received", f"w{i}@lies", n + i / 100, uuid="same", name="t", retries=i)
                              for i in range(100)]), 200)  # fmt: skip


def task_names() -> None:
    """Task, queue, exception and worker names that long, each another one; in the alerter, too."""
    successes = SuccessWatch()
    watched = Watched()
    for n in range(60):
        lie = event("task-sent", "p@lies", 1, uuid=f"{n}", name=f"{n}{LONG}", queue="q")
        found = watched.decoder.redis(b"", payload(lie))
        watched.pipeline.feed(found, START)
        successes.feed(found, START)
        watched.hear(1.0, payload(event("task-sent", "p", 1, uuid=f"q{n}", queue=f"{n}{LONG}")))
        watched.hear(1.0, payload(event("task-failed", "p", 1, uuid=f"{n}", exception=f"E{n}{LONG}('x')")))
        watched.hear(3.0)
    watched.page()


def outbox() -> None:
    """Failures whose texts fill the longest message that is read: counted, stored, and told."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/incidents.db", lambda: targets.NOW)
        database.open()
        intake = Intake(database, targets._plan_of)
        for n in range(8):
            sample = {"task": LONG, "exception": LONG[:2_000_000], "message": LONG, "traceback": LONG, "uuid": LONG,
                      "args": {f"{i}": "y" * 10 for i in range(20_000)}}  # fmt: skip
            entry = {"fingerprint": f"f{n}", "count": 10**9, "first": 1.0, "last": targets.NOW, "sample": sample}
            batch = batches.decode(json.dumps({"v": 1, "id": f"b{n}", "entries": [entry]}))
            assert not intake.take([batch], targets.NOW)
        assert sum(path.stat().st_size for path in Path(folder).iterdir()) < 2 << 20
        database.close()


def outbox_nested() -> None:
    """A message of nothing but empty lists where settings belong, and one of nothing but entries."""
    head = b'{"v":1,"id":"b","entries":['
    one = b'{"fingerprint":"f","count":1,"first":1,"last":1,"sample":{"settings":{"a":'
    for raw in (
        head + one + b"[" + b"[]," * 5_000_000 + b"0]}}}]}",
        head + b",".join([one + b"0}}}"] * 150_000) + b"]}",
    ):
        try:
            tallies([batches.decode(raw)], targets.NOW)
        except batches.RejectedError as error:
            assert error.reason == "shape"  # noqa: PT017
        else:
            raise AssertionError("it was taken")


def bindings() -> None:
    """Topic bindings beside which lies a pattern that a regular expression never ends on, or whose words are many."""
    table = Bindings()
    members = [
        b"a\x06\x16(a+)+$\x06\x16q",
        b".".join([b"#"] * 60) + b"\x06\x16^x$\x06\x16r",
        b"x.*\x06\x16^x$\x06\x16s",
    ]
    table.learn("lies", members, "\x06\x16")
    assert table.queue(("lies", "a" * 200 + "!")) is None
    assert table.queue(("lies", "." * 59)) == "r"
    assert table.queue(("lies", "x.y")) == "s"


def replies() -> None:
    """Replies to a question from workers without end, each as long as it likes."""
    found = _Found("ticket", ())
    for n in range(60):
        found.take(_Reply({f"w{n}": LONG}))
    for n in range(200):
        found.take(_Reply({f"w{n}-{i}": None for i in range(100)}))
    assert len(found.replies) <= 5_000


class _Reply:
    def __init__(self, said: Any) -> None:
        self.headers = {"ticket": "ticket"}
        self.body = json.dumps(said)

    def decode(self) -> Any:
        return json.loads(self.body)


BOUNDS: dict[str, Callable[[], None]] = {
    kind.__name__: kind
    for kind in (entry_names, entry_fields, entries, dispatched_ids, old_schedules, workers, rows, starts, one_id,
                 task_names, outbox, outbox_nested, bindings, replies)
}  # fmt: skip


def main(name: str, megabytes: str) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (int(megabytes) << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    BOUNDS[name]()
    print("bounded")


if __name__ == "__main__":
    main(*sys.argv[1:3])
