"""Publish Celery events for as long as wanted: made while it goes, from templates, for a small part of one core.

    python tests/bench/soak.py --redis-port 6379 --rate 50000 --seconds 3600

What it says is true: each worker runs one task at a time, its clock only rises, and its heartbeats carry the number of
tasks that it has started. It holds back while Redis keeps more than --backlog bytes for a subscriber, and catches up
afterwards: whoever counts must find every event, however slow the machine is. At the end one line of JSON tells what
was published, by type, by task and by worker, and how fast.
"""

import argparse
import base64
import json
import time
from collections import Counter

import wire
from publish import Redis

TICK = 0.01
MOST = 1_200
"""Task events in one write at most: about 600 kB."""
ARGS = (
    '"args": "(%d, 19.99)", "kwargs": "{\'currency\': \'EUR\', \'customer\': 48213, '
    "'idempotency_key': '9d2c5680f1b3a7e4'}\""
)


TAIL = ', "timestamp": %.6f, "type": "task-{}"}}'
ENDS = {
    "succeeded": '"uuid": "%s", "result": "{\'ok\': True, \'order\': 17}", "runtime": 0.0123456789',
    "failed": f'"uuid": "%s", "exception": "{wire.EXCEPTIONS[0]}", "traceback": {wire.TRACEBACK}',
}
ENDS = {kind: text + TAIL.format(kind) for kind, text in ENDS.items()}
STARTED = '"uuid": "%s"' + TAIL.format("started")


class Worker:
    """One worker, which runs one task at a time."""

    def __init__(self, number):
        self.host = f"celery@worker-{number:04d}"
        self.clock = self.processed = 0
        self.uuid = self.task = None
        self.multi = envelope("task.multi", self.host)
        self.heartbeats = envelope("worker.heartbeat", self.host)
        self.who = f'{{"hostname": "{self.host}", "utcoffset": 0.0, "pid": {1000 + number}, "clock": '

    def head(self):
        self.clock += 1
        return f"{self.who}{self.clock}, "

    def end(self, kind, now):
        return self.head() + ENDS[kind] % (self.uuid, now)

    def take(self, uuid, task, received, now):
        self.processed += 1
        self.uuid, self.task = uuid, task
        return f"{self.head()}{received % (uuid, uuid, now)}, {self.head()}{STARTED % (uuid, now)}"

    def heartbeat(self, now, kind="heartbeat"):
        body = (
            f'{self.head()}"freq": 2.0, "active": {int(self.uuid is not None)}, "processed": '
            f'{self.processed}, "loadavg": [0.5, 0.4, 0.3], "sw_ident": "py-celery", "sw_ver": "5.7.0", '
            f'"sw_sys": "Linux", "timestamp": {now:.6f}, "type": "worker-{kind}"}}'
        )
        return command(self.heartbeats, body)


def envelope(key, host):
    """Return the PUBLISH command around a message's body: what comes before its length, its head and its tail."""
    channel = f"/0.celeryev/{key}".encode()
    tail = (
        f'", "content-encoding": "utf-8", "content-type": "application/json", "headers": {{"hostname": "{host}"}}, '
        f'"properties": {{"delivery_mode": 1, "delivery_info": {{"exchange": "celeryev", "routing_key": "{key}"}}, '
        '"priority": 0, "body_encoding": "base64", "delivery_tag": "4bf5122f-3445-4548-9bd2-8a1c9b2f1a77"}}'
    )
    return b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n" % (len(channel), channel), b'{"body": "', tail.encode()


def command(around, body):
    before, head, tail = around
    payload = head + base64.b64encode(body.encode()) + tail
    return b"%b$%d\r\n%b\r\n" % (before, len(payload), payload)


class Site:
    """Workers, tasks and a client that sends them: the next task's events, whenever they are asked for."""

    def __init__(self, workers, tasks, failing):
        self.names = [f"shop.area{n % 7}.tasks.job_{n:05d}" for n in range(tasks)]
        self.queues = [f"queue-{n % 20}" for n in range(tasks)]
        self.workers = [Worker(n) for n in range(workers)]
        self.client = envelope("task.sent", "gen200@web-0")
        self.failing = failing
        self.base = f"-{time.time_ns() & 0xFFFF:04x}-4000-a000-{time.time_ns() & 0xFFFFFFFFFFFF:012x}"
        self.number = 0
        self.ended = Counter()
        self.sent = [
            f'{{"hostname": "gen200@web-0", "utcoffset": 0.0, "pid": 200, "clock": %d, "uuid": "%s", "root_id": "%s", '
            f'"parent_id": null, "name": "{name}", {ARGS % 17}, "retries": 0, "eta": null, "expires": null, '
            f'"queue": "{queue}", "exchange": "", "routing_key": "{queue}", "timestamp": %.6f, "type": "task-sent"}}'
            for name, queue in zip(self.names, self.queues, strict=True)
        ]
        self.received = [
            f'"uuid": "%s", "name": "{name}", {ARGS % 17}, "root_id": "%s", "parent_id": null, "retries": 0, '
            f'"expires": null{TAIL.format("received")}'
            for name in self.names
        ]

    def task(self, now):
        """Return the commands that tell of one more task, and of the end of the one before it on its worker."""
        number, self.number = self.number, self.number + 1
        worker, which = self.workers[number % len(self.workers)], number % len(self.names)
        uuid = f"{number * 2_654_435_761 & 0xFFFFFFFF:08x}{self.base}"
        parts = [self._end(worker, number, now)] if worker.uuid else []
        parts.append(worker.take(uuid, self.names[which], self.received[which], now))
        return (
            command(self.client, self.sent[which] % (number + 1, uuid, uuid, now)),
            command(worker.multi, "[" + ", ".join(parts) + "]"),
        )

    def _end(self, worker, number, now):
        turn = number // len(self.names)  # so that each task fails now and then
        kind = "failed" if self.failing and (number + turn) % self.failing == 0 else "succeeded"
        self.ended[kind, worker.task] += 1
        return worker.end(kind, now)

    def close(self, now):
        """Return the commands that end what still runs, and each worker's last heartbeat."""
        for number, worker in enumerate(self.workers):
            if worker.uuid:
                yield command(worker.multi, "[" + self._end(worker, number + 1, now) + "]")
                worker.uuid = None
            yield worker.heartbeat(now)

    def told(self):
        """Return how many events of each type were made, and of what."""
        ends = Counter()
        for (kind, _), count in self.ended.items():
            ends[f"task-{kind}"] += count
        whole = dict.fromkeys(("task-sent", "task-received", "task-started"), self.number)
        by_task = {f"{kind} {task}": count for (kind, task), count in sorted(self.ended.items())}
        return {"types": whole | dict(ends), "ended": by_task, "started": {w.host: w.processed for w in self.workers}}


class Line:
    """The way to Redis: commands out, how many subscribers got each, and a halt while one of them lags."""

    def __init__(self, port, backlog):
        self.data, self.control = Redis(port), Redis(port)
        self.backlog = backlog
        self.messages = self.bytes = self.unchecked = 0
        self.fewest = 1 << 30
        self.waited = 0.0

    def send(self, commands):
        block = b"".join(commands)
        self.data.sock.sendall(block)
        self.fewest = min(self.fewest, self.data.integers(len(commands)))
        self.messages += len(commands)
        self.bytes += len(block)
        self.unchecked += len(block)
        if self.unchecked >= self.backlog // 8:
            self.unchecked = 0
            before = time.monotonic()
            while sum(int(c["omem"]) for c in self.control.subscribers()) > self.backlog:
                time.sleep(0.002)
            self.waited += time.monotonic() - before


def publish(site, line, rate, seconds, tasks):
    """Publish until the time is over, or so many tasks were told of; return the seconds and the heartbeats."""
    start = time.monotonic()
    line.send([worker.heartbeat(time.time(), "online") for worker in site.workers])
    line.send([worker.heartbeat(time.time()) for worker in site.workers])
    beats, every, limit = len(site.workers), 2.0 / len(site.workers), tasks or 1 << 60
    while site.number < limit and (elapsed := time.monotonic() - start) < seconds:
        now = time.time()
        due = min(int(elapsed * rate / 4) - site.number, MOST // 4, limit - site.number)
        commands = [part for _ in range(due) for part in site.task(now)]
        # After a halt no worker says everything at once.
        for _ in range(min(int(elapsed / every) - beats + len(site.workers), len(site.workers))):
            commands.append(site.workers[beats % len(site.workers)].heartbeat(now))
            beats += 1
        if commands:
            line.send(commands)
        if due < MOST // 4:
            time.sleep(TICK)
    line.send(list(site.close(time.time())))
    return time.monotonic() - start, beats + len(site.workers)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis-port", type=int, required=True)
    parser.add_argument("--rate", type=float, default=50_000, help="task events a second")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--count", type=int, default=0, help="tasks after which it ends; 0: by the time alone")
    parser.add_argument("--tasks", type=int, default=200, help="task names")
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--failing", type=int, default=25, help="one task in so many fails; 0: none")
    parser.add_argument("--backlog", type=int, default=4 << 20, help="bytes that Redis may keep for a subscriber")
    args = parser.parse_args()
    site, line = Site(args.workers, args.tasks, args.failing), Line(args.redis_port, args.backlog)
    used = time.process_time()
    seconds, beats = publish(site, line, args.rate, args.seconds, args.count)
    told = site.told()
    told["types"] |= {"worker-online": len(site.workers), "worker-heartbeat": beats}
    events = sum(count for kind, count in told["types"].items() if kind.startswith("task-"))
    print(
        json.dumps(
            told
            | {"tasks": site.number, "seconds": seconds, "events": events, "rate": events / seconds}
            | {"waited": line.waited, "cpu": time.process_time() - used, "messages": line.messages}
            | {"megabytes": line.bytes / 1e6, "fewest_receivers": line.fewest}
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
