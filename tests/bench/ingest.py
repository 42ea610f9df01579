"""Events taken in by `celeryscope monitor` beside the yardsticks, over a real Redis, in all shapes of the stream.

    python tests/bench/ingest.py [--batch N --names N [--sent] [--known]] [--scraped] [--by-processor]

Every figure comes from a run of bench.py. A system's speed is its best of the rounds, which are interleaved: what else
goes on on a machine only ever slows a round down, and both sides of a ratio are treated alike.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import growth
import replay
from bars import BENCH, Bar, show
from wire import Spec

HERE = Path(__file__).resolve().parent
BATCHES, NAMES = (1, 3, 24), {20: 20, 200: 100, 2_000: 100}  # names: workers
KNOWN = 70  # the table stops to expect a task-sent of a name after 64 runs without one
RAW, RECEIVER = 0.70, {1: 3.3, 3: 2.4}
CPU, MEMORY, SCRAPED, EVENTS = 5.0, 100.0, 0.9, 120_000
OURS = "{python} -m celeryscope monitor --broker {redis} --listen 127.0.0.1:{port} --sample-interval 1"
COUNT = r'^celeryscope_events_total\{.*type="task-'


class Runs:
    """The runs of one shape, by system."""

    def __init__(self, *options: str, systems: tuple[str, ...], rounds: int, what: str = "throughput") -> None:
        argv = [what, *options, *(f"--sut={system}" for system in systems), f"--rounds={rounds}"]
        command = f"{BENCH}bench.py {' '.join(argv)}"
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "runs"
            argv = [sys.executable, str(HERE / "bench.py"), *argv, f"--out={out}"]
            done = subprocess.run(argv, check=False, capture_output=True, text=True)
            lines = out.read_text().splitlines() if out.exists() else []
        if done.returncode or not lines:
            raise RuntimeError(f"{command}\n{done.stdout}{done.stderr}")
        self.rows: dict[str, list[dict]] = {}
        for row in map(json.loads, lines):
            self.rows.setdefault(row["sut"], []).append(row)
        self.whole = all(row["lost"] in (0, None) for rows in self.rows.values() for row in rows)

    def speed(self, system: str) -> float:
        return max((row["events_s"] for row in self.rows.get(system, ())), default=float("nan"))

    def least(self, system: str, figure: str) -> float:
        return min((row[figure] for row in self.rows.get(system, ())), default=float("nan"))


class Shape(NamedTuple):
    """One of the recorded streams; with `known` each name has run often before the clock starts."""

    batch: int
    names: int
    sent: bool
    known: bool = False

    @property
    def options(self) -> list[str]:
        """The stream, for bench.py."""
        known = [f"--known={KNOWN}"] if self.known else []
        sent = "--sent" if self.sent else "--no-sent"
        return [f"--batch={self.batch}", f"--tasks={self.names}", f"--workers={NAMES[self.names]}", sent, *known]

    @property
    def command(self) -> str:
        """What measures this shape alone."""
        flags = "".join(f" --{name}" for name in ("sent", "known") if getattr(self, name))
        return f"{BENCH}ingest.py --batch {self.batch} --names {self.names}{flags}"

    def __str__(self) -> str:
        words = "".join(f", {name}" for name in ("sent", "known") if getattr(self, name))
        return f"batches of {self.batch}, {self.names} names{words}"


def throughput(shape: Shape, rounds: int, events: int = EVENTS) -> Iterator[Bar]:
    """The bars of one shape: against `raw` and, where something is promised, the receiver; CPU; memory."""
    against = None if shape.known else RECEIVER.get(shape.batch)
    runs = Runs(*shape.options, f"--events={events}", systems=("raw", "celeryscope"), rounds=rounds)
    ours, raw = runs.speed("celeryscope"), runs.speed("raw")
    cpu, raw_cpu = (runs.least(system, "cpu_s_per_million") for system in ("celeryscope", "raw"))
    yield Bar(
        f"{shape}: ≥ {RAW:.2f} × raw",
        f"{ours / raw:.2f} ({ours:,.0f}/s of {raw:,.0f}; by CPU {raw_cpu / cpu:.2f})",
        runs.whole and ours / raw >= RAW,
        shape.command,
    )
    if against:
        theirs = Runs(*shape.options, f"--events={events // 2}", systems=("receiver",), rounds=rounds).speed("receiver")
        name, measured = f"{shape}: ≥ {against} × receiver", f"{ours / theirs:.1f} ({theirs:,.0f}/s)"
        yield Bar(name, measured, runs.whole and ours / theirs >= against, shape.command)
    if shape.batch >= 3:
        yield Bar(f"{shape}: CPU per million < {CPU:g} s", f"{cpu:.2f} s", cpu < CPU, shape.command)
    if shape.names == 200:
        peak = max(row["rss_peak_mb"] for row in runs.rows["celeryscope"])
        yield Bar(f"{shape}: peak memory < {MEMORY:g} MB", f"{peak:.0f} MB", peak < MEMORY, shape.command)


def scraped(parts: int) -> Iterator[Bar]:
    """One monitor's speed with a scrape each second and without, while it samples the queues each second."""
    runs = Runs(
        "--batch=3", "--tasks=200", "--workers=100", "--no-sent", "--events=200000",
        f"--parts={parts}", rf"--count=sampling={COUNT}", systems=(f"sampling={OURS}",), rounds=1, what="beside",
    )  # fmt: skip
    quiet, busy = (
        max(row["events_s"] for row in runs.rows["sampling"] if row["tasks"] == how) for how in ("quiet", "scraped")
    )
    yield Bar(
        f"scraped each second: ≥ {SCRAPED:.2f} × not scraped",
        f"{busy / quiet:.2f} ({busy:,.0f}/s of {quiet:,.0f})",
        runs.whole and busy / quiet >= SCRAPED,
        f"{BENCH}ingest.py --scraped",
    )


def by_processor() -> Iterator[Bar]:
    """All shapes in this process, by processor time: for a machine that is too busy to say anything by the clock."""
    for batch, names, sent, known in itertools.product(BATCHES, NAMES, (False, True), (False, True)):
        if sent and known:
            continue
        shape = {"batch": batch, "tasks": names, "workers": NAMES[names], "sent": sent}
        warm = {"events": KNOWN * names * 3, "cover": True, "only_success": True} if known else {"events": 5_000}
        first = replay.Stream(Spec(**{**shape, **warm, "seed": 99}))
        cost = growth.cost(first.pieces, replay.Stream(Spec(events=EVENTS, **shape)).pieces, first.start)
        title, ratio = f"{Shape(batch, names, sent, known)}: ≥ {RAW:.2f} × raw", cost.raw / cost.ours
        measured = f"{ratio:.2f} ({cost.ours:.2f} µs an event, raw {cost.raw:.2f})"
        yield Bar(title, measured, ratio >= RAW, f"{BENCH}ingest.py --by-processor")


def bars(*, quick: bool) -> Iterator[Bar]:
    """All of it; or one shape of each batch size."""
    if quick:
        for batch in BATCHES:
            yield from throughput(Shape(batch, 200, batch == 1), 1, 60_000)
        return
    for batch, names, sent in itertools.product(BATCHES, NAMES, (False, True)):
        yield from throughput(Shape(batch, names, sent), 2)
    for batch in BATCHES:
        yield from throughput(Shape(batch, 2_000, sent=False, known=True), 1)
    yield from scraped(8)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, choices=BATCHES)
    parser.add_argument("--names", type=int, choices=NAMES, default=200)
    for flag in ("--sent", "--known", "--scraped", "--by-processor"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args()
    if options.scraped:
        chosen = scraped(8)
    elif options.by_processor:
        chosen = by_processor()
    elif options.batch:
        chosen = throughput(Shape(options.batch, options.names, options.sent, options.known), 3)
    else:
        chosen = bars(quick=False)
    return show(chosen)


if __name__ == "__main__":
    sys.exit(main())
