"""What a message says, before anybody's markup: the facts of its incidents and the links beside them (pure)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote, urlencode, urlsplit

import msgspec
from msgspec import Struct, field

from ..monitor.flower import FlowerLinks
from .batches import Sample
from .failure import OTHER
from .incidents import Incident
from .policy import Plan, Severity

AROUND = 900.0
"""Seconds shown on the board before the first and after the last failure."""


class Link(Struct):
    """A button: what it reads and where it leads."""

    text: str
    url: str


class Told(Struct):
    """One incident as it is told. Times are unix times."""

    id: str
    task: str
    exception: str
    state: str
    severity: Severity
    count: int
    first: float
    last: float
    sample: Sample
    environment: str = ""
    reopens: int = 0
    resolved_at: float | None = None
    muted_until: float | None = None
    links: list[Link] = field(default_factory=list)


class View(Struct):
    """One message: `kind` as in `mailbox`; `text` is what a notice says; `more` counts incidents left out."""

    kind: str
    incidents: list[Told] = field(default_factory=list)
    mention: str | None = None
    more: int = 0
    text: str = ""


@dataclass(frozen=True)
class Links:
    """Where the other tools are; an empty address means there is none. Runbook names are resolved at `runbooks`."""

    flower: str = ""
    grafana: str = ""
    runbooks: str = ""

    def of(self, incident: Incident, runbook: str | None, now: float) -> list[Link]:
        """Return the links for an incident, the nearest to its cause first."""
        known = incident.task != OTHER
        links = [*self._flower(incident, known=known), *self._grafana(incident, now, known=known)]
        if runbook:
            name = quote(runbook, safe="/#?&=%:+,.@~()")
            page = runbook.strip().replace(" ", "%20").replace("'", "%27")  # as browsers do when they are given those
            links.append(Link("Runbook", page if "://" in runbook else f"{self.runbooks.rstrip('/')}/{name}"))
        return [link for link in links if _presentable(link.url)]

    def _flower(self, incident: Incident, *, known: bool) -> list[Link]:
        pages = FlowerLinks(self.flower)
        if not pages or not known:
            return []
        links = [Link("All failures in Flower", pages.tasks(name=incident.task, state="FAILURE"))]
        if incident.sample.uuid:
            # 404 once Flower has evicted the task: that is what the list is for.
            links.insert(0, Link("Task in Flower", pages.task(incident.sample.uuid)))
        return links

    def _grafana(self, incident: Incident, now: float, *, known: bool) -> list[Link]:
        base = self.grafana.rstrip("/")
        if not base:
            return []
        span = {"from": int((incident.first - AROUND) * 1000), "to": int((min(now, incident.last) + AROUND) * 1000)}
        if not known:
            return [Link("Grafana", f"{base}/d/celery-overview?{urlencode(span)}")]
        names = {"var-task": incident.task, **({"var-queue": incident.sample.queue} if incident.sample.queue else {})}
        return [Link("Grafana", f"{base}/d/celery-task?{urlencode({**names, **span})}")]


def _presentable(url: str) -> bool:
    """Tell whether a link may be shown: a page of the web, that is where it looks to be, and nothing but an address."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    plain = url.isprintable() and not any(character in url for character in " <>\\\"'`|")
    return plain and parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc


def told(incident: Incident, plan: Plan, links: Links, now: float) -> Told:
    """Return an incident as it is to be told now."""
    names = ("id", "task", "exception", "state", "count", "first", "last", "sample", "environment", "reopens")
    return Told(
        **{name: getattr(incident, name) for name in names},
        severity=plan.severity,
        resolved_at=incident.resolved_at,
        muted_until=incident.muted_until if incident.muted(now) else None,
        links=links.of(incident, plan.runbook, now),
    )


@dataclass(frozen=True)
class Composer:
    """Makes views: `plan` says what a sample's route is."""

    plan: Callable[[Sample], Plan]
    links: Links

    def view(self, kind: str, incidents: list[Incident], more: int, now: float) -> View:
        """Return what a message about these incidents says. It calls whoever the routes of its incidents name."""
        plans = [self.plan(incident.sample) for incident in incidents]
        mentions = dict.fromkeys(plan.mention for plan in plans if plan.mention)
        shown = [told(incident, plan, self.links, now) for incident, plan in zip(incidents, plans, strict=True)]
        return View(kind, shown, " ".join(mentions) or None, more)


def encoded(view: View) -> str:
    """Return a view as text, for the store."""
    return msgspec.json.encode(view).decode()


def decoded(text: str) -> View:
    """Return a view from the store's text."""
    return msgspec.json.decode(text, type=View)
