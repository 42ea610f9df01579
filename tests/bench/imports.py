"""What `import celeryscope` and `install(app)` cost a process that has Celery already.

    python tests/bench/imports.py

Promised: under 30 ms for the import. Of some fresh processes the median counts; bytecode is there, as in any
installation.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import NamedTuple

ROUNDS, PROMISE = 9, 30.0
CODE = """
import sys, time
from celery import Celery
app = Celery("bench", broker="memory://")
before, started, used = set(sys.modules), time.perf_counter(), time.process_time()
import celeryscope
imported, spent = time.perf_counter() - started, time.process_time() - used
started = time.perf_counter()
celeryscope.install(app)
print(imported * 1e3, spent * 1e3, (time.perf_counter() - started) * 1e3, len(set(sys.modules) - before))
"""


class Cost(NamedTuple):
    """Milliseconds of the import by the clock and of the processor, and of install(); how many modules both add."""

    wall: float
    processor: float
    install: float
    modules: float


def measured(rounds: int = ROUNDS) -> Cost:
    runs = [
        [
            float(word)
            for word in subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True).stdout.split()
        ]
        for _ in range(rounds + 1)
    ]
    return Cost(*(statistics.median(column) for column in zip(*runs[1:], strict=True)))  # the first one compiles


def main() -> int:
    cost = measured()
    print(
        f"import celeryscope {cost.wall:.1f} ms ({cost.processor:.1f} of the processor; promised: {PROMISE:g});",
        end=" ",
    )
    print(f"install(app) {cost.install:.1f} ms; both {cost.modules:.0f} modules")
    return 0 if cost.wall < PROMISE else 1


if __name__ == "__main__":
    sys.exit(main())
