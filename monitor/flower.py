"""Where things are in Flower: the addresses that every link leads to (pure)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, urlencode

_USERINFO = re.compile(r"^([a-z]+://)[^/?#]*@", re.IGNORECASE)


def without_userinfo(url: str) -> str:
    """Return an address without the user and password in it."""
    return _USERINFO.sub(r"\1", url)


@dataclass(frozen=True)
class FlowerLinks:
    """The pages of the Flower at `url`, which ends in its `url_prefix` where it has one; no address, no Flower.

    A password in the address is left out of every link: links go to chats, and browsers ask for themselves.
    """

    url: str

    @classmethod
    def below(cls, url: str, url_prefix: str) -> FlowerLinks:
        """Return the pages of a Flower that was started with `--url_prefix`."""
        return cls("/".join(part for part in (url.rstrip("/"), url_prefix.strip("/")) if part))

    def __bool__(self) -> bool:
        return bool(self.base)

    @property
    def base(self) -> str:
        """The address without what does not belong into a link."""
        return without_userinfo(self.url).rstrip("/")

    def task(self, uuid: str) -> str:
        """Return the page of one task; it is 404 where Flower has not seen the task, or has evicted it."""
        return f"{self.base}/task/{quote(uuid, safe='')}"

    def worker(self, name: str) -> str:
        """Return the page of one worker, by its full node name."""
        return f"{self.base}/worker/{quote(name, safe='')}"

    def tasks(self, *, name: str = "", state: str = "", worker: str = "") -> str:
        """Return the list of tasks, filtered by registered name, state (as Celery writes it: FAILURE) and worker."""
        given = {key: value for key, value in (("name", name), ("state", state), ("worker", worker)) if value}
        return f"{self.base}/tasks" + (f"?{urlencode(given)}" if given else "")
