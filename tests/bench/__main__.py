"""What `make bench` prints: one table of every bar that our speed is held to, with what was measured.

    python tests/bench [--quick]

The exit code is 1 where a bar is not held. Each row names the command that measures it alone. Ratios are of what ran
side by side on this machine; the load average stands below the table, for what else went on.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator

import beat
import growth
import hooks
import imports
import ingest
import queues
import restart
import stall
import stamp
import storm
from bars import BENCH, Bar
from rich.console import Console
from rich.table import Table

SAMPLE = 50.0


def worker_side() -> Iterator[Bar]:
    """What a user's own processes pay."""
    cost = imports.measured(5)
    yield Bar(
        f"import celeryscope: < {imports.PROMISE:g} ms",
        f"{cost.wall:.1f} ms ({cost.processor:.1f} CPU); install() {cost.install:.1f} ms",
        cost.wall < imports.PROMISE,
        f"{BENCH}imports.py",
    )
    for broker, _, _, paid in stamp.paid():
        name = f"a publish, {broker.partition(':')[0]}: < {stamp.PROMISE:g} µs more"
        yield Bar(name, f"{paid:+.1f} µs", paid < stamp.PROMISE, f"{BENCH}stamp.py")
    promises = {"succeeds": hooks.NOTHING, "fails, each another kind": hooks.PROMISE_EACH_ANOTHER}
    for title, _, _, paid in hooks.paid():
        promise = promises.get(title, hooks.PROMISE)
        yield Bar(f"a task that {title}: < {promise:g} µs more", f"{paid:+.1f} µs", paid < promise, f"{BENCH}hooks.py")
    worst = beat.worst_share(beat.measured()[2])
    yield Bar(f"a beat tick: < {beat.PROMISE:g} ms more", f"{worst:.2f} ms", worst < beat.PROMISE, f"{BENCH}beat.py")


def starting(rounds: int) -> Iterator[Bar]:
    """Start and stop of the monitor."""
    empty, full = restart.measured(rounds)
    command = f"{BENCH}restart.py"
    for name, cost, promise in (
        ("start to ready", empty.up, restart.EMPTY_PROMISE),
        (f"start to ready, {restart.LIVE:,} live tasks", full.up, restart.PROMISE),
        (f"SIGTERM to exit, {restart.LIVE:,} live tasks", full.down, restart.PROMISE),
    ):
        yield Bar(f"{name}: < {promise:g} s", f"{cost:.2f} s", cost < promise, command)
    yield Bar("start to ready, by CPU", f"{empty.processor:.2f} s", None, command)


def sampling() -> Iterator[Bar]:
    """A sample of the queues: the monitor's own processor time."""
    quiet = queues.measured_quiet()
    yield Bar(
        f"a sample of {queues.QUEUES} queues: < {SAMPLE:g} ms", f"{quiet:.0f} ms", quiet < SAMPLE, f"{BENCH}queues.py"
    )


def storming() -> Iterator[Bar]:
    """Failures, from hook to store."""
    took = storm.measured().stored
    name = f"{storm.FAILURES:,} failures, hook to store: < {storm.PROMISE:g} s"
    yield Bar(name, f"{took:.0f} s", took < storm.PROMISE, f"{BENCH}storm.py")


def sections(*, quick: bool) -> list[Callable[[], Iterator[Bar]]]:
    """The parts of the table, the shortest way or all of it."""
    if quick:
        return [lambda: ingest.bars(quick=True), worker_side]
    return [
        lambda: ingest.bars(quick=False),
        growth.bars,
        stall.bars,
        lambda: starting(3),
        worker_side,
        sampling,
        storming,
    ]


def whole(section: Callable[[], Iterator[Bar]]) -> Iterator[Bar]:
    """The bars of a section; one that fails is not held, and does not cost the table its others."""
    try:
        yield from section()
    except Exception as error:
        traceback.print_exc()
        yield Bar("could not be measured", f"{type(error).__name__}: {error}"[:200], False, "")


def table(bars: list[Bar]) -> Table:
    """The bars as they are printed."""
    shown = Table("bar", "measured", "held", "command", title="Speed", title_justify="left")
    for bar in bars:
        held = {True: "[green]yes[/]", False: "[red]NO[/]", None: ""}[bar.held]
        shown.add_row(bar.name, bar.measured, held, bar.command)
    return shown


def main() -> int:
    """Measure, print, and say whether all is held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="one shape of each batch size and what workers pay: a minute"
    )
    options = parser.parse_args()
    progress, started, bars = Console(stderr=True), time.monotonic(), []
    with progress.status("measuring") as status:
        for section in sections(quick=options.quick):
            for bar in whole(section):
                bars.append(bar)
                status.update(f"{time.monotonic() - started:4.0f} s  {bar.name}: {bar.measured}")
    out = Console(width=None if sys.stdout.isatty() else 250)
    out.print(table(bars))
    failed = sum(bar.held is False for bar in bars)
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    out.print(
        f"{failed or 'none'} not held; {time.monotonic() - started:.0f} s; load average {load}, {os.cpu_count()} cores"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
