"""Flower's REST API over HTTP: asks, reads the answers into types, and turns failures into words."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
from msgspec import Struct, field

from .answers import answer_of
from .flower import FlowerLinks
from .flower_actions import Action, FlowerError, credentials_refused, refusal

TIMEOUT = 15.0
"""Seconds. Flower itself waits a second or two for the workers' replies."""
ENDED = frozenset({"SUCCESS", "FAILURE", "REVOKED"})


class Worker(Struct):
    """A worker as Flower knows it. `answered`: it replied to the inspection that went out just now."""

    name: str
    answered: bool
    queues: list[str] = field(default_factory=list)
    tasks: dict[str, str] = field(default_factory=dict)
    """Registered names, and what the worker says of each: `exchange`, `routing_key`, `rate_limit`."""
    slots: int | None = None
    """How many tasks it runs at once: what its pool has just now, where the pool tells (prefork)."""
    autoscale: dict[str, int] | None = None
    active: int | None = None


class Task(Struct):
    """A task as Flower has seen it: its state is Celery's name for it."""

    uuid: str
    name: str | None = None
    state: str | None = None
    worker: str | None = None

    @property
    def ended(self) -> bool:
        """Whether it cannot be stopped any more."""
        return self.state in ENDED


class FlowerClient:
    """Speaks with one Flower. Credentials go into a header alone: neither `repr` nor any message holds them.

    `url` ends in Flower's `url_prefix` where it has one. Redirects are not followed: they lead to a login for people.
    """

    def __init__(
        self,
        url: str,
        *,
        user: str = "",
        password: str = "",
        timeout: float = TIMEOUT,
        ca_file: Path | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.links = FlowerLinks(url)
        self._with_credentials = bool(user)
        self._seconds = 4 * timeout
        try:
            verify = ssl.create_default_context(cafile=str(ca_file)) if ca_file else True
            self._http = httpx.Client(
                base_url=self.links.base + "/",
                auth=httpx.BasicAuth(user, password) if user else None,
                timeout=timeout,
                verify=verify,
                transport=transport,
            )
        except (httpx.InvalidURL, OSError) as error:
            raise FlowerError(f"cannot use {self.links.base}: {error}", "unreachable") from None

    def __repr__(self) -> str:
        return f"FlowerClient({self.links.base!r})"

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def perform(self, action: Action) -> str:
        """Do it, and return what Flower says to it.

        Raises:
            FlowerError: it was not done, or nobody can say whether it was.
        """
        answer = self._send("POST", action.path, action.effect, data=dict(action.params))
        if answer.status_code != httpx.codes.OK:
            raise refusal(action, answer.status_code, _text(answer))
        return str(_json(answer).get("message", ""))

    def online(self) -> dict[str, bool]:
        """Return all workers whose heartbeats Flower has heard, and whether each still sends them.

        Raises:
            FlowerError: nobody can say.
        """
        return {str(name): alive is True for name, alive in self._get("api/workers", status="true").items()}

    def worker(self, name: str) -> Worker | None:
        """Ask one worker about itself, through Flower; None where Flower has never heard of it.

        Raises:
            FlowerError: nobody can say.
        """
        return self._inspected(name).get(name)

    def workers(self) -> dict[str, Worker]:
        """Ask all workers about themselves, which takes a second or more.

        Raises:
            FlowerError: nobody can say.
        """
        return self._inspected("")

    def task(self, uuid: str) -> Task | None:
        """Return what Flower has seen of a task; None where it has not, or no longer.

        Raises:
            FlowerError: nobody can say.
        """
        answer = self._send("GET", f"api/task/info/{quote(uuid, safe='')}", "ask")
        if answer.status_code == httpx.codes.NOT_FOUND and _text(answer).startswith("Unknown task"):
            return None
        return _task(uuid, self._checked(answer))

    def tasks(self, *, name: str = "", state: str = "", worker: str = "", limit: int = 100) -> list[Task]:
        """Return the tasks that Flower has seen, the latest first.

        Raises:
            FlowerError: nobody can say.
        """
        given = {"taskname": name, "state": state, "workername": worker, "limit": str(limit), "sort_by": "-received"}
        found = self._get("api/tasks", **{key: value for key, value in given.items() if value})
        return [_task(uuid, info) for uuid, info in found.items()]

    def _inspected(self, name: str) -> dict[str, Worker]:
        # Flower goes on telling what a worker once said: it answered if it says so later than before.
        before = {worker: _said_at(info) for worker, info in self._info(name, refresh="false").items()}
        return {
            worker: _worker(worker, info, answered=_said_at(info) > before.get(worker, 0))
            for worker, info in self._info(name, refresh="true").items()
        }

    def _info(self, name: str, **params: str) -> dict[str, Mapping[str, Any]]:
        only = {"workername": name} if name else {}
        answer = self._send("GET", "api/workers", "ask", params={**params, **only})
        if name and answer.status_code == httpx.codes.NOT_FOUND and _text(answer).startswith("Unknown worker"):
            return {}
        return {name: info for name, info in self._checked(answer).items() if isinstance(info, Mapping)}

    def _get(self, path: str, **params: str) -> dict[str, Any]:
        return self._checked(self._send("GET", path, "ask", params=params))

    def _checked(self, answer: httpx.Response) -> dict[str, Any]:
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise FlowerError(f"there is no Flower API at {self.links.base}: check the address and its url_prefix")
        if answer.status_code != httpx.codes.OK:
            raise FlowerError(f"Flower answers {answer.status_code}: {_text(answer) or answer.reason_phrase}")
        return _json(answer)

    def _send(self, method: str, path: str, doing: str, **content: Any) -> httpx.Response:
        try:
            answer = answer_of(self._http, method, path, seconds=self._seconds, **content)
        except httpx.ConnectError as error:
            raise FlowerError(f"there is no Flower at {self.links.base}: {error}", "unreachable") from None
        except httpx.TimeoutException:
            maybe = f"; whether it did {doing} is unknown" if method == "POST" else ""
            raise FlowerError(f"Flower at {self.links.base} does not answer in time{maybe}", "unreachable") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            text = str(error) or type(error).__name__
            raise FlowerError(f"cannot speak with Flower at {self.links.base}: {text}", "unreachable") from None
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise credentials_refused(_text(answer), given=self._with_credentials)
        if answer.is_redirect:
            raise FlowerError(
                f"{self.links.base} redirects to a login for people: control needs basic authentication and https "
                "addresses as they are",
                "credentials",
            )
        return answer


def _said_at(info: Mapping[str, Any]) -> float:
    at = info.get("timestamp")
    return float(at) if isinstance(at, (int, float)) else 0.0


def _worker(name: str, info: Mapping[str, Any], *, answered: bool) -> Worker:
    stats = _table(info.get("stats"))
    pool = _table(stats.get("pool"))
    scaler = _table(stats.get("autoscaler"))
    registered = (str(line).partition(" [") for line in _list(info.get("registered")))
    processes = pool.get("processes")
    active = info.get("active")
    worker: Worker = _converted(
        {
            "name": name,
            "answered": answered,
            "queues": [_table(queue).get("name") for queue in _list(info.get("active_queues"))],
            "tasks": {task: rest.rstrip("]") for task, _, rest in registered},
            # The pool's own limit stays what it was at the start, however it grows or shrinks.
            "slots": len(processes) if isinstance(processes, list) else pool.get("max-concurrency"),
            "autoscale": {key: scaler.get(key) for key in ("min", "max")} if scaler else None,
            "active": len(active) if isinstance(active, list) else None,
        },
        Worker,
    )
    return worker


def _table(said: object) -> Mapping[str, Any]:
    return said if isinstance(said, Mapping) else {}


def _list(said: object) -> list[Any]:
    return said if isinstance(said, list) else []


def _task(uuid: str, info: object) -> Task:
    task: Task = _converted({**_table(info), "uuid": uuid}, Task)
    return task


def _text(answer: httpx.Response) -> str:
    """Return what the answer says in plain words; a page for people says nothing."""
    kind = answer.headers.get("Content-Type", "")
    text = answer.text.strip()
    return "" if text.startswith("<!") or "<html" in text[:200].lower() or "json" in kind else text[:500]


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        content = msgspec.json.decode(answer.content)
    except (ValueError, RecursionError):  # of msgspec, and of text that is no UTF-8
        content = None
    if not isinstance(content, dict):
        raise FlowerError("what answers at this address is not Flower's API: check the address and its url_prefix")
    return content


def _converted(content: object, kind: type[Any]) -> Any:
    try:
        return msgspec.convert(content, kind, strict=False)
    except msgspec.ValidationError as error:
        raise FlowerError(f"Flower's answer is not understood: {error}") from None
