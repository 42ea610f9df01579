"""What the alerts on tasks cost Prometheus at each evaluation: so many tasks, 30 s scrapes, in CPU time.

    python tests/bench/rules.py [--tasks 2000] [--hours 8]

The counters are made up and written as blocks. Needs `prometheus` and `promtool`; a minute for 8 hours.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from celeryscope.dashboards import rules
from celeryscope.dashboards.thresholds import defaults
from helpers import eventually, free_port

from dashboards import BLOCK, cpu, ready, served

SCRAPE, ROUNDS = 30, 3
RARE = ("failed", "retried", "retries_exhausted")
COUNTERS = ("succeeded", "started", *RARE)


def write_block(path: Path, tasks: int, start: int) -> None:
    """Write two hours of every task's counters; of those that are rare one in ten moves."""
    stamps = [f" {stamp}\n" for stamp in range(start, start + BLOCK, SCRAPE)]
    first = start // SCRAPE
    with path.open("w", encoding="utf-8") as out:
        for name in COUNTERS:
            for task in range(tasks):
                labels = f'task="proj.tasks.task_{task}",queue="queue-{task % 20}",instance="a",job="celeryscope"'
                step = 0 if name in RARE and task % 10 else 1 + task % 7
                series = f"celery_task_{name}_total{{{labels}}}"
                out.writelines([f"{series} {step * (first + n)}{stamp}" for n, stamp in enumerate(stamps)])
        for name in ("celeryscope_build_info", "process_start_time_seconds"):
            out.writelines([f'{name}{{instance="a",job="celeryscope"}} 1{stamp}' for stamp in stamps])
        out.write("# EOF\n")


def expressions() -> Iterator[tuple[str, str]]:
    """Yield what reads every task's counters."""
    for group in rules.groups(defaults()):
        if group.costly:
            yield from ((helper.record, helper.expr) for helper in group.helpers)
            yield from ((alert.name, alert.expr) for alert in group.alerts if alert.name == "RetriesExhausted")


def measure(url: str, pid: int, at: int) -> None:
    """Print the CPU time of each, the median of some rounds, and of all together."""
    everything = 0.0
    with httpx.Client(base_url=url, timeout=120) as client:
        for name, expression in expressions():
            rounds = []
            for _ in range(ROUNDS):
                before = cpu(pid)
                client.post("/api/v1/query", data={"query": expression, "time": at}).raise_for_status()
                rounds.append(cpu(pid) - before)
            everything += statistics.median(rounds)
            print(f"{statistics.median(rounds) * 1000:6.0f} ms CPU  {name}", flush=True)
    print(f"{everything * 1000:6.0f} ms CPU  an evaluation")


def main() -> None:
    """Make the history and ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--hours", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="celeryscope-bench-") as folder:
        scratch, port = Path(folder), free_port()
        data, text = scratch / "data", scratch / "block.txt"
        data.mkdir()
        end = int(time.time()) // BLOCK * BLOCK
        for start in range(end - options.hours * 3600, end, BLOCK):
            write_block(text, options.tasks, start)
            command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", text, data]
            subprocess.run(command, check=True, capture_output=True)
        prometheus = served(data, scratch, port)
        try:
            eventually(lambda: ready(f"http://127.0.0.1:{port}"), timeout=60)
            measure(f"http://127.0.0.1:{port}", prometheus.pid, end - SCRAPE - 1)
        finally:
            prometheus.stop()


if __name__ == "__main__":
    main()
