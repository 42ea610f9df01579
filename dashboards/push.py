"""Puts boards into a Grafana through its HTTP API: a folder, then each board, overwriting what has its uid (edge)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter
from tenacity.nap import sleep as real_sleep

from ..monitor.masking import masked

TIMEOUT = 20.0
ATTEMPTS = 3
MESSAGE = "celeryscope dashboards push"

_MOVED = "it sends you elsewhere: give the address, with https:// and path, at which Grafana answers itself"
_ADVICE = {
    **dict.fromkeys((301, 302, 307, 308), _MOVED),
    401: "the token is not valid: make one under Administration, Service accounts, and give it by "
    "CELERYSCOPE_GRAFANA_TOKEN_FILE",
    403: "the token may not do this: its service account needs the role Editor (or dashboards:write and folders:write)",
    404: "there is no Grafana API at this address: is a path missing, such as /grafana?",
    412: "Grafana will not overwrite it: another board has this title in the folder, or it comes from provisioning "
    "files and can only be changed there",
}


class PushError(Exception):
    """A board could not be put into Grafana; the text says what to do."""


class _BusyError(Exception):
    """Grafana answered that it cannot just now."""

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__(str(answer.status_code))
        self.answer = answer


class Grafana:
    """Grafana's HTTP API, as far as boards need it.

    `url` is its address, `token` a service account's; `transport` and `sleep` are for tests.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = real_sleep,
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._shown = masked(url)  # an address may hold a password
        self._client = httpx.Client(
            base_url=url + "/", headers=headers, timeout=TIMEOUT, transport=transport, follow_redirects=False
        )
        self._sleep = sleep

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def version(self) -> str:
        """Return Grafana's version.

        Raises:
            PushError: nobody answers there, or not Grafana.
        """
        health = self._call("GET", "api/health", "asking whether Grafana is there")
        return str(health.get("version", "unknown"))

    def folder(self, title: str, *, make: bool) -> str | None:
        """Return the uid of the folder with this title; where there is none, make it if `make`, else return None.

        Raises:
            PushError: Grafana refused, or cannot be reached.
        """
        found = self._call("GET", "api/folders?limit=1000", "listing the folders")
        for folder in found if isinstance(found, list) else []:
            if folder.get("title") == title:
                return str(folder["uid"])
        if not make:
            return None
        return str(self._call("POST", "api/folders", f"making the folder {title!r}", {"title": title})["uid"])

    def existing(self, uid: str) -> dict[str, Any] | None:
        """Return the board that has this uid, or None.

        Raises:
            PushError: Grafana refused, or cannot be reached.
        """
        answer = self._call("GET", f"api/dashboards/uid/{uid}", f"looking for {uid}", missing_is_none=True)
        return None if answer is None else dict(answer["dashboard"])

    def put(self, model: dict[str, Any], folder: str) -> str:
        """Store a board, over what has its uid; return the address where people see it.

        Raises:
            PushError: Grafana refused, or cannot be reached.
        """
        body = {"dashboard": {**model, "id": None}, "folderUid": folder, "message": MESSAGE, "overwrite": True}
        stored = self._call("POST", "api/dashboards/db", f"storing {model['uid']}", body)
        return self._seen(str(stored.get("url", f"/d/{model['uid']}")))

    def _seen(self, path: str) -> str:
        """Return a page's address; what Grafana says has the path it is served under in it, as our address has."""
        parts = urlsplit(self._shown)
        return f"{parts.scheme}://{parts.netloc}{path}"

    def _call(
        self, method: str, path: str, doing: str, body: dict[str, Any] | None = None, *, missing_is_none: bool = False
    ) -> Any:
        answer = self._answer(method, path, doing, body)
        if missing_is_none and answer.status_code == 404:
            return None
        if not answer.is_success:
            raise PushError(f"{doing}: Grafana at {self._shown} answered {answer.status_code}: {_reason(answer)}")
        try:
            return answer.json()
        except json.JSONDecodeError:
            raise PushError(f"{doing}: what answers at {self._shown} is not Grafana (no JSON)") from None

    def _answer(self, method: str, path: str, doing: str, body: dict[str, Any] | None) -> httpx.Response:
        retrying = Retrying(
            retry=retry_if_exception_type((_BusyError, httpx.ConnectError)),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential_jitter(max=5),
            sleep=self._sleep,
            reraise=True,
        )

        def once() -> httpx.Response:
            answer = self._client.request(method, path, json=body)
            if answer.status_code in {429, 502, 503, 504}:
                raise _BusyError(answer)
            return answer

        try:
            return retrying(once)
        except _BusyError as error:
            return error.answer
        except httpx.HTTPError as error:
            raise PushError(
                f"{doing}: cannot reach Grafana at {self._shown}: {error or type(error).__name__}"
            ) from None


@contextmanager
def connected(url: str, token: str, **options: Any) -> Iterator[Grafana]:
    """Yield a Grafana and close it in the end."""
    grafana = Grafana(url, token, **options)
    try:
        yield grafana
    finally:
        grafana.close()


def push(
    grafana: Grafana,
    models: Sequence[dict[str, Any]],
    folder: str,
    *,
    dry_run: bool,
    tell: Callable[[str], None],
) -> None:
    """Put all boards into the folder, telling of each; with `dry_run` only tell what would become of it.

    Raises:
        PushError: Grafana refused, or cannot be reached; what was told of before is stored.
    """
    tell(f"Grafana {grafana.version()}")
    uid = grafana.folder(folder, make=not dry_run)
    if uid is None:
        tell(f"folder {folder}: would be made")
    for number, model in enumerate(models, 1):
        progress = f"[{number}/{len(models)}] {model['uid']}"
        if dry_run:
            tell(f"{progress}: {_what_would_change(grafana.existing(model['uid']), model)}")
        else:
            assert uid is not None
            tell(f"{progress}: {grafana.put(model, uid)}")


def _what_would_change(stored: dict[str, Any] | None, model: dict[str, Any]) -> str:
    if stored is None:
        return "would be new"
    own = {key: value for key, value in stored.items() if key not in {"id", "version"}}
    return "is up to date" if own == model else "would be overwritten"


def _reason(answer: httpx.Response) -> str:
    advice = _ADVICE.get(answer.status_code)
    try:
        said = str(answer.json().get("message", ""))[:300]
    except (json.JSONDecodeError, AttributeError):
        said = ""
    return "; ".join(filter(None, (said, advice))) or answer.reason_phrase
