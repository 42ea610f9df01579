"""Runs that were open before a restart, held against what workers and queues say now: which of them are over.

Pure. What ended while the monitor was down has an outcome that nobody counted: such runs are taken out of the table and
are counted as just that, and not as successes, failures or silent ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, NamedTuple

from .runs import ORPHANED, RECEIVED, STARTED, WAITING, Run

if TYPE_CHECKING:
    from .queues import QueueFacts, QueueSnapshot
    from .runstore import RunStore

SKEW = 60.0
"""Seconds by which producers' clocks may disagree before a message is thought to have left its queue too early."""
AT_ONCE = 5_000
"""Runs judged in one go: other events must not wait long for the lock."""


class Answers(NamedTuple):
    """What was found out once events came in again; `queues` were looked at before the workers were asked.

    Attributes:
        asked_at: unix time by the monitor's clock.
        tasks: for each worker that answered, the ids of the tasks that it executes or holds ready to be executed.
        queues: the newest sample, or an empty one where there is none.
        answered_at: when the workers' time to answer was over, by the same clock.
    """

    asked_at: float
    tasks: Mapping[str, AbstractSet[str]]
    queues: QueueSnapshot
    answered_at: float = 0.0


class Restored:
    """The open runs of a table that was just loaded, until they are judged; belongs under the table's lock."""

    def __init__(self, table: RunStore, now: float) -> None:
        table.restored_at = now
        self._table = table
        self._runs = [run for run in table.open_runs() if run.state != ORPHANED]
        self._undecided: list[Run] = []
        self._judged_by = (0.0, 0.0)

    def __len__(self) -> int:
        return len(self._runs) + len(self._undecided)

    def queues(self) -> set[str]:
        """Return the queues to look into before the runs can be judged; the events may not tell of them any more."""
        return {run.row.queue for run in self._runs}

    def judge(self, answers: Answers) -> None:
        """Judge the next few runs; `len` says how many are left.

        Those that cannot be decided yet are judged again by newer answers: a message that may have been in its queue,
        since the queue moves on and what is taken out of it is heard of; and what a worker had that did not answer.
        """
        by = (answers.asked_at, answers.queues.taken)
        if not self._runs and by != self._judged_by:
            self._runs, self._undecided = self._undecided, []
        self._judged_by = by
        runs, self._runs = self._runs[:AT_ONCE], self._runs[AT_ONCE:]
        if not runs:
            return
        held = frozenset().union(*answers.tasks.values())
        since = self._table.restored_at
        complete = all(host.name in answers.tasks for host in self._table.workers.up() if host.heard_at > since)
        for run in runs:
            # What an event has moved since is as that event says.
            if run.since >= since:
                continue
            if self._is_over(run, answers, held, complete):
                self._table.end_unheard(run, answers.asked_at)
            elif self._may_tell(run, answers, held, complete):
                self._undecided.append(run)

    def _is_over(self, run: Run, answers: Answers, held: AbstractSet[str], complete: bool) -> bool:
        if run.state == STARTED:
            tasks = answers.tasks.get(run.host.name) if run.host is not None else None
            return tasks is not None and run.uuid not in tasks
        if run.state not in (WAITING, RECEIVED) or run.uuid in held or run.eta > answers.asked_at:
            return False
        if not answers.queues.taken:
            return False
        facts = answers.queues.queues.get(run.row.queue)
        if run.state == RECEIVED:
            answered = run.host is not None and run.host.name in answers.tasks
            # A worker that stops puts what it held back into the queue.
            return answered and (facts is None or not _may_hold(facts, run))
        return complete and facts is not None and not _may_hold(facts, run)

    def _may_tell(self, run: Run, answers: Answers, held: AbstractSet[str], complete: bool) -> bool:
        """Whether newer answers may decide about a run that these do not take for over."""
        if run.uuid in held or run.eta > answers.asked_at:
            return False
        if not answers.queues.taken and run.state in (WAITING, RECEIVED):
            return True
        answered = complete if run.host is None else run.host.name in answers.tasks
        facts = answers.queues.queues.get(run.row.queue)
        if run.state == WAITING:
            return facts is not None and (not answered or _may_hold(facts, run))
        if run.state == RECEIVED:
            return not answered or (facts is not None and _may_hold(facts, run))
        return run.state == STARTED and not answered


def _may_hold(facts: QueueFacts, run: Run) -> bool:
    """Whether the run's message may still lie in the queue: it is not empty, and nothing younger is its oldest one."""
    if facts.ready == 0:
        return False
    return facts.oldest_at is None or max(run.available_at, run.eta) >= facts.oldest_at - SKEW
