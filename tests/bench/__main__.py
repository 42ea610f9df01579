"""What `make bench` prints: speed and memory beside Celery's receiver; what a scrape, a sample and beat's probe cost.

    python tests/bench [--quick]

Everything is a ratio of what ran side by side on this machine; the figures alone say little. The exit code is 1 where
a ratio is below what we promise.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

import bench

PROMISES = {"receiver": 2.2, "state": 9.0, "raw": None}
SHAPES = {
    "batches of 3, as prefork workers send them": ("--batch", "3", "--no-sent"),
    "each event alone, and task-sent": ("--batch", "1", "--sent"),
    "batches of 24, the most that Celery sends": ("--batch", "24", "--no-sent"),
}


def throughput(shape: tuple[str, ...], events: int, rounds: int) -> bool:
    """Print one table and its ratios; true where every promise holds."""
    systems = [f"--sut={name}" for name in (*PROMISES, "celeryscope")]
    runs = bench.main(["throughput", *shape, *systems, f"--events={events}", f"--rounds={rounds}"])
    kept = "celeryscope" in runs
    for name, promise in PROMISES.items():
        if name not in runs or not kept:
            continue
        ratio = statistics.median(
            ours["events_s"] / theirs["events_s"] for ours, theirs in zip(runs["celeryscope"], runs[name], strict=True)
        )
        wanted = f" (promised: {promise})" if promise and shape == SHAPES[next(iter(SHAPES))] else ""
        kept = kept and not (wanted and ratio < (promise or 0))
        print(f"celeryscope takes in {ratio:.2f} times the events of {name}{wanted}")
    return kept


def main() -> int:
    """Run all of it, or the shape that we promise something about."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the first table, with fewer events")
    options = parser.parse_args()
    kept = True
    for name, shape in list(SHAPES.items())[: 1 if options.quick else None]:
        print(f"\nEvents taken in, {name}:", flush=True)
        kept = throughput(shape, 60_000 if options.quick else 200_000, 3) and kept
    if not options.quick:
        for script in ("scrape.py", "queues.py", "restart.py", "beat.py"):
            print(f"\n{script}:", flush=True)
            path = Path(__file__).with_name(script)
            kept = subprocess.run([sys.executable, path], check=False).returncode == 0 and kept
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
