"""A burst of failures, from a worker's hooks to the incident store: none lost, no memory and no Slack flooded."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from alerting import quick_alerter
from celeryscope.alerts import queries
from celeryscope.alerts.store import Database
from celeryscope.demo.inbox import Inbox
from chaos_load_tools import MEGABYTE, resident
from helpers import ROOT, RedisServer, eventually, running
from ordeal import empty

KINDS = 300
GUARD, UPDATE = 10, 30.0
"""Incidents that are told one by one, and the seconds between two changes of a message: as an alerter has them."""


@pytest.fixture(name="inbox")
def _inbox() -> Iterator[Inbox]:
    with Inbox(["general"]).serving() as inbox:
        yield inbox


@pytest.mark.parametrize(
    "failures", [20_000, pytest.param(300_000, marks=[pytest.mark.soak, pytest.mark.timeout(1_200)])]
)
def test_a_burst_of_failures_is_stored_to_the_last_one_and_told_in_a_few_calls(
    valkey: RedisServer, inbox: Inbox, tmp_path: Path, failures: int
) -> None:
    """The worker keeps kinds and not failures; Slack hears of the first few kinds, and of the rest in one message."""
    store = f"sqlite:///{tmp_path}/incidents.db"
    argv = [sys.executable, ROOT / "tests/bench/burst.py", "--broker", valkey.url, "--count", str(failures)]
    with (
        redis.Redis.from_url(valkey.url) as client,
        running(quick_alerter(tmp_path, valkey.url, inbox, store=store, guard=GUARD, update=UPDATE)) as alerter,
    ):
        broker, before, began = client.info("memory")["used_memory"], resident(alerter.pid), time.monotonic()
        done = subprocess.run([*argv, "--kinds", str(KINDS)], capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr
        worker = json.loads(done.stdout)

        def stored() -> bool:
            found = queries.incidents(Database(store, time.time), limit=2 * KINDS)
            assert (sum(incident.count for incident in found), len(found)) == (failures, KINDS)
            return True

        eventually(stored, 180, interval=0.5)
        taken = time.monotonic() - began
        eventually(lambda: empty(valkey.url), 60)
        grown = resident(alerter.pid) - before
        left = client.info("memory")["used_memory"] - broker
        peak = client.info("memory")["used_memory_peak"] - broker
        # A burst may be in the store before its first message is on its way.
        eventually(lambda: sum(inbox.accepted.values()) > 0, 60)
        calls, told = sum(inbox.accepted.values()), time.monotonic() - began
    print(
        f"{failures:,} failures of {KINDS} kinds: through the hooks in {worker['seconds']:.0f} s, stored after "
        f"{taken:.0f} s; worker's memory +{(worker['most'] - worker['before']) / MEGABYTE:.1f} MB, alerter's "
        f"+{grown / MEGABYTE:.1f} MB, broker's at most +{peak / MEGABYTE:.1f} MB; {calls} calls to Slack"
    )
    assert worker["most"] - worker["before"] < 32 * MEGABYTE
    assert grown < 64 * MEGABYTE
    assert left < 16 * MEGABYTE
    assert calls < 2 * GUARD * (1 + told / UPDATE)
