"""The state check takes whatever a monitor of this or an older version writes down."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from celeryscope.monitor.catalog import METRICS
from celeryscope.monitor.events import Decoder
from celeryscope.monitor.labels import Caps
from celeryscope.monitor.pipeline import Pipeline
from celeryscope.monitor.rows import SENT
from celeryscope.monitor.statecheck import check

NOW = 1_790_000_000.0


def pipeline() -> Pipeline:
    return Pipeline(METRICS, Caps(), clock=lambda: NOW)


def written(*events: dict[str, Any]) -> dict[str, Any]:
    """Return the state that a monitor writes down after these events, as the next one reads it."""
    before = pipeline()
    for event in events:
        read = Decoder().decode("task", json.dumps({"hostname": "w@h", "timestamp": NOW, **event}).encode())
        assert len(read) == 1
        before.feed(read, NOW)
    state: dict[str, Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(before.dump(clean=True)), strict=False)
    return state


def test_no_worker_can_spoil_the_state_with_a_load_that_nobody_has() -> None:
    """What one worker says of itself must not cost all counters at the next start."""
    check(written({"type": "worker-heartbeat", "active": 0, "processed": 1, "loadavg": [1.7e308, 0.0, 0.0]}))


@pytest.mark.parametrize("load", [math.inf, math.nan])
def test_a_load_that_is_no_number_is_refused(load: float) -> None:
    """No monitor writes one, and JSON has none for it."""
    state = written({"type": "worker-heartbeat", "active": 0, "processed": 1})
    state["workers"][0]["load"] = load
    with pytest.raises(ValueError, match="load"):
        check(state)


def test_the_state_of_a_version_with_fewer_counters_is_taken_and_of_one_with_more_is_not() -> None:
    """An update that brings a counter keeps the values of the others."""
    state = written({"type": "task-sent", "uuid": "u", "name": "proj.add", "queue": "celery"})
    (row,) = state["rows"][0][3]
    row[1].pop()
    row[2].pop()
    check(state)
    after = pipeline()
    after.load(state, NOW)
    assert [row.counts[SENT] for row in after.tasks.rows.all()] == [1]
    row[1] += [0, 0]
    with pytest.raises(ValueError, match="length"):
        check(state)
