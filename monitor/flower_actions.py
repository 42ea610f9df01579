"""What can be asked of Flower: each action as the request it takes, and what Flower's refusals mean (pure)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

Kind = Literal["unreachable", "credentials", "refused"]

_RATE = re.compile(r"\d+(\.\d+)?(/[smh])?")
_QUOTED = re.compile(r"(?:ValueError\()?(?P<mark>['\"])(?P<words>.*)(?P=mark)\)?")
_ESCAPED = re.compile(r"[&<>\"']")


class FlowerError(Exception):
    """What Flower did not do, and why, in a line for people.

    `kind` is `unreachable` (nobody answers there, or not in time), `credentials`, or `refused`.
    """

    def __init__(self, message: str, kind: Kind = "refused") -> None:
        super().__init__(message)
        self.kind: Kind = kind


@dataclass(frozen=True)
class Action:
    """One request: a POST of `params` to `path` below Flower's address.

    `effect` words it for people, and `caveat` what they may not expect. A `destructive` one ends,
    throws away or holds up work.
    `worker`, `task` and `uuid` say what it is about, as far as it is about one.
    """

    name: str
    path: str
    effect: str
    params: tuple[tuple[str, str], ...] = ()
    destructive: bool = False
    worker: str = ""
    task: str = ""
    uuid: str = ""
    caveat: str = ""

    @property
    def target(self) -> str:
        """What it is about, in a word or two."""
        return " on ".join(part for part in (self.uuid or self.task, self.worker) if part)


def revoke(uuid: str) -> Action:
    """Return: workers shall skip this task when it comes to them."""
    return Action("revoke", _path("task/revoke", uuid), f"revoke task {uuid}", destructive=True, uuid=uuid)


def terminate(uuid: str, signal: str = "SIGTERM") -> Action:
    """Return: revoke this task, and send the signal to the process that runs it."""
    params = (("terminate", "true"), ("signal", signal))
    effect = f"terminate task {uuid} with {signal}"
    return Action("terminate", _path("task/revoke", uuid), effect, params, destructive=True, uuid=uuid)


def abort(uuid: str) -> Action:
    """Return: tell an AbortableTask to end by itself, through the result backend."""
    return Action("abort", _path("task/abort", uuid), f"abort task {uuid}", destructive=True, uuid=uuid)


def rate_limit(task: str, rate: str, worker: str) -> Action:
    """Return: this worker starts at most `rate` runs of the task, such as 10/m; 0 lifts the limit.

    Raises:
        ValueError: that is no rate.
    """
    if not _RATE.fullmatch(rate):
        raise ValueError(f"a rate is a number a second, or such as 10/s, 200/m, 5/h, and 0 for none; not {rate!r}")
    params = (("workername", worker), ("ratelimit", rate))
    effect = f"limit {task} to {rate} on {worker}" if rate != "0" else f"lift the rate limit of {task} on {worker}"
    return Action("rate-limit", _path("task/rate-limit", task), effect, params, worker=worker, task=task)


def time_limit(task: str, worker: str, *, soft: float | None = None, hard: float | None = None) -> Action:
    """Return: on this worker runs of the task end after so many seconds. A limit that is not given is lifted.

    Raises:
        ValueError: limits that make no sense.
    """
    if (soft is not None and soft <= 0) or (hard is not None and hard <= 0):
        raise ValueError("a time limit is a number of seconds above 0")
    if soft is not None and hard is not None and soft >= hard:
        raise ValueError(f"the soft limit ({soft:g} s) must come before the hard one ({hard:g} s)")
    given = {"soft": soft, "hard": hard}
    params = (("workername", worker), *((key, f"{value:g}") for key, value in given.items() if value is not None))
    shown = ", ".join(f"{key} {'none' if value is None else f'{value:g} s'}" for key, value in given.items())
    effect = f"set the time limits of {task} on {worker}: {shown}"
    # celery/worker/request.py, create_request_cls: a task's limits are read once, when its strategy is made.
    caveat = "Celery goes by it once the worker's pool is restarted (celeryscope control pool-restart) or it reconnects"
    path = _path("task/timeout", task)
    kills = hard is not None
    return Action("time-limit", path, effect, params, destructive=kills, worker=worker, task=task, caveat=caveat)


def pool_grow(worker: str, count: int = 1) -> Action:
    """Return: the worker gets so many more slots."""
    effect = f"grow the pool of {worker} by {count}"
    return Action("pool-grow", _path("worker/pool/grow", worker), effect, (("n", str(count)),), worker=worker)


def pool_shrink(worker: str, count: int = 1) -> Action:
    """Return: the worker loses so many slots."""
    effect = f"shrink the pool of {worker} by {count}"
    params = (("n", str(count)),)
    path = _path("worker/pool/shrink", worker)
    return Action("pool-shrink", path, effect, params, destructive=True, worker=worker)


def pool_restart(worker: str) -> Action:
    """Return: all processes of the worker's pool are replaced; what they run is lost."""
    effect = f"restart the pool of {worker}"
    return Action("pool-restart", _path("worker/pool/restart", worker), effect, destructive=True, worker=worker)


def autoscale(worker: str, low: int, high: int) -> Action:
    """Return: the worker's pool has between `low` and `high` slots, as there is work.

    Raises:
        ValueError: the range makes no sense.
    """
    if not 0 <= low <= high or high < 1:
        raise ValueError(f"the least number of slots ({low}) must not be above the greatest ({high})")
    params = (("min", str(low)), ("max", str(high)))
    effect = f"scale the pool of {worker} between {low} and {high}"
    return Action("autoscale", _path("worker/pool/autoscale", worker), effect, params, worker=worker)


def add_consumer(worker: str, queue: str) -> Action:
    """Return: the worker takes messages from this queue as well.

    Raises:
        ValueError: Flower cannot take the queue's name.
    """
    effect = f"let {worker} consume from {queue}"
    path, params = _path("worker/queue/add-consumer", worker), (("queue", _plain(queue)),)
    return Action("add-consumer", path, effect, params, worker=worker)


def cancel_consumer(worker: str, queue: str) -> Action:
    """Return: the worker takes no more messages from this queue.

    Raises:
        ValueError: Flower cannot take the queue's name.
    """
    effect = f"stop {worker} from consuming from {queue}"
    path, params = _path("worker/queue/cancel-consumer", worker), (("queue", _plain(queue)),)
    return Action("cancel-consumer", path, effect, params, destructive=True, worker=worker)


def shutdown(worker: str) -> Action:
    """Return: the worker ends what it runs, and then itself."""
    effect = f"shut down {worker}"
    return Action("shutdown", _path("worker/shutdown", worker), effect, destructive=True, worker=worker)


def refusal(action: Action, status: int, said: str) -> FlowerError:
    """Return what an answer other than 200 to an action means, with what would have to be otherwise."""
    said = " ".join(said.split())[:300]
    if status == 401:
        return credentials_refused(said)
    if status == 404 and said.startswith("Unknown task"):
        return FlowerError(
            f"Flower does not know the task {action.task!r}: rate and time limits need Flower started with -A and the "
            "app that registers it"
        )
    if status == 404 and not said.startswith("Unknown"):
        return FlowerError(f"there is no Flower API at this address (404 for /{action.path}): check its url_prefix")
    if status == 503 and action.name == "abort" and not said.startswith("Broker"):
        return FlowerError("Flower has no result backend to abort through: start it with -A and an app that has one")
    # Flower's own words for what was asked are ours already; a worker's error comes as its repr.
    said = re.sub(r"^Failed to .*?: ", "", said)
    if quoted := _QUOTED.fullmatch(said):
        said = quoted["words"]
    said = said.rstrip(".")
    why = said or {403: "it gives no reason", 500: "an error of its own, see its log"}.get(status, f"status {status}")
    hint = next((hint for sign, hint in _HINTS if sign in why), "")
    return FlowerError(f"Flower refuses to {action.effect}: {why}{hint}")


_HINTS = (
    ("Read only mode", "; it was started with --read_only"),
    ("restarts not enabled", "; the worker needs worker_pool_restarts = True"),
    ("Autoscale not enabled", "; the worker needs to be started with --autoscale, or use pool-grow and pool-shrink"),
    ("not supported with autoscale", "; use: celeryscope control autoscale"),
    ("All processes busy", "; shrink it when some are idle"),
    ("Unknown reason", "; the worker did not answer within a second: whether it did it is unknown"),
)


def credentials_refused(said: str, *, given: bool = True) -> FlowerError:
    """Return what a 401 means; Flower answers it, too, where it has no authentication at all."""
    if "UNAUTHENTICATED_API" in said:
        text = (
            "Flower runs without authentication, and then its API is closed: give it credentials (FLOWER_BASIC_AUTH, "
            "or `celeryscope flower`)"
        )
    elif given:
        text = "Flower does not accept these credentials: check CELERYSCOPE_FLOWER_AUTH"
    else:
        text = "Flower wants credentials: set CELERYSCOPE_FLOWER_AUTH=USER:PASSWORD (or CELERYSCOPE_FLOWER_AUTH_FILE)"
    return FlowerError(text, "credentials")


def _path(where: str, name: str) -> str:
    return f"api/{where}/{quote(name, safe='')}"


def _plain(name: str) -> str:
    # Flower escapes what it is given as if for HTML: another queue would be meant.
    if _ESCAPED.search(name):
        raise ValueError(f"Flower cannot take & < > or quotes in a queue's name, such as in {name!r}")
    return name
