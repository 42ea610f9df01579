"""What `celeryscope monitor` loads before it is ready: each module is time in which nothing is watched."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from celery.events.event import get_exchange
from celery.utils.time import utcoffset
from celeryscope.monitor.broker import BrokerConfig, event_exchange
from celeryscope.monitor.echo import utc_offset

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
import json, sys
from celeryscope.cli import run
code = run(["monitor", "--listen", "127.0.0.1:0", "--broker", "redis://127.0.0.1:1/0"])
print(json.dumps([code, sorted(sys.modules)]))
"""
NEEDED = {"celeryscope.exporters.http", "celeryscope.monitor.redis_source", "kombu.transport.redis", "redis.client"}
"""The start went as far as to try the broker, which refuses."""
UNNEEDED = {
    "celery",
    "celeryscope.alerts",
    "celeryscope.dashboards",
    "httpx",
    "rich",
    "slack_sdk",
    "sqlalchemy",
}


def test_the_monitor_of_a_redis_broker_starts_without_what_it_does_not_need(tmp_path: Path) -> None:
    """Celery is for `-A` and for the calendars of beat, the rest for other commands and brokers."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=120
    )
    code, modules = json.loads(done.stdout)
    assert code == 2, done.stderr
    assert set(modules) >= NEEDED
    assert set(modules) & UNNEEDED == set()


def test_our_own_event_is_sent_as_celery_would_send_it() -> None:
    """The same exchange, whatever the transport, and the same offset: both without importing Celery."""
    for url in ("redis://h", "amqp://h", "memory://"):
        config = BrokerConfig.from_url(url, event_exchange="events-here")
        connection = config.connection()
        theirs, ours = get_exchange(connection, name="events-here"), event_exchange(config, connection)
        assert (theirs, theirs.type) == (ours, ours.type)
    assert utc_offset() == utcoffset()
