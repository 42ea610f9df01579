"""Runs as columns: what goes into the state file comes back out of it."""

from __future__ import annotations

import msgspec
import pytest
from celeryscope.monitor import runstate
from celeryscope.monitor.rows import Row
from celeryscope.monitor.runs import ORPHANED, RECEIVED, STARTED, WAITING, Run
from celeryscope.monitor.workers import Host

ROWS = {("shop.pay", "q"): Row("shop.pay", "q"), ("shop.mail", "unknown"): Row("shop.mail", "unknown")}
FIELDS = [name for name in Run.__struct_fields__ if name not in ("host", "previous")]


def runs() -> list[Run]:
    host, (pay, mail) = Host("celery@a"), ROWS.values()
    return [
        Run("1", pay, WAITING, None, 0, 10.5, 9.5, 20.0, since=11.0),
        Run("2", mail, RECEIVED, host, 2, received_at=12.25, since=12.5, received_clock=7, held=True),
        Run("2", pay, STARTED, host, -1, started_at=13.0, since=13.5, received_clock=None, started_clock=None),
        Run("3", mail, ORPHANED, Host("celery@b"), started_at=1.0, since=2.0),
    ]


def test_runs_come_back_in_their_order_with_all_that_is_known_of_them() -> None:
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(runstate.dump(runs())))
    back = list(runstate.load(state, lambda task, queue: ROWS[task, queue]))
    assert [[getattr(run, name) for name in FIELDS] for run, _ in back] == [
        [getattr(run, name) for name in FIELDS] for run in runs()
    ]
    assert [host for _, host in back] == [None, "celery@a", "celery@a", "celery@b"]
    assert [run.host for run, _ in back] == [None] * 4


def test_no_runs_are_none() -> None:
    assert list(runstate.load(runstate.dump([]), lambda task, queue: Row(task, queue))) == []


@pytest.mark.parametrize("column", ["uuid", "since", "row", "host"])
def test_a_column_that_is_too_short_is_refused(column: str) -> None:
    """Nothing is made of the rest: who knows which run a value would go to."""
    state = runstate.dump(runs())
    state["columns"][column].pop()
    with pytest.raises(ValueError, match="differ in length"):
        list(runstate.load(state, lambda task, queue: ROWS[task, queue]))
