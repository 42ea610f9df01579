"""What a check may come to: findings, or why it could not look; and how findings of several sides are put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..masking import masked
from .facts import Configuration, Facts
from .registry import CHECKS, Check, Severity

SHOWN = 8
"""Names in one finding before the rest are only counted."""


class CannotTellError(Exception):
    """The check could not look; the message says why, as the end of a sentence that starts with "because"."""


@dataclass(frozen=True)
class Seen:
    """Something that is wrong, as a check saw it; `severity` and `fix` where they are not the check's usual ones."""

    text: str
    fix: str = ""
    severity: Severity | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    check: Check
    severity: Severity
    seen: str
    fix: str


@dataclass(frozen=True)
class NotChecked:
    """A check that could not look, and why."""

    check: Check
    because: str


@dataclass(frozen=True)
class Verdict:
    """What came of all checks."""

    findings: Sequence[Finding] = ()
    not_checked: Sequence[NotChecked] = ()
    passed: Sequence[Check] = ()
    ignored: Sequence[Check] = ()
    looked_at: Mapping[str, str] = field(default_factory=dict)
    """What was looked at: app, broker, workers, page → one line each."""

    @property
    def failed(self) -> bool:
        """Whether a check failed: advice alone is no failure."""
        return any(finding.severity is not Severity.INFO for finding in self.findings)


Look = Callable[[Facts], Iterable[Seen]]


def judge(facts: Facts, looks: Mapping[str, Look], ignored: Iterable[str] = ()) -> Verdict:
    """Run every check that is not ignored, errors first in what comes out.

    `looks` maps ids of the registry to what decides them.
    """
    leave = frozenset(ignored)
    findings: list[Finding] = []
    not_checked: list[NotChecked] = []
    passed: list[Check] = []
    for check in CHECKS.values():
        if check.id in leave:
            continue
        try:
            seen = list(looks[check.id](facts))
        except CannotTellError as error:
            not_checked.append(NotChecked(check, str(error)))
            continue
        except Exception as error:  # noqa: BLE001 - workers may tell anything; one answer must not cost all the others
            text = masked(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
            not_checked.append(NotChecked(check, f"the check itself failed ({text}): please report it"))
            continue
        if not seen:
            passed.append(check)
        findings += [Finding(check, one.severity or check.severity, one.text, one.fix or check.fix) for one in seen]
    order = list(Severity)
    findings.sort(key=lambda finding: order.index(finding.severity))
    return Verdict(findings, not_checked, passed, [CHECKS[name] for name in sorted(leave)], _looked_at(facts))


def _looked_at(facts: Facts) -> dict[str, str]:
    answered = facts.workers_error or (some(sorted(facts.workers)) if facts.workers else "none answered")
    monitored, heard = facts.monitored, facts.heard
    return {
        "app": facts.project.configuration.where if facts.project else "not given (-A)",
        "broker": facts.broker.label + (f": {facts.broker.error}" if facts.broker.error else ""),
        "workers": answered,
        "listening": heard.error or f"{heard.events} events in {heard.seconds:.0f} s",
        "monitor": f"{monitored.url} {monitored.error}" if monitored.error else monitored.url,
    }


def some(names: Iterable[str], most: int = SHOWN) -> str:
    """Return the names for people, no more than `most` of them."""
    listed = list(names)
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest} more" if rest > 0 else "")


def plural(count: float, noun: str) -> str:
    """Return a count with its noun."""
    return f"{count:g} {noun}" + ("" if count == 1 else "s")


def configurations(facts: Facts) -> Sequence[Configuration]:
    """Return the configurations that are known.

    Raises:
        CannotTellError: there are none.
    """
    if not facts.configurations:
        raise CannotTellError("no app was given (-A) and no worker told its configuration")
    return facts.configurations


def workers_known(facts: Facts) -> None:
    """Hold that workers answered.

    Raises:
        CannotTellError: none did.
    """
    if not facts.workers:
        raise CannotTellError(facts.workers_error or "no worker answered")


def everywhere(facts: Facts, say: Callable[[Configuration], Iterable[str]]) -> Iterator[Seen]:
    """Ask each configuration; what several of them say alike comes out once, with all their names."""
    said: dict[str, list[str]] = {}
    for configuration in configurations(facts):
        for text in say(configuration):
            said.setdefault(text, []).append(configuration.where)
    for text, where in said.items():
        yield Seen(f"{some(where, 3)}: {text}")
