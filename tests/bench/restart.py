"""What a restart costs with a full task table: start to ready, SIGTERM to exit, and how long a save holds events up.

    python tests/bench/restart.py

Two seconds are promised for each of the first two, with 200 000 live tasks. They are wall time of a whole process:
on a machine that is busy with something else they say little.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

from celeryscope.monitor.catalog import METRICS
from celeryscope.monitor.events import TaskEvent
from celeryscope.monitor.pipeline import Pipeline
from celeryscope.monitor.statefile import StateFile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import Process, RedisServer, eventually

LIVE, ROUNDS, PROMISE = 200_000, 3, 2.0


def full_state(folder: Path) -> None:
    """Write the state of a monitor that knows so many live tasks, a third of them received by one of 100 workers."""
    pipeline, now = Pipeline(METRICS), time.time()
    for start in range(0, LIVE, 500):
        events = []
        for n in range(start, start + 500):
            task, name = str(uuid.uuid4()), f"proj.app{n % 7}.tasks.task_{n % 200}"
            events.append(
                TaskEvent(type="task-sent", hostname="p@h", timestamp=now, uuid=task, name=name, queue=f"queue-{n % 5}")
            )
            if n % 3 == 0:
                worker = f"celery@worker-{n % 100}"
                events.append(
                    TaskEvent(
                        type="task-received", hostname=worker, timestamp=now, uuid=task, name=name, clock=n, pid=1
                    )
                )
        pipeline.feed(events, now)
    file = StateFile(folder)
    file.open()
    file.save({"": pipeline.dump(clean=True)})
    file.close()


def ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except urllib.error.HTTPError:
        return False


def restart(folder: Path, broker: RedisServer) -> tuple[float, float, float]:
    """Start the monitor and stop it; return seconds to ready, seconds to exit, and the seconds that its save took."""
    log = folder / "monitor.log"
    log.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "celeryscope", "monitor", "--listen", "127.0.0.1:0", "--broker", broker.url]
    began = time.perf_counter()
    monitor = Process([*argv, "--state-dir", folder], log=log)
    monitor.wait_for("serves http://")
    url = monitor.output.split("serves ", 1)[1].split("/metrics", 1)[0]
    eventually(lambda: ready(f"{url}/-/ready"), interval=0.01)
    up = time.perf_counter() - began
    saving = 'celeryscope_collector_duration_seconds{collector="state"} '

    def saved() -> float:
        with urllib.request.urlopen(f"{url}/metrics") as page:
            return float(page.read().decode().split(saving, 1)[1].split("\n", 1)[0])

    save = eventually(saved)
    began = time.perf_counter()
    monitor.popen.terminate()
    monitor.popen.wait()
    return up, time.perf_counter() - began, save


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        full_state(folder)
        broker = RedisServer(folder)
        try:
            rounds = [restart(folder, broker) for _ in range(ROUNDS)]
        finally:
            broker.stop()
        up, down, save = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"{LIVE} live tasks: start to ready {up:.2f} s, SIGTERM to exit {down:.2f} s (promised: {PROMISE:g} s each)")
    print(f"a save takes {save:.2f} s")
    return 0 if max(up, down) < PROMISE else 1


if __name__ == "__main__":
    sys.exit(main())
