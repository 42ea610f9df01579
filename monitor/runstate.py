"""The open runs of a task table as columns of plain values, for the state file, and the runs that they stand for.

Columns, because 200 000 runs as a list each take four times as long to read back, and most of that is the lists.
Pure.
"""

from __future__ import annotations

from itertools import repeat
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from .runs import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .rows import Row

TIMES = ("available_at", "first_sent", "eta", "received_at", "started_at", "since")
OTHERS = ("uuid", "state", "retries", "received_clock", "started_clock", "held")
"""Fields of a run that are kept as they are; its row and its worker are kept once for all runs that share them."""
_DEFAULTS = dict(zip(Run.__struct_fields__, (None, None, *Run.__struct_defaults__), strict=True))


def dump(runs: Sequence[Run]) -> dict[str, Any]:
    """Return runs as builtins, in their order; `load` makes runs of them."""
    row_numbers: dict[tuple[str, str], int] = {}
    host_numbers: dict[str | None, int] = {}
    columns: dict[str, list[Any]] = {name: list(map(attrgetter(name), runs)) for name in OTHERS}
    # A time that was not seen takes one byte as a whole number, and nine as the same number with a point.
    columns |= {name: [time or 0 for time in map(attrgetter(name), runs)] for name in TIMES}
    columns["row"] = [row_numbers.setdefault((run.row.task, run.row.queue), len(row_numbers)) for run in runs]
    names = (run.host.name if run.host is not None else None for run in runs)
    columns["host"] = [host_numbers.setdefault(name, len(host_numbers)) for name in names]
    return {"rows": [list(row) for row in row_numbers], "hosts": list(host_numbers), "columns": columns}


def load(state: dict[str, Any], row: Callable[[str, str], Row]) -> Iterable[tuple[Run, str | None]]:
    """Return the runs that `dump` gave, each with the name of its worker; `row` finds the row of a task and a queue.

    Raises:
        Exception: the state makes no sense.
    """
    columns = state["columns"]
    if len({len(column) for column in columns.values()}) != 1:
        raise ValueError("columns of runs differ in length")
    rows = [row(task, queue) for task, queue in state["rows"]]
    values: dict[str, Iterable[Any]] = {name: columns[name] for name in (*OTHERS, *TIMES)}
    values["row"] = map(rows.__getitem__, columns["row"])
    # The constructor takes its arguments by place: a call by name for each run would take twice as long.
    runs = map(Run, *(values.get(name, repeat(default)) for name, default in _DEFAULTS.items()))
    return zip(runs, map(state["hosts"].__getitem__, columns["host"]), strict=True)
