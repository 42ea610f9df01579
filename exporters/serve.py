"""`celeryscope monitor` as a process: the monitor's facts, the pages that show them, and signals that end both."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import click

from .. import __version__
from ..monitor import logs
from ..monitor.allocator import give_memory_back
from ..monitor.compat import CompatCounts
from ..monitor.facts import Facts
from ..monitor.garbage import held_back, keep
from ..monitor.masking import secrets_in
from ..monitor.service import Monitor, StartError
from .compat import PATH as COMPAT_PATH
from .compat import CompatFacts, compat_exposition
from .http import ListenError, Server
from .pages import Page, Status
from .prometheus import Exposition
from .webconfig import WebConfig, WebConfigError

if TYPE_CHECKING:
    from ..monitor.settings import MonitorSettings

logger = logging.getLogger("celeryscope.monitor")


class CannotStartError(click.ClickException):
    """Something that the user must mend first; a line each, exit code 2."""

    exit_code = 2


Faults = Mapping[str, Callable[[], "str | None"]]
"""By the name of a part of the process: what says why that part has given up, None while it works."""


def serve(
    settings: MonitorSettings,
    others: Mapping[str, Facts] | None = None,
    secrets: Collection[str] = (),
    faults: Faults | None = None,
) -> None:
    """Watch and serve until SIGTERM or SIGINT; `others` are further facts for the page, by collector name.

    No log line holds one of `secrets`, nor a password of the settings. A part that has given up, as `faults` say, makes
    `/-/healthy` say so with a 503, so that a supervisor starts the process anew; until then the monitor goes on.

    Raises:
        CannotStartError: a line for each thing that keeps it from starting.
    """
    give_memory_back()
    _configure_logs(settings, (), secrets)
    stop = threading.Event()
    with _signals(stop):
        try:
            _serve(settings, others or {}, secrets, faults or {}, stop)
        except (StartError, ListenError, WebConfigError) as error:
            raise CannotStartError(str(error)) from None


def _serve(
    settings: MonitorSettings,
    others: Mapping[str, Facts],
    secrets: Collection[str],
    faults: Faults,
    stop: threading.Event,
) -> None:
    names = [target.name for target in settings.broker_url] or [""]
    compat = {name: CompatCounts() for name in names} if settings.compat else {}
    with held_back():
        monitor = Monitor(settings, observer=compat.__getitem__ if compat else None)
        keep()
    # An app may have brought URLs of its own.
    _configure_logs(settings, [config.url for config in monitor.configs], secrets)
    with contextlib.closing(monitor):
        with held_back():
            monitor.restore()
            keep()
        with _server(settings, monitor, _pages(settings, monitor, compat, others), faults) as server:
            monitor.probe(stop)
            if not stop.is_set():
                _run(monitor, server, stop)


def _run(monitor: Monitor, server: Server, stop: threading.Event) -> None:
    monitor.start()
    brokers = ", ".join(config.label for config in monitor.configs)
    logs.START.info("celeryscope %s watches %s and serves %s/metrics", __version__, brokers, server.url)
    try:
        stop.wait()
    finally:
        # Side by side: two seconds are all that an orchestrator may give us.
        with ThreadPoolExecutor(1, thread_name_prefix="celeryscope-stop") as pool:
            pool.submit(server.stop)
            monitor.stop()
        logger.info("stopped")


def _configure_logs(settings: MonitorSettings, urls: Iterable[str], secrets: Collection[str]) -> None:
    """Let no password of these URLs, or of those in the settings, get into the log."""
    targets = (*settings.broker_url, *settings.rabbitmq_management_url)
    everywhere = (*urls, *(target.url.get_secret_value() for target in targets))
    hidden = {*secrets, *(secret for url in everywhere for secret in secrets_in(url))}
    logs.configure(settings.log_level, settings.log_format, hidden)


def _server(settings: MonitorSettings, monitor: Monitor, pages: Mapping[str, Page], faults: Faults) -> Server:
    web_config = WebConfig(settings.web_config_file) if settings.web_config_file else None

    def ready() -> list[Status]:
        return [Status(*part) for part in monitor.readiness()]

    def health() -> list[Status]:
        said = {name: gave_up() for name, gave_up in faults.items()}
        return [Status(name, why is None, why or "") for name, why in said.items()]

    return Server(settings.listen, pages, health=health if faults else None, ready=ready, web_config=web_config)


def _pages(
    settings: MonitorSettings, monitor: Monitor, compat: Mapping[str, CompatCounts], others: Mapping[str, Facts]
) -> dict[str, Page]:
    others = {"monitor": monitor, **others}
    facts = {
        name: CompatFacts(watch, compat[name], lock=watch.pipeline.lock)
        for name, watch in monitor.watches.items()
        if compat
    }
    labels = settings.static_label
    try:
        pages: dict[str, Page] = {
            "/metrics": Exposition(monitor.watches, others=others, prefix=settings.metric_prefix, static_labels=labels)
        }
        if facts:
            pages[COMPAT_PATH] = compat_exposition(facts, static_labels=labels)
    except ValueError as error:  # one of our metrics has a label of that name
        raise StartError([f"--static-label: {error}"]) from None
    return pages


@contextlib.contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """Let the first SIGTERM or SIGINT set `stop`; a second one does what it did before, so that nobody is stuck."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}

    def handle(number: int, _frame: object) -> None:
        signal.signal(number, before[number])
        stop.set()

    for number in numbers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])
