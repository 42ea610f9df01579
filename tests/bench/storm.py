"""100 000 failures from hooks, called as a worker calls them, over a broker and a real alerter to its incident store.

    python tests/bench/storm.py

The tasks themselves are left out: a worker of one process fails some 400 a second. Promised: under 60 s.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import redis
from alerting import quick_alerter
from celeryscope.alerts import queries
from celeryscope.alerts.store import Database
from celeryscope.demo.inbox import Inbox
from helpers import RedisServer, eventually, running
from hooks import fail_in_hooks

FAILURES, KINDS, PROMISE = 100_000, 300, 60.0


class Storm(NamedTuple):
    """Seconds until the hooks had taken all and until all were stored; the most that the broker grew by, in MB."""

    reported: float
    stored: float
    broker: float


def measured() -> Storm:
    with tempfile.TemporaryDirectory() as name, Inbox(["general"]).serving() as inbox:
        folder = Path(name)
        server = RedisServer(folder)
        try:
            with redis.Redis.from_url(server.url) as client:
                return _storm(folder, server.url, client, inbox)
        finally:
            server.stop()


def _storm(folder: Path, url: str, client: redis.Redis, inbox: Inbox) -> Storm:
    store = f"sqlite:///{folder}/incidents.db"
    before = most = client.info("memory")["used_memory"]
    with running(quick_alerter(folder, url, inbox, store=store, guard=10)):
        started = time.monotonic()
        for done in fail_in_hooks(url, FAILURES, KINDS):
            if done % 1_000 == 0:
                most = max(most, client.info("memory")["used_memory"])
        reported = time.monotonic() - started
        database = Database(store, time.time)
        eventually(
            lambda: sum(i.count for i in queries.incidents(database, limit=1_000)) == FAILURES, 240, interval=0.5
        )
        return Storm(reported, time.monotonic() - started, (most - before) / 2**20)


def main() -> int:
    storm = measured()
    print(f"{FAILURES:,} failures of {KINDS} kinds: reported in {storm.reported:.0f} s, stored after", end=" ")
    print(f"{storm.stored:.0f} s (promised: {PROMISE:g} s), broker +{storm.broker:.1f} MB")
    return 0 if storm.stored < PROMISE else 1


if __name__ == "__main__":
    sys.exit(main())
