"""What a restart costs: start to ready without any state and with a full task table, SIGTERM to exit, and a save.

    python tests/bench/restart.py

Two seconds are promised for start and stop with 200 000 live tasks, 0.7 s for a start with nothing. They are wall time
of a whole process: on a machine that is busy with something else they say little, and the processor time that a start
took (its own, measured until it was ready) says more. Bytecode is cached as in any installation, also where the
environment forbids it: without it Python compiles its sources anew at each start, which takes longer than all the rest.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import NamedTuple

from celeryscope.monitor.catalog import METRICS
from celeryscope.monitor.events import TaskEvent
from celeryscope.monitor.pipeline import Pipeline
from celeryscope.monitor.statefile import StateFile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import Process, RedisServer, eventually

LIVE, ROUNDS, PROMISE, EMPTY_PROMISE = 200_000, 5, 2.0, 0.7


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
    file.save({"": pipeline.dump(clean=True)}, last=True)
    file.close()


def ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except urllib.error.HTTPError:
        return False


class Cost(NamedTuple):
    """Seconds: until ready by the clock and of the processor, until the process had ended, and of its save."""

    up: float
    processor: float
    down: float
    save: float = 0.0


def restart(folder: Path, broker: RedisServer) -> Cost:
    """Start the monitor, wait for a save where there is a state, and stop it."""
    log = folder / "monitor.log"
    log.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "celeryscope", "monitor", "--listen", "127.0.0.1:0", "--broker", broker.url]
    full = (folder / "state").exists()
    began = time.perf_counter()
    saving = ["--state-dir", folder, "--state-save-interval", "2"] if full else []
    env = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    monitor = Process([*argv, *saving], log=log, env=env)
    monitor.wait_for("serves http://")
    url = monitor.output.split("serves ", 1)[1].split("/metrics", 1)[0]
    eventually(lambda: ready(f"{url}/-/ready"), interval=0.01)
    up, processor = time.perf_counter() - began, processor_seconds(monitor.popen.pid)
    save = eventually(lambda: last_save(url), 60) if full else 0.0
    began = time.perf_counter()
    monitor.popen.terminate()
    monitor.popen.wait()
    return Cost(up, processor, time.perf_counter() - began, save)


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process has used, as Linux knows it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def last_save(url: str) -> float:
    name = 'celeryscope_collector_duration_seconds{collector="state"} '
    with urllib.request.urlopen(f"{url}/metrics") as page:
        rest = page.read().decode().partition(name)[2]
    return float(rest.partition("\n")[0] or 0)


def medians(folder: Path, broker: RedisServer, rounds: int = ROUNDS) -> Cost:
    restart(folder, broker)  # compiles what was not compiled yet
    costs = [restart(folder, broker) for _ in range(rounds)]
    return Cost(*(statistics.median(column) for column in zip(*costs, strict=True)))


def measured(rounds: int = ROUNDS) -> tuple[Cost, Cost]:
    """Return what a restart costs with no state and with a full one."""
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as nothing:
        full_state(Path(name))
        broker = RedisServer(Path(name))
        try:
            return medians(Path(nothing), broker, rounds), medians(Path(name), broker, rounds)
        finally:
            broker.stop()


def main() -> int:
    empty, full = measured()
    print(f"no state: start to ready {empty.up:.2f} s, {empty.processor:.2f} s of the processor", end=" ")
    print(f"(promised: {EMPTY_PROMISE:g} s)")
    print(f"{LIVE} live tasks: start to ready {full.up:.2f} s, {full.processor:.2f} s of the processor;", end=" ")
    print(f"SIGTERM to exit {full.down:.2f} s (promised: {PROMISE:g} s each)")
    print(f"a save takes {full.save:.2f} s")
    return 0 if max(full.up, full.down) < PROMISE and empty.up < EMPTY_PROMISE else 1


if __name__ == "__main__":
    sys.exit(main())
