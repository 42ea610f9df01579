"""An app whose $KINDS tasks wait for a gate, write down that they ran, and fail, each kind in a way of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import celeryscope
from celery import Celery

app = Celery("gated", broker=os.environ["BROKER"])
app.conf.update(
    task_default_queue="gated",
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    worker_prefetch_multiplier=0,
)
celeryscope.install(app, environment="test")


def failing(kind: int) -> Callable[[], None]:
    def fail() -> None:
        while not Path(os.environ["GATE"]).exists():
            threading.Event().wait(0.05)
        fd = os.open(os.environ["TRUTH"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{kind}\n".encode())
        os.close(fd)
        raise ValueError(f"kind {kind}")

    return fail


for n in range(int(os.environ["KINDS"])):
    app.task(failing(n), name=f"gated.task{n}")
