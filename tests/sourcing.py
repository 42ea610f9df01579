"""What the tests of event sources share: a sink that writes down, sources that get stopped, Celery's own sender."""

from __future__ import annotations

import threading
from typing import Any

from celery import Celery
from celeryscope.monitor.broker import BrokerConfig
from celeryscope.monitor.events import Event, TaskEvent
from celeryscope.monitor.sources import Source
from helpers import eventually


class Sink:
    """Keeps task events' uuids, all events' types and each change of the connection; waits while `gate` is shut."""

    def __init__(self) -> None:
        self.uuids: list[str] = []
        self.types: set[str] = set()
        self.states: list[bool] = []
        self.gate = threading.Event()
        self.gate.set()

    def feed(self, events: list[Event], now: float) -> None:
        self.gate.wait(60)
        self.types.update(event.type for event in events)
        self.uuids += [event.uuid for event in events if isinstance(event, TaskEvent)]

    def tick(self, now: float) -> None:
        pass

    def connection(self, up: bool, now: float) -> None:
        self.states.append(up)


class Sources:
    """Starts sources on a sink, and stops them at the end."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.started: list[Source] = []

    def __call__(self, config: BrokerConfig | str, *, proven: bool = True, **options: Any) -> Source:
        """Start one; with `proven`, return once its echo came back."""
        config = BrokerConfig.from_url(config) if isinstance(config, str) else config
        source = Source(config, self.sink, **{"echo_every": 0.3, **options})
        self.started.append(source)
        source.start()
        if proven:
            eventually(lambda: source.connected)
        return source

    def stop(self) -> None:
        self.sink.gate.set()
        for source in self.started:
            source.stop()
            eventually(lambda source=source: not any(thread.is_alive() for thread in source._threads))


def names(count: int, start: int = 0) -> list[str]:
    return [f"id-{number}" for number in range(start, start + count)]


def an_app(url: str, **conf: Any) -> Celery:
    app = Celery(broker=url, set_as_current=False)
    app.conf.update(conf)
    return app


def publish(app: Celery | str, uuids: list[str]) -> None:
    """Send task events as a worker does: Celery's own dispatcher, in batches on task.multi."""
    app = an_app(app) if isinstance(app, str) else app
    with app.connection_for_write() as connection, app.events.Dispatcher(connection, buffer_group={"task"}) as sender:
        for uuid in uuids:
            sender.send("task-started", uuid=uuid)
        sender.flush()
