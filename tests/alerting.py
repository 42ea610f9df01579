"""What tests of the alerter share: batches as workers send them, and an alerter in a process of its own."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from celeryscope.alerts.failure import QUEUE, Entry, Failure, encode_batch
from celeryscope.alerts.publisher import outbox_queue
from celeryscope.demo.inbox import TOKEN, Inbox, Posted
from helpers import Process, free_port

_numbers = itertools.count(1)


def failure(task: str = "shop.charge", exception: str = "shop.errors.CardError", **others: Any) -> Failure:
    values: dict[str, Any] = {
        "kind": "failure",
        "message": "card declined",
        "uuid": "7f3e0000-0000-4000-8000-000000000001",
        "queue": "payments",
        "worker": "celery@node1",
        "environment": "prod",
        "release": "1.4.2",
        "frame": "shop.payments:charge",
        "traceback": 'Traceback (most recent call last):\n  File "shop/payments.py", line 3, in charge\n    pay()\n'
        "shop.errors.CardError: card declined\n",
    }
    return Failure(task=task, exception=exception, **{**values, **others})


def entry(fingerprint: str = "f1", count: int = 1, at: float | None = None, **sample: Any) -> Entry:
    at = time.time() if at is None else at
    return Entry(fingerprint, count, at, at, failure(**sample))


def batch(*entries: Entry, mark: str | None = None, **others: Any) -> bytes:
    sent = max((e.last for e in entries), default=time.time())
    return encode_batch(entries, id=mark or f"batch-{next(_numbers)}", host="celery@node1", sent=sent, **others)


def publish(url: str, bodies: Iterable[bytes]) -> None:
    """Put messages into the outbox as a worker's publisher does."""
    from kombu import Connection

    with Connection(url) as connection, connection.channel() as channel:
        outbox_queue()(channel).declare()
        producer = connection.Producer(channel, serializer=None)
        for body in bodies:
            producer.publish(body, exchange="", routing_key=QUEUE, content_type="application/json",
                             content_encoding="utf-8", delivery_mode=2)  # fmt: skip


def told(message: Posted) -> int:
    """The number of failures that an incident's message shows."""
    fields = [f["text"] for a in message.body["attachments"] for b in a["blocks"] for f in b.get("fields", ())]
    return int(next(text for text in fields if text.startswith("*Failures*")).split("\n")[1].replace(",", ""))


def task_of(message: Posted) -> str:
    """The task that an incident's message is about."""
    header = message.body["blocks"][0]["text"]["text"]
    return str(header.split(" ", 1)[1].rpartition(": ")[0])


def alerter_process(folder: Path, broker: str, inbox: Inbox, *options: str, name: str = "alerter") -> Process:
    """A real `celeryscope alerter`, ready when this returns."""
    config = folder / "celeryscope.toml"
    config.touch()
    process = Process(
        [sys.executable, "-m", "celeryscope", "alerter", "--config", config, "--broker", broker, "--listen",
         "127.0.0.1:0", "--state-dir", folder, "--slack-base-url", inbox.api_url, "--slack-channel", "#general",
         *options],
        log=folder / f"{name}.log",
        cwd=folder,
        env={"CELERYSCOPE_SLACK_TOKEN": TOKEN},
    )  # fmt: skip
    process.wait_for("alerter reads")
    return process


def as_json(body: bytes) -> dict[str, Any]:
    found = json.loads(body)
    assert isinstance(found, dict)
    return found


def quick_alerter(
    folder: Path, broker: str, inbox: Inbox, *, store: str = "", name: str = "alerter", **others: Any
) -> Process:
    """A real alerter whose leases and pauses are short, ready when this returns."""
    given = {"store": store or f"sqlite:///{folder}/incidents.db", "broker": broker, "slack": inbox.api_url}
    process = Process(
        [sys.executable, Path(__file__).with_name("quick_alerter.py"), json.dumps({**given, "token": TOKEN, **others})],
        log=folder / f"{name}.log",
    )
    process.wait_for("alerter reads")
    return process


class PostgresServer:
    """A PostgreSQL of our own (Debian's), run as its user: initdb refuses root."""

    def __init__(self, folder: Path) -> None:
        import getpass

        self.folder = folder
        binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if not binaries:
            raise RuntimeError("postgresql is not installed: run `make integration-packages` (or apt-get install it)")
        self.run = ["runuser", "-u", "postgres", "--"] if getpass.getuser() == "root" else []
        data = folder / "data"
        data.mkdir()
        if self.run:
            shutil.chown(data, "postgres")
            for parent in (folder, *folder.parents[:-1]):
                if parent.stat().st_uid == 0 and parent != Path("/tmp"):
                    parent.chmod(parent.stat().st_mode | 0o011)
        options = ["-D", str(data), "-A", "trust", "-U", "celeryscope", "--no-sync", "-E", "UTF8", "--locale=C"]
        subprocess.run([*self.run, str(binaries[-1] / "initdb"), *options], check=True, capture_output=True, cwd="/")
        for _ in range(5):
            self.port = free_port()
            settings = [f"port={self.port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"]
            command = [
                *self.run,
                binaries[-1] / "postgres",
                "-D",
                data,
                *(word for s in settings for word in ("-c", s)),
            ]
            self.process = Process(command, log=folder / "postgres.log", cwd=Path("/"))
            try:
                self.process.wait_for("ready to accept connections", 30)
            except RuntimeError:  # somebody else took the port
                continue
            return
        raise RuntimeError(f"PostgreSQL does not start; see {folder}")

    @property
    def url(self) -> str:
        return f"postgresql://celeryscope@127.0.0.1:{self.port}/postgres"

    def stop(self) -> None:
        self.process.send(signal.SIGINT)  # fast shutdown; runuser passes it on
        self.process.stop()
