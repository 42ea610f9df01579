"""Gathers all facts at once, each part with a deadline of its own, and has them judged (wiring, no decision)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..broker import reason
from . import checks_app, checks_operation, checks_queues, gather_broker, gather_workers
from .doors import knock
from .facts import Broker, Facts, Heard, Monitored, Project, Worker
from .listen import listen
from .verdict import Look

if TYPE_CHECKING:
    from ..broker import BrokerConfig

T = TypeVar("T")

LOOKS: dict[str, Look] = {**checks_app.LOOKS, **checks_queues.LOOKS, **checks_operation.LOOKS}

BROKER_SECONDS = 10.0
SPARE = 15.0
"""Seconds beyond its own deadlines after which a part that hangs is left alone."""
LEAVING = 8.0
"""Seconds that listening and asking get, beyond the wait for an answer, to leave the broker when broken off."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait, in seconds: for another worker's answer, and while listening to events."""

    answer: float = 3.0
    listen: float = 11.0


class Errand(Generic[T]):
    """A function under way in a thread that nobody has to wait for for ever."""

    def __init__(self, what: str, function: Callable[[], T]) -> None:
        self._what = what
        self._result: T
        self._error: BaseException | None = None
        self._function = function
        # Not the thread is waited for: a join that Ctrl-C breaks off takes it for ended ever after (CPython 45274).
        self._ended = threading.Event()
        threading.Thread(target=self._run, name=f"celeryscope-doctor-{what}", daemon=True).start()

    def _run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:  # noqa: BLE001 - carried over to whoever asks for the result
            self._error = error
        finally:
            self._ended.set()

    def result(self, timeout: float) -> T:
        """Return what the function returned.

        Raises:
            TimeoutError: not within `timeout` seconds.
            BaseException: what the function raised.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"{self._what} took more than {timeout:.0f} s")
        if self._error is not None:
            raise self._error
        return self._result

    def settle(self, timeout: float) -> None:
        """Wait until it has ended, well or not, for `timeout` seconds at most."""
        self._ended.wait(timeout)


class Errands:
    """The errands of one visit that leave something on the broker unless they come to their end."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._begun: list[Errand[Any]] = []

    def begin(self, what: str, function: Callable[[], T]) -> Errand[T]:
        """Start one."""
        errand = Errand(what, function)
        self._begun.append(errand)
        return errand

    def abandon(self, timeout: float) -> None:
        """Have them put away what they use, and wait for it, `timeout` seconds at most in all."""
        self.stop.set()
        until = time.monotonic() + timeout
        for errand in self._begun:
            errand.settle(max(0.0, until - time.monotonic()))


def gather(
    config: BrokerConfig,
    project: Project | None,
    pages: Iterable[tuple[str, str]] = (),
    *,
    monitored: Monitored,
    grace: float | None = None,
    patience: Patience | None = None,
) -> Facts:
    """Look at everything once; what cannot be learnt carries the reason. Reads only, and never raises for a broker."""
    patience = patience or Patience()
    doors = Errand("pages", lambda: knock(pages))
    broker = _broker(config, project)
    heard, workers, why = Heard(error="the broker cannot be reached"), dict[str, Worker](), ""
    if not broker.error:
        errands = Errands()
        try:
            broker, heard, workers, why = _cluster(config, broker, patience, errands)
        except BaseException:  # Ctrl-C: subscription and reply queue are not to stay behind
            errands.abandon(patience.answer + LEAVING)
            raise
    try:
        opened = doors.result(SPARE)
    except TimeoutError:
        opened = []
    return Facts(
        broker=broker,
        project=project,
        workers=workers,
        workers_error=why,
        heard=heard,
        monitored=monitored,
        doors=opened,
        grace=grace,
    )


def _cluster(
    config: BrokerConfig, broker: Broker, patience: Patience, errands: Errands
) -> tuple[Broker, Heard, dict[str, Worker], str]:
    """Ask the workers while listening to them."""
    listening = errands.begin("listening", lambda: listen(config, patience.listen, stop=errands.stop))
    workers, why = _workers(config, patience.answer, errands)
    broker = _etas(config, broker, sorted(workers), patience.answer, errands)
    try:
        heard = listening.result(patience.listen + SPARE)
    except TimeoutError as error:
        heard = Heard(error=str(error))
    return broker, heard, workers, why


def _broker(config: BrokerConfig, project: Project | None) -> Broker:
    names: set[str] = set()
    if project:
        names = {*project.queues, *project.routed.values(), *(one.queue for one in project.entries if one.queue)}
    try:
        return Errand("the broker", lambda: gather_broker.broker(config, names, BROKER_SECONDS)).result(
            BROKER_SECONDS + SPARE
        )
    except TimeoutError as error:
        return gather_broker.describe(config, error=str(error))


def _workers(config: BrokerConfig, timeout: float, errands: Errands) -> tuple[dict[str, Worker], str]:
    errand = errands.begin("asking the workers", lambda: gather_workers.workers(config, timeout, errands.stop))
    try:
        return errand.result(5 * timeout + SPARE)
    except Exception as error:  # noqa: BLE001 - whatever a transport raises: the report says so
        return {}, f"the workers cannot be asked: {reason(error)}"


def _etas(config: BrokerConfig, broker: Broker, names: Sequence[str], timeout: float, errands: Errands) -> Broker:
    """Add the longest ETA that workers hold, where it matters and where listing them is cheap."""
    if broker.transport not in checks_app.VISIBILITY:
        return broker
    held = broker.redis.held if broker.redis else None
    if held == 0:
        return replace(broker, longest_eta=0.0)
    if not names:
        return replace(broker, eta_unknown="no worker answered")
    if held is None or held > gather_workers.HELD:
        count = "an unknown number of" if held is None else str(held)
        return replace(broker, eta_unknown=f"workers hold {count} messages, too many to have them listed")
    try:
        errand = errands.begin("ETAs", lambda: gather_workers.longest_eta(config, names, timeout, time.time()))
        return replace(broker, longest_eta=errand.result(timeout + SPARE))
    except Exception as error:  # noqa: BLE001 - as above
        return replace(broker, eta_unknown=f"the workers did not list their ETAs: {reason(error)}")
