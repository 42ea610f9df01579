"""Has something become slower? A minute of measuring, compared with tests/bench/baseline.json; for CI.

    python tests/bench/check.py [--update]

Three kinds of figures, lower being better, none of which is a time:

- what our code costs as a multiple of a yardstick on the same bytes in the same process: processor time of one thread,
  in turns, the least of the rounds on either side, since whatever else runs on a machine only ever adds to it;
- bytecode instructions an event and bytes a live task: the same in every run of one version of Python;
- how many modules `install(app)` loads.

Nothing is measured again to get past a limit. `--update` writes the figures of this Python's version into the baseline.
docs/performance.md says by how much the figures scatter, and why the limits are where they are.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import growth
import imports
import replay
import scrape
import stamp
from celeryscope.exporters.prometheus import CeleryscopeCollector, Exposition
from prometheus_client import CollectorRegistry, generate_latest
from wire import Spec

BASELINE = Path(__file__).with_name("baseline.json")
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
TIMED, LITTLE, COUNTED, MODULES = 1.30, 2.0, 1.10, 1.25
"""By how much a figure may exceed the baseline: a ratio of times, one of a few ms to many, a count, the modules."""
ROUNDS, EVENTS = 5, 60_000
SHAPE: dict[str, Any] = {"tasks": 200, "workers": 100}

Figures = Iterator[tuple[str, float, float]]
"""Name, value and tolerance."""


def ingestion() -> Figures:
    """The cost of an event as a multiple of the `raw` yardstick's, in the three sizes of messages."""
    for batch, sent in ((1, True), (3, False), (24, False)):
        stream = replay.Stream(Spec(events=2 * EVENTS, batch=batch, sent=sent, **SHAPE))
        cost = growth.cost(*stream.split(0.5), stream.start, rounds=ROUNDS)
        yield f"an event, batches of {batch}, times raw", cost.ours / cost.raw, TIMED


def rendering() -> Figures:
    """The cost of a page as a share of prometheus_client's."""
    facts = scrape.Facts()
    page, registry = Exposition({"": facts}, own=False), CollectorRegistry()
    registry.register(CeleryscopeCollector(page))
    page.render()
    theirs = min(scrape.cpu(lambda: generate_latest(registry)) for _ in range(ROUNDS))
    for title, share, tolerance in (("all changed", 1.0, TIMED), ("nothing changed", 0.0, LITTLE)):
        costs = []
        for _ in range(2 * ROUNDS):
            facts.turn(share)
            costs.append(scrape.cpu(page.render))
        yield f"a scrape, {title}, times prometheus_client", min(costs) / theirs, tolerance


def publishing() -> Figures:
    """The cost of a publish with the stamp as a multiple of one without."""
    for broker, without, stamped, _ in stamp.paid():
        yield f"a publish, {broker.partition(':')[0]}, times one without stamp", stamped / without, TIMED


def counts() -> Figures:
    """Instructions an event, bytes a live task, modules: nothing here is a matter of time."""
    for batch, sent in ((1, True), (3, False), (24, False)):
        stream = replay.Stream(Spec(events=24_000, batch=batch, sent=sent, **SHAPE))
        warm, rest = stream.split(0.75)
        ours = replay.Ours(stream.start)
        ours.take_in(warm)
        used = instructions(lambda ours=ours, rest=rest: ours.take_in(rest))
        ours.close()
        yield f"instructions an event, batches of {batch}", used / sum(n for _, n in rest), COUNTED
    yield "bytes a live task", bytes_a_task(), COUNTED
    yield "modules of import and install()", imports.measured(1).modules, MODULES


def instructions(call: Callable[[], object]) -> int:
    """Count the bytecode instructions that a call executes."""
    count = 0

    def each(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        count += event == "opcode"
        return each

    def enter(frame: FrameType, *_: object) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return each

    sys.settrace(enter)
    try:
        call()
    finally:
        sys.settrace(None)
    return count


def bytes_a_task() -> float:
    """The memory of a task that was received and has not ended, without what there is once for each name."""
    spec = Spec(events=60_000, batch=3, sent=False, inflight=60_000, tasks=20, workers=20)
    stream = replay.Stream(spec, underway=True)
    warm, rest = stream.split(0.5)
    ours = replay.Ours(stream.start)
    ours.take_in(warm)
    gc.collect()
    live = len(ours.pipeline.tasks.live)
    tracemalloc.start()
    ours.take_in(rest)
    gc.collect()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    more = len(ours.pipeline.tasks.live) - live
    ours.close()
    return size / more


def figures() -> Figures:
    """All figures of this run."""
    gc.collect()
    gc.freeze()
    for part in (ingestion, rendering, publishing, counts):
        yield from part()


def main() -> int:
    """Measure, compare, print; 1 where a figure exceeds its limit, or there is nothing to compare with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write what is measured as the new baseline")
    update = parser.parse_args().update
    stored = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    known, measured, slower = stored.get(PYTHON, {}), {}, []
    for name, value, tolerance in figures():
        measured[name] = round(value, 4)
        limit = known.get(name, 0.0) * tolerance
        good = update or value <= limit
        print(f"{name:52} {value:9.3f}  baseline {known.get(name, float('nan')):9.3f}  limit {limit:9.3f}", end="")
        print("" if good else "  SLOWER" if limit else "  no baseline", flush=True)
        slower += [] if good else [name]
    if update:
        BASELINE.write_text(json.dumps(stored | {PYTHON: measured}, indent=2, sort_keys=True) + "\n")
    if slower:
        print(
            f"{len(slower)} of {len(measured)} figures exceed what {BASELINE.name} allows for Python {PYTHON}.", end=" "
        )
        print("Where that is meant to be: make bench-check UPDATE=1, and say why in the commit.")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
