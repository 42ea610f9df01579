"""One broker being watched: its pipeline, the source that feeds it, the sampler of its queues, and what those say."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .broker import reason
from .facts import Buckets, Family, Labels
from .hearsay import Hearsay
from .inspect import tasks_held
from .labels import DEFAULT_CAPS, OTHER, UNKNOWN, Caps
from .pipeline import Pipeline
from .queues import QueueSnapshot
from .queues_sampler import QueueSamplerThread, open_sampler
from .restored import Answers
from .schedules import Ledger
from .sources import Source

if TYPE_CHECKING:
    from .broker import BrokerConfig
    from .catalog import Metric
    from .events import Event
    from .runstore import Observer
    from .settings import MonitorSettings

logger = logging.getLogger(__name__)

TELL_EVERY = 2.0
SAMPLE_PATIENCE = 15.0
"""Seconds that the question after a restart waits for a sample of the queues."""
ASK_AGAIN = (10.0, 30.0, 60.0, 120.0)
"""Seconds after which workers that did not answer after a restart are asked once more, and then again."""
JUDGED_FOR = 900.0
"""Seconds after which what could not be decided is left to events, heartbeats and the time after which tasks expire."""
LATE = 5.0
"""Seconds after the workers' answers in which the events of what ended just before will have come."""

Sample = tuple[Labels, "float | Buckets"]


class BrokerWatch:
    """Facts of one broker (it can be scraped as it is), from `start` to `stop`."""

    def __init__(
        self,
        settings: MonitorSettings,
        config: BrokerConfig,
        catalog: Mapping[str, Metric],
        observer: Observer | None = None,
        *,
        management_url: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self._settings = settings
        self._catalog = catalog
        self._observer = observer
        self._clock = clock
        self._told = 0.0
        self._hearsay = Hearsay()
        self._answers: Answers | None = None
        self._asked_since = 0.0
        self._queues = QueueSnapshot()
        self._coming: QueueSnapshot | None = None
        self._asking = threading.Thread(target=self._ask, name="celeryscope-ask", daemon=True)
        self._stopping = threading.Event()
        self.sampler = open_sampler(
            config,
            queues=settings.queue,
            limit=settings.cap.get("queue", DEFAULT_CAPS["queue"]),
            management_url=management_url,
            sent_times=self._sent_at,
        )
        self._sampling = QueueSamplerThread(self.sampler, settings.sample_interval, clock=clock)
        self.pipeline = self._new_pipeline()
        self.source = Source(config, self, clock=clock, enable_events=settings.enable_events)

    def _new_pipeline(self) -> Pipeline:
        caps = Caps(self._settings.cap)
        pipeline = Pipeline(
            self._catalog,
            caps,
            most=self._settings.max_live_tasks,
            worker_timeout=self._settings.worker_timeout,
            forget_worker_after=self._settings.forget_worker_after,
            ledger=Ledger(self._catalog, caps),
            observer=self._observer,
            clock=self._clock,
        )
        pipeline.watch_queues(lambda: (self.sampler.topology, self.sampler.snapshot))
        return pipeline

    def _sent_at(self, uuid: str) -> float | None:
        run = self.pipeline.tasks.live.get(uuid)
        return (run.available_at or None) if run is not None else None

    def load(self, state: Mapping[str, Any], now: float, *, crashed: bool = False) -> None:
        """Take back what the pipeline dumped, before `start`; see `Pipeline.load`.

        Raises:
            Exception: the state makes no sense; this watch is then as new.
        """
        try:
            self.pipeline.load(dict(state), now, crashed=crashed)
        except Exception:
            self.pipeline = self._new_pipeline()
            raise

    def start(self) -> None:
        """Start the threads; does not wait for the broker."""
        self.source.start()
        self._sampling.start()

    def stop(self) -> None:
        """Stop the threads within about a second; one that waits for a broker ends by itself."""
        self._stopping.set()
        self._sampling.stop(timeout=0)  # both are told before either is waited for
        self.source.stop(timeout=0.7)
        self._sampling.stop(timeout=0.1)

    # --- the sink of the source -------------------------------------------------------------------------------------

    def feed(self, events: list[Event], now: float) -> None:
        """Pass events on."""
        self.pipeline.feed(events, now)

    def connection(self, up: bool, now: float) -> None:
        """Pass on that events come, or stop coming; the first time after a restart, workers are asked what they run."""
        self.pipeline.connection(up, now)
        if up and self.pipeline.restored and self._asking.ident is None:
            self._asking.start()

    def tick(self, now: float) -> None:
        """Let time pass, and tell the pipeline of the lag: with much of it events get lost on the way."""
        lag = self.source.lag
        if lag is not None:
            self.pipeline.lag(lag, now)
        self.pipeline.tick(now)
        if now - self._told >= TELL_EVERY:
            self._told = now
            self._tell_sampler()
        if self._asked_since and self.pipeline.restored is not None:
            self._judge(now)

    def _judge(self, now: float) -> None:
        """Judge what was open before the restart, by the newest answers and sample whose events have all come."""
        snapshot, answers = self.sampler.snapshot, self._answers
        if self._coming is None and snapshot.taken > max(self._asked_since, self._queues.taken):
            self._coming = snapshot  # by the time its events have come, the sampler has a newer one
        if self._coming is not None and now - self._coming.taken >= LATE:
            self._queues, self._coming = self._coming, None
        last = now - self._asked_since > JUDGED_FOR
        if answers is not None and now - answers.answered_at >= LATE:
            newest = max(self._queues, answers.queues, key=lambda sample: sample.taken)
            self.pipeline.judge_restored(answers._replace(queues=newest), last=last)
        elif last:
            self.pipeline.judge_restored(Answers(now, {}, QueueSnapshot()), last=True)

    def _ask(self) -> None:
        """Find out which of the tasks from before the restart are still there: in a queue or in a worker."""
        with self.pipeline.lock:
            queues = self.pipeline.restored.queues() if self.pipeline.restored else set()
        self.sampler.know(queues - {UNKNOWN, OTHER})
        self._asked_since, deadline = self._clock(), time.monotonic() + SAMPLE_PATIENCE
        while self.sampler.snapshot.taken <= self._asked_since and time.monotonic() < deadline:
            if self._stopping.wait(0.2):
                return
        for number, pause in enumerate((*ASK_AGAIN, 0.0)):
            self._ask_workers(logging.DEBUG if number else logging.WARNING)
            if self._stopping.wait(pause):
                return
            with self.pipeline.lock:
                if not self.pipeline.restored:
                    return

    def _ask_workers(self, level: int) -> None:
        snapshot, asked_at = self.sampler.snapshot, self._clock()
        try:
            tasks = tasks_held(self.config)
        except Exception as error:  # noqa: BLE001 - whatever a transport raises: heartbeats will tell, later
            logger.log(level, "workers cannot be asked for the tasks from before the restart: %s", reason(error))
            return
        queues = snapshot if snapshot.taken > self._asked_since else QueueSnapshot()
        self._answers = Answers(asked_at, tasks, queues, self._clock())

    def _tell_sampler(self) -> None:
        """Let the sampler know of the queues and workers that the events told of."""
        with self.pipeline.lock:
            news = self._hearsay.look(self.pipeline.tasks)
        self.sampler.know(news.queues)
        self.sampler.know_workers(news.came, again=news.again)
        self.sampler.forget_workers(news.went)

    # --- facts ------------------------------------------------------------------------------------------------------

    def readiness(self) -> tuple[bool, str]:
        """Return whether our own echo came back lately, and if not why."""
        if self.source.connected:
            return True, ""
        if not self.source.subscribed:
            return False, "no subscription"
        return False, self.source.publish_failure or "our own echo has not come back"

    def families(self) -> Iterable[Family]:
        """Return all families of this broker."""
        yield from self.sampler.families(self._clock())
        malformed: Counter[str] = Counter(self.source.decoder.malformed)
        for family in self.pipeline.families():
            if family.metric.name == "celeryscope_events_malformed_total":
                malformed.update({labels[0]: value for labels, value in family.samples})
            elif family.metric.name == "celeryscope_label_overflow_total":
                yield Family(family.metric, [*map(self._with_sampler, family.samples)])
            else:
                yield family
        yield self._family("celeryscope_events_malformed_total", [((why,), n) for why, n in malformed.items()])
        yield self._family("celeryscope_connected", [((), float(self.source.connected))])
        yield self._family("celeryscope_reconnects_total", [((), self.source.reconnects)])
        lag = self.source.lag
        if lag is not None:
            yield self._family("celeryscope_event_lag_seconds", [((), lag)])

    def _with_sampler(self, sample: Sample) -> Sample:
        """Add what the sampler turned away: queues that no event told of."""
        labels, value = sample
        return (labels, value + self.sampler.overflow) if labels == ("queue",) else sample  # type: ignore[operator]

    def _family(self, name: str, samples: list[tuple[tuple[str, ...], float]]) -> Family:
        return Family(self._catalog[name], samples)
