"""The monitor's half of `celeryscope monitor`: one watch per broker, their state on disk, started and stopped."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from .apps import broker_configs
from .broker import BrokerConfig, BrokerError, reason
from .catalog import METRICS, configured
from .facts import Family
from .garbage import held_back, sweep
from .sources import check
from .statecheck import check as check_state
from .statefile import StateError, StateFile, encode
from .watch import BrokerWatch

if TYPE_CHECKING:
    from .runstore import Observer
    from .settings import MonitorSettings

logger = logging.getLogger("celeryscope.monitor.service")

CHECK_SECONDS = 6.0
SAVE_SECONDS = 6.0
"""Most seconds that the last save may take, of the ten that an orchestrator gives; half a second is what it takes."""
STATE = "state"
"""The name of the state file as a collector."""


class StartError(Exception):
    """The monitor cannot start; each of `problems` is one line that names the setting."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class Readiness(NamedTuple):
    """Whether one broker's events come in, and why not."""

    name: str
    ok: bool
    detail: str = ""


class Monitor:
    """All brokers of one process; `watches` are their facts by name. Use `restore`, `probe`, `start`, then `stop`.

    Args:
        settings: what to watch and how.
        observer: makes, for a broker's name, somebody who wants to hear of each task event (the celery-exporter names).
        clock: unix time.
        probe: tells by an exception whether a broker can be used.
    """

    def __init__(
        self,
        settings: MonitorSettings,
        *,
        observer: Callable[[str], Observer] | None = None,
        clock: Callable[[], float] = time.time,
        probe: Callable[[BrokerConfig], None] = check,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._probe = probe
        catalog = configured(settings.buckets)
        management = {target.name: target.url.get_secret_value() for target in settings.rabbitmq_management_url}
        try:
            self.configs: list[BrokerConfig] = broker_configs(settings)
            self.watches = {
                config.name: BrokerWatch(
                    settings,
                    config,
                    catalog,
                    observer(config.name) if observer else None,
                    management_url=management.get(config.name),
                    clock=clock,
                )
                for config in self.configs
            }
        except BrokerError as error:
            problem = str(error)
            raise StartError([problem if problem.startswith("--") else f"--broker: {problem}"]) from None
        self._file = StateFile(settings.state_dir, clock) if settings.state_dir else None
        self._saved = (False, 0.0, 0.0)
        self._saving = threading.Lock()
        self._stopping = threading.Event()
        self._saver = threading.Thread(target=self._save_now_and_then, name="celeryscope-state", daemon=True)
        self._last = threading.Thread(target=self._save_last, name="celeryscope-last-save", daemon=True)

    def restore(self) -> None:
        """Take the state directory and what it holds, before anything else.

        Raises:
            StartError: the directory cannot be used.
        """
        if self._file is None:
            return
        try:
            state = self._file.open()
        except StateError as error:
            raise StartError([f"--state-dir: {error}"]) from None
        self._load(self._file, state)

    def _load(self, file: StateFile, state: dict[str, Any]) -> None:
        now = self._clock()
        senseless = []
        for name in self.watches.keys() & state.keys():
            try:
                check_state(state[name])
                self.watches[name].load(state[name], now, crashed=file.crashed)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it, an empty start beats none
                senseless.append(f"broker {name!r}: {type(error).__name__}: {error}")
        if senseless:
            sweep()  # half of it was taken in
            file.set_aside(f"makes no sense for {'; '.join(senseless)}")

    def probe(self, stop: threading.Event) -> None:
        """See whether the brokers answer; ends early on `stop`.

        Raises:
            StartError: no broker can be used. One of several that does not answer is a warning, since the others must
                not suffer; it is tried again until it does.
        """
        failures = self._probe_all(stop)
        if failures and len(failures) == len(self.configs):
            raise StartError(f"--broker: {problem}" for problem in failures.values())
        for name, problem in failures.items():
            logger.warning("--broker: %s; trying again until it answers", problem, extra={"broker": name})

    def start(self) -> None:
        """Start to take in events and to sample; does not wait for the brokers."""
        if self._file is not None:
            self._saved = (self._file.begin(), 0.0, 0.0)
            self._saver.start()
        for watch in self.watches.values():
            watch.start()

    def stop(self) -> None:
        """Stop everything within a second or so, and save the state."""
        self._stopping.set()
        with ThreadPoolExecutor(max_workers=min(len(self.watches), 16), thread_name_prefix="celeryscope-stop") as pool:
            list(pool.map(BrokerWatch.stop, self.watches.values()))
        if self._file is not None:
            if self._last.ident is None:
                self._last.start()
            self._last.join(SAVE_SECONDS)
            if self._last.is_alive():
                logger.warning("--state-dir: the disk does not answer; ending without the last save, as after a crash")
        self.close()

    def close(self) -> None:
        """Let go of the state directory; a save that still hangs keeps it until the process has ended."""
        if self._file is not None and not self._last.is_alive():
            self._file.close()

    def save(self, *, clean: bool) -> bool:
        """Save the state now; `clean` says that nothing comes after it."""
        assert self._file is not None
        with self._saving:
            began = time.perf_counter()
            saved = self._file.write(self._encoded(clean=clean), last=clean)
            at = self._clock() if saved else self._saved[2]
            self._saved = (saved, time.perf_counter() - began, at)
        return saved

    def _encoded(self, *, clean: bool) -> bytes:
        with held_back():  # not while the disk is busy: it may hang
            return encode({name: watch.pipeline.dump(clean=clean) for name, watch in self.watches.items()})

    def readiness(self) -> list[Readiness]:
        """Return for each broker whether our own echo came back lately; dead workers make nothing unready."""
        return [Readiness(name, *watch.readiness()) for name, watch in self.watches.items()]

    def families(self) -> Iterable[Family]:
        """Return the facts about the state file."""
        if self._file is None:
            return
        success, seconds, at = self._saved
        yield Family(METRICS["celeryscope_collector_success"], [((STATE,), float(success))])
        if at:
            yield Family(METRICS["celeryscope_collector_duration_seconds"], [((STATE,), seconds)])
            yield Family(METRICS["celeryscope_sample_timestamp_seconds"], [((STATE,), at)])

    def _save_now_and_then(self) -> None:
        while not self._stopping.wait(self._settings.state_save_interval):
            self.save(clean=False)

    def _save_last(self) -> None:
        if self._saver.is_alive():
            self._saver.join()  # what it is saving must not come after the last one
        self.save(clean=True)

    def _probe_all(self, stop: threading.Event) -> dict[str, str]:
        """Return the problem of each broker that cannot be used; the probes run side by side, until `stop`."""
        answers: queue.SimpleQueue[tuple[str, str | None]] = queue.SimpleQueue()

        def attempt(config: BrokerConfig) -> None:
            try:
                self._probe(config)
            except BrokerError as error:
                answers.put((config.name, str(error)))
            except Exception as error:  # noqa: BLE001 - an answer must come in any case
                answers.put((config.name, f"{config.label}: {reason(error)}"))
            else:
                answers.put((config.name, None))

        for config in self.configs:
            threading.Thread(target=attempt, args=(config,), name="celeryscope-probe", daemon=True).start()
        failures: dict[str, str] = {}
        waiting, deadline = len(self.configs), time.monotonic() + CHECK_SECONDS
        while waiting and not stop.is_set() and time.monotonic() < deadline:
            try:
                name, problem = answers.get(timeout=0.1)
            except queue.Empty:
                continue
            waiting -= 1
            if problem:
                failures[name] = problem
        return failures
