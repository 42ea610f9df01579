"""What a scrape costs: 50 000 series rendered by us and by prometheus_client, and TLS with basic auth against plain.

    python tests/bench/scrape.py

Figures are CPU milliseconds of the thread that renders (the least of several scrapes), and wall milliseconds of a
client that asks a server in another process, with a connection that is kept, as Prometheus does, and with new ones.
"""

from __future__ import annotations

import argparse
import http.client
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import bcrypt
import trustme
from celeryscope.exporters.http import Server
from celeryscope.exporters.pages import _gzip
from celeryscope.exporters.prometheus import CeleryscopeCollector, Exposition
from celeryscope.exporters.webconfig import WebConfig
from celeryscope.monitor.catalog import TASKS
from celeryscope.monitor.facts import Family
from celeryscope.monitor.values import Address
from prometheus_client import CollectorRegistry, generate_latest

TASK_NAMES, QUEUES, ROUNDS = 165, 3, 9
AUTH = "Basic cHJvbWV0aGV1czpzM2NyZXQ="  # prometheus:s3cret


class Facts:
    """Every task metric for so many tasks on so many queues; `turn` changes a share of the series."""

    def __init__(self) -> None:
        self.pairs = [
            (f"proj.app{t % 7}.tasks.task_{t}", f"queue-{q}") for t in range(TASK_NAMES) for q in range(QUEUES)
        ]
        self.samples = [(metric, self._fresh(metric)) for metric in TASKS]
        self.labels = {metric.name: list(values) for metric, values in self.samples}

    def _fresh(self, metric):
        extra = tuple("succeeded" for _ in metric.labels[2:])
        keys = [(*pair, *extra)[: len(metric.labels)] for pair in self.pairs]
        size = len(metric.buckets) + 1
        if metric.kind == "histogram":
            return {k: [(i * n) % 977 for n in range(size)] + [i * 1.7] for i, k in enumerate(dict.fromkeys(keys))}
        return {k: i * 31 % 9973 for i, k in enumerate(dict.fromkeys(keys))}

    def turn(self, share: float) -> None:
        for _, values in self.samples:
            for key in list(values)[: int(len(values) * share)]:
                value = values[key]
                values[key] = [n + 1 for n in value] if isinstance(value, list) else value + 1

    def families(self):
        return [Family(metric, list(values.items())) for metric, values in self.samples]


def cpu(action) -> float:
    started = time.thread_time()
    action()
    return (time.thread_time() - started) * 1e3


def rendering() -> None:
    facts = Facts()
    page = Exposition({"": facts}, own=False)
    registry = CollectorRegistry()
    registry.register(CeleryscopeCollector(page))
    first = cpu(page.render)
    lines = sum(not line.startswith(b"#") for line in page.render().splitlines())
    print(f"{lines} series, {len(page.render()) / 1e6:.1f} MB")
    theirs = min(cpu(lambda: generate_latest(registry)) for _ in range(3))
    rows = {"prometheus_client": theirs, "ours, first scrape": first}
    for share in (0.0, 0.1, 1.0):
        costs = []
        for _ in range(ROUNDS):
            facts.turn(share)
            costs.append(cpu(page.render))
        rows[f"ours, {share:.0%} of the series changed"] = min(costs)
    for name, cost in rows.items():
        print(f"  {name:38} {cost:7.1f} ms  {cost / lines * 1e3:6.2f} µs a series  {theirs / cost:5.1f} x")
    body = page.render()
    print(f"  {'gzip':38} {cpu(lambda: _gzip(body)):7.1f} ms")
    idle, busy = held_up(_loop), held_up(lambda: (facts.turn(1.0), page.render()))
    print(f"  {'longest wait of another thread':38} {busy:7.1f} ms  ({idle:.1f} ms beside an empty loop)")


def held_up(action: Callable[[], object]) -> float:
    """The longest time, in ms, that a thread which only looks at the clock did not get to run meanwhile."""
    longest, stop = 0.0, threading.Event()

    def watch() -> None:
        nonlocal longest
        last = time.perf_counter()
        while not stop.is_set():
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    thread = threading.Thread(target=watch)
    thread.start()
    for _ in range(5):
        action()
    stop.set()
    thread.join()
    return longest * 1e3


def _loop() -> None:
    end = time.perf_counter() + 0.1
    while time.perf_counter() < end:
        pass


def serve(folder: Path, *, secure: bool) -> None:
    """Serve in this process until the parent closes our standard input."""
    config = WebConfig(folder / "web.yml") if secure else None
    with Server(Address("127.0.0.1", 0), {"/metrics": Exposition({"": Facts()})}, web_config=config) as server:
        print(server.port, flush=True)
        sys.stdin.read()


def scrapes(folder: Path, *, secure: bool, kept: bool) -> float:
    """The median wall time of a scrape, in ms; without `kept` each has a connection (and handshake) of its own."""
    argv = [sys.executable, __file__, "--serve", str(folder), *(["--secure"] if secure else [])]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        port = int(process.stdout.readline())
        context = ssl.create_default_context(cafile=folder / "ca.crt")
        times, client = [], None
        for _ in range(ROUNDS + 2):
            started = time.perf_counter()
            if client is None or not kept:
                client = (
                    http.client.HTTPSConnection("127.0.0.1", port, context=context)
                    if secure
                    else http.client.HTTPConnection("127.0.0.1", port)
                )
            client.request("GET", "/metrics", headers={"Accept-Encoding": "gzip", "Authorization": AUTH})
            response = client.getresponse()
            response.read()
            assert response.status == 200, response.status
            times.append(time.perf_counter() - started)
        process.stdin.close()
    return median(times[2:]) * 1e3  # the first pay for bcrypt and for building the labels


def serving() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ca = trustme.CA()
        cert = ca.issue_cert("127.0.0.1")
        ca.cert_pem.write_to_path(folder / "ca.crt")
        cert.cert_chain_pems[0].write_to_path(folder / "server.crt")
        cert.private_key_pem.write_to_path(folder / "server.key")
        hashed = bcrypt.hashpw(b"s3cret", bcrypt.gensalt(10)).decode()
        tls = "tls_server_config: {cert_file: server.crt, key_file: server.key}\n"
        (folder / "web.yml").write_text(f"{tls}basic_auth_users: {{prometheus: '{hashed}'}}\n")
        for kept in (True, False):
            plain, secure = (scrapes(folder, secure=secure, kept=kept) for secure in (False, True))
            how = "connection kept" if kept else "new connection each"
            print(f"scrape, {how:20} plain {plain:6.1f} ms  TLS and auth {secure:6.1f} ms  {secure / plain:4.2f} x")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", type=Path)
    parser.add_argument("--secure", action="store_true")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, secure=options.secure)
    else:
        rendering()
        serving()
