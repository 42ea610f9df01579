"""How long every panel takes at "All" over a day of 200 tasks: a real Prometheus, 15 s scrapes, a step of 300 s.

    python tests/bench/dashboards.py [--tasks 200] [--hours 24] [--keep DIR]

What panels read is made up and written as blocks: raw series at 15 s, recorded ones at their interval. A panel's time
is that of its queries one after the other, which is more than Grafana lets one wait. 300 ms are promised for each.
Needs `prometheus` and `promtool`.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import httpx
from celeryscope.dashboards.boards import all_boards
from celeryscope.dashboards.panels import queries_of, substituted
from celeryscope.dashboards.queries import labels_of, metric_of
from celeryscope.dashboards.recordings import recordings
from celeryscope.monitor.catalog import METRICS

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import Process, eventually, free_port

BLOCK, SCRAPE, STEP, PROMISE = 7200, 15, 300, 0.3
ROUNDS = 3
VALUES = {
    "exception": ("ValueError", "TimeoutError"),
    "outcome": ("failed", "retried"),
    "reason": ("expired", "terminated"),
    "requeue": ("true", "false"),
    "state": ("online", "lost", "ready", "unacked", "scheduled", "open", "resolved"),
    "worker": tuple(f"celery@host-{n}" for n in range(50)),
    "priority": ("0", "3", "6", "9"),
    "type": ("task-sent", "task-received", "task-started", "task-succeeded", "worker-heartbeat"),
}
DURATIONS = {
    "__rate_interval": f"{STEP + SCRAPE}s",
    "__interval": f"{STEP}s",
    "__range": "86400s",
    "__range_s": "86400",
}
ALL = dict.fromkeys(("broker", "queue", "task", "worker", "app", "entry"), "All") | DURATIONS


@dataclass(frozen=True)
class Series:
    """One made-up series: its text, how often it has a sample, and how it moves."""

    text: str
    every: int
    counter: bool


def label_sets(labels: Sequence[str], tasks: int, buckets: Sequence[float]) -> Iterator[dict[str, str]]:
    """Yield the label sets of a series name: a task has one queue, an entry one app, everything else is free."""
    owners: list[dict[str, str]] = [{"app": "app0", "task": "proj.tasks.task_0"}]
    if "entry" in labels:
        owners = [{"app": f"app{n % 3}", "entry": f"entry-{n}", "task": f"proj.tasks.task_{n}"} for n in range(50)]
    elif "task" in labels:
        owners = [{"task": f"proj.tasks.task_{n}", "queue": f"queue-{n % 20}"} for n in range(tasks)]
    elif "queue" in labels:
        owners = [{"queue": f"queue-{n}"} for n in range(20)]
    free = [label for label in labels if label not in {*owners[0], "le", "broker"}]
    bounds = [*(f"{bound:g}" for bound in buckets), "+Inf"] if "le" in labels else [""]
    values = [VALUES.get(label, (f"some-{label}",)) for label in free]
    # One exception fails a task, another has it retried.
    kinds = list(zip(*values, strict=True)) if free == ["exception", "outcome"] else list(product(*values))
    for owner, le, chosen in product(owners, bounds, kinds):
        everything = {**owner, "le": le, **dict(zip(free, chosen, strict=True))}
        yield {label: value for label, value in everything.items() if label in labels}


def series_read(tasks: int) -> list[Series]:
    """Return the series that some panel reads."""
    expressions = "\n".join(query.expr for board in all_boards() for query in queries_of(board))
    names = sorted(set(re.findall(r"\bcelery(?:scope)?[_:][a-z0-9_:]+", expressions)))
    recorded = {recording.record: recording for recording in recordings()}
    found = []
    for name in names:
        recording = recorded.get(name)
        labels = recording.labels if recording else labels_of(name)
        histogram = f"celery_{name.partition(':')[2].partition('_bucket')[0]}"
        buckets = METRICS[histogram].buckets if histogram in METRICS else ()
        every = recording.interval if recording else SCRAPE
        counter = recording is None and metric_of(name).kind != "gauge"
        for each in label_sets(labels, tasks, buckets):
            pairs = ",".join(f'{label}="{value}"' for label, value in each.items())
            found.append(Series(f"{name}{{{pairs}}} ", every, counter))
    return found


def write_block(path: Path, series: list[Series], start: int) -> int:
    """Write two hours of all series in OpenMetrics' text format; return how many samples these are."""
    stamps = {every: range(start, start + BLOCK, every) for every in {one.every for one in series}}
    texts = {every: [f" {stamp}\n" for stamp in stamps[every]] for every in stamps}
    samples = 0
    with path.open("w", encoding="utf-8") as out:
        for number, one in enumerate(series):
            speed = 1 + number % 7
            if one.counter:
                values = [speed * ((stamp - start + start % 864000) // SCRAPE) for stamp in stamps[one.every]]
            else:
                values = [(speed + stamp // one.every) % 11 for stamp in stamps[one.every]]
            out.writelines([f"{one.text}{value}{at}" for value, at in zip(values, texts[one.every], strict=True)])
            samples += len(values)
        out.write("# EOF\n")
    return samples


def fill(data: Path, scratch: Path, tasks: int, hours: int, end: int) -> None:
    """Make the blocks of so many hours before `end`."""
    series, samples, began = series_read(tasks), 0, time.monotonic()
    for start in range(end - hours * 3600, end, BLOCK):
        text = scratch / "block.txt"
        samples += write_block(text, series, start)
        subprocess.run(
            ["promtool", "tsdb", "create-blocks-from", "openmetrics", text, data], check=True, capture_output=True
        )
        text.unlink()
    print(f"{len(series)} series, {samples / 1e6:.1f} million samples, made in {time.monotonic() - began:.0f} s")


def timed(client: httpx.Client, expression: str, *, instant: bool, end: int, hours: int) -> float:
    """Return how long a query takes, from asking to the answer's last byte, in seconds."""
    range_ = {"start": end - hours * 3600, "end": end - SCRAPE, "step": STEP}
    path, when = ("query", {"time": end - SCRAPE}) if instant else ("query_range", range_)
    began = time.perf_counter()
    answer = client.post(f"/api/v1/{path}", data={"query": expression, **when})
    took = time.perf_counter() - began
    answer.raise_for_status()
    return took


def measure(url: str, pid: int, end: int, hours: int) -> dict[tuple[str, str], tuple[float, float]]:
    """Return each panel's time and CPU time: its queries one after the other, the median of some rounds."""
    times: dict[tuple[str, str], tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    with httpx.Client(base_url=url, timeout=60) as client:
        for query in (query for board in all_boards() for query in queries_of(board)):
            expression, rounds = substituted(query.expr, ALL), []
            for _ in range(ROUNDS):
                before = cpu(pid)
                took = timed(client, expression, instant=query.instant, end=end, hours=hours)
                rounds.append((took, cpu(pid) - before))
            so_far, spent = (
                times[query.board, query.panel],
                [statistics.median(column) for column in zip(*rounds, strict=True)],
            )
            times[query.board, query.panel] = (so_far[0] + spent[0], so_far[1] + spent[1])
    return times


def cpu(pid: int) -> float:
    """Return the CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def served(data: Path, scratch: Path, port: int) -> Process:
    """Start a Prometheus on the blocks, with nothing to scrape and nothing to compact."""
    config = scratch / "prometheus.yml"
    config.write_text("{}\n")
    options = {
        "config.file": config,
        "storage.tsdb.path": data,
        "storage.tsdb.retention.time": "3650d",
        "storage.tsdb.min-block-duration": "2h",
        "storage.tsdb.max-block-duration": "2h",
        "web.listen-address": f"127.0.0.1:{port}",
    }
    argv = ["prometheus", *(f"--{name}={value}" for name, value in options.items())]
    return Process(argv, log=scratch / "prometheus.log")


def ready(url: str) -> bool:
    """Return whether Prometheus answers queries."""
    try:
        return httpx.get(f"{url}/-/ready").is_success
    except httpx.TransportError:
        return False


def main() -> int:
    """Make the history, ask everything, print what took longest; 1 where a panel takes longer than promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--hours", type=int, default=24)
    parser.add_argument("--keep", type=Path, help="folder for the blocks; those that are there are used again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="celeryscope-bench-") as folder:
        scratch = Path(folder)
        data = options.keep or scratch / "data"
        data.mkdir(parents=True, exist_ok=True)
        stamp = data / "end"
        if not stamp.exists():
            end = int(time.time()) // BLOCK * BLOCK
            fill(data, scratch, options.tasks, options.hours, end)
            stamp.write_text(str(end))
        end, port = int(stamp.read_text()), free_port()
        prometheus = served(data, scratch, port)
        try:
            url = f"http://127.0.0.1:{port}"
            eventually(lambda: ready(url), timeout=60)
            times = measure(url, prometheus.pid, end, options.hours)
        finally:
            prometheus.stop()
    for (board, panel), (took, used) in sorted(times.items(), key=lambda item: -item[1][0])[:25]:
        print(f"{took * 1000:6.0f} ms ({used * 1000:5.0f} ms CPU)  {board}: {panel}")
    slow = sum(took > PROMISE for took, _ in times.values())
    print(f"{len(times)} panels; {slow} took longer than {PROMISE * 1000:.0f} ms")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
