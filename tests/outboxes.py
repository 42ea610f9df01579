"""Reads the failures that workers left in the outbox queue."""

from __future__ import annotations

import base64
import json
from collections import Counter
from typing import Any

import redis
from celeryscope.alerts.failure import QUEUE
from celeryscope.alerts.publisher import outbox_queue


def batches(url: str) -> list[dict[str, Any]]:
    """All messages waiting, oldest first."""
    with redis.Redis.from_url(url) as client:
        raw = client.lrange(QUEUE, 0, -1)
    return [json.loads(base64.b64decode(json.loads(item)["body"])) for item in reversed(raw)]


def entries(url: str) -> list[dict[str, Any]]:
    """All entries waiting, oldest first."""
    return [entry for batch in batches(url) for entry in batch["entries"]]


def counts(url: str) -> Counter[tuple[str, str]]:
    """Failures waiting, by (task without its module, kind)."""
    found: Counter[tuple[str, str]] = Counter()
    for entry in entries(url):
        found[entry["sample"]["task"].rpartition(".")[2], entry["sample"]["kind"]] += entry["count"]
    return found


def samples(url: str) -> dict[str, dict[str, Any]]:
    """The first sample of each task, by the task's name without its module."""
    found: dict[str, dict[str, Any]] = {}
    for entry in entries(url):
        found.setdefault(entry["sample"]["task"].rpartition(".")[2], entry["sample"])
    return found


def fetched(app: Any) -> list[dict[str, Any]]:
    """Take all messages that wait on the broker of `app`, whichever it is; return their entries."""
    found: list[dict[str, Any]] = []
    with app.connection_for_read() as connection:
        queue = outbox_queue()(connection.default_channel)
        queue.declare()
        while (message := queue.get(accept=["json"], no_ack=True)) is not None:
            found += json.loads(message.body)["entries"]
    return found
