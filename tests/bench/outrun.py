"""Can one monitor keep up with one broker? What Redis can do with tasks on its core, and the monitor with their events.

    python tests/bench/outrun.py

Redis runs commands on one core, and the monitor takes in events on one. How many commands a task is comes from real
ones: a real producer, a real worker, everything that Celery does with a task in Redis, its events included. What a
command costs at the least comes from redis-benchmark at full speed, without pipelining, which Celery does not do much
of: so that is the most tasks that one Redis carries. What an event costs the monitor comes from the same kind of
stream at full speed. Promised: the monitor takes in more than the events of all those tasks. It is processor time that
is compared: others on the machine change it little. Needs redis-server and redis-benchmark.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import redis
from celery import Celery

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chaos_tools import MonitorProcess
from helpers import Process, RedisServer, eventually, running, system_command, worker_argv

HERE = Path(__file__).resolve().parent
WARM, TASKS, EVENTS, COMMANDS = 200, 1_500, 400_000, 300_000
SHAPE = ("--batch", "3", "--sent", "--tasks", "200", "--workers", "100")
PROMISE = 1.0


class Real(NamedTuple):
    """Of a real task: events, commands, and seconds of Redis' and of the monitor's processor at a small load."""

    events: float
    commands: float
    broker: float
    monitor: float


def server_cpu(client: redis.Redis) -> float:
    info = client.info("cpu")
    return float(info["used_cpu_user"] + info["used_cpu_sys"])


def real(folder: Path, server: RedisServer) -> Real:
    """Run real tasks, and see what they cost."""
    (folder / "truth").touch()
    env = {"BROKER": server.url, "TRUTH": str(folder / "truth"), "PYTHONPATH": str(HERE.parent / "apps")}
    argv = worker_argv("rolling", "-P", "prefork", "-c", "2", "--loglevel", "ERROR")
    with (
        Celery("producer", broker=server.url, set_as_current=False) as app,
        redis.Redis.from_url(server.url) as client,
        running(MonitorProcess(folder, server.url)) as monitor,
        running(Process(argv, log=folder / "worker.log", cwd=folder, env=env)),
    ):
        app.conf.task_send_sent_event = True

        def run(count: int) -> None:
            done = monitor.total("celery_task_succeeded_total") + count
            with app.producer_pool.acquire() as producer:
                for _ in range(count):
                    app.send_task("rolling.ok", queue="rolling", producer=producer)
            eventually(lambda: monitor.total("celery_task_succeeded_total") == done, 300, 1)

        eventually(monitor.ready, 60)
        run(WARM)
        before = spent(client, monitor)
        run(TASKS)
        after = spent(client, monitor)
    return Real(*((b - a) / TASKS for a, b in zip(before, after, strict=True)))


def spent(client: redis.Redis, monitor: MonitorProcess) -> Real:
    events = monitor.total("celeryscope_events_total")
    commands = client.info("stats")["total_commands_processed"]
    return Real(events, commands, server_cpu(client), monitor.cpu_seconds())


def a_command(server: RedisServer) -> float:
    """Seconds of Redis' processor for one command of 50 clients, each of which waits for its answer."""
    argv = [system_command("redis-benchmark"), "-p", str(server.port), "-t", "lpush,rpop", "-n", str(COMMANDS // 2)]
    with redis.Redis.from_url(server.url) as client:
        before = server_cpu(client)
        subprocess.run([*argv, "-c", "50", "-d", "500", "-q"], check=True, capture_output=True)
        return (server_cpu(client) - before) / COMMANDS


def at_full_speed() -> tuple[float, float]:
    """Seconds of the monitor's processor and of Redis' for an event, as fast as the monitor takes them."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "runs"
        options = (*SHAPE, f"--events={EVENTS}", "--rounds=3", "--sut=celeryscope", f"--out={out}")
        subprocess.run([sys.executable, HERE / "bench.py", "throughput", *options], check=True, capture_output=True)
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    return min(row["cpu_s_per_million"] / 1e6 for row in rows), min(row["redis_cpu_s"] / row["events"] for row in rows)


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        server = RedisServer(Path(name), binary=system_command("redis-server"))
        try:
            found, command = real(Path(name), server), a_command(server)
        finally:
            server.stop()
    monitor, delivery = at_full_speed()
    tasks = 1 / (found.commands * command)
    ratio = 1 / monitor / (tasks * found.events)
    print(
        f"a real task: {found.events:.1f} events, {found.commands:.1f} commands; {found.broker * 1e6:.0f} µs of Redis'",
        end="",
    )
    print(f" processor and {found.monitor * 1e6:.0f} µs of the monitor's, while there is little to do")
    print(
        f"a command at full speed: {command * 1e6:.1f} µs, so Redis carries at most {tasks:,.0f} tasks a second,",
        end="",
    )
    print(f" {tasks * found.events:,.0f} events")
    print(f"an event at full speed: {monitor * 1e6:.1f} µs of the monitor's core, {1 / monitor:,.0f} a second", end="")
    print(f"; its delivery {delivery * 1e6:.1f} µs of Redis', once more for each further monitor")
    print(f"one monitor takes in {ratio:.1f} times the events of what Redis can carry (promised: {PROMISE:g})")
    return 0 if ratio > PROMISE else 1


if __name__ == "__main__":
    sys.exit(main())
