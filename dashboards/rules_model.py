"""What an alert is: its expression, how bad it is, what to say of it, and the links that take people to the place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .links import UIDS

if TYPE_CHECKING:
    from .thresholds import RulesSettings

Severity = Literal["critical", "warning", "info", "none"]
Component = Literal["tasks", "workers", "queues", "beat", "monitor", "alerter"]

BOARDS = {
    "tasks": "tasks",
    "workers": "workers",
    "queues": "queues",
    "beat": "beat",
    "monitor": "monitor",
    "alerter": "monitor",
}
"""The board that shows what each component's alerts are about, unless an alert names another one."""
CELERY = ("tasks", "workers", "queues", "beat")
"""What a monitor tells of: while it restarts these alerts have no series, and that does not mean that all is well."""
SOURCE = "celeryscope"
"""Every alert carries `source` with this value: an existing Alertmanager routes ours by it."""


@dataclass(frozen=True)
class Alert:
    """One alerting rule; several may share a name and differ by `extra` labels.

    `hold` is Prometheus' `for`. `board` and `variables` say which board to open with which variables set from labels of
    the alert; `flower` is a path below Flower's address. `{…}` of Prometheus' templates are written as they are.
    """

    name: str
    expr: str
    severity: Severity
    component: Component
    summary: str
    description: str
    hold: str = "0s"
    board: str = ""
    variables: tuple[str, ...] = ()
    flower: str = ""
    extra: dict[str, str] = field(default_factory=dict)

    def as_rule(self, settings: RulesSettings) -> dict[str, Any]:
        """Return Prometheus' form."""
        rule: dict[str, Any] = {"alert": self.name, "expr": self.expr}
        if self.hold not in ("0s", ""):
            rule["for"] = self.hold
        if self.component in CELERY and settings.keep_firing_for != "0s":
            rule["keep_firing_for"] = settings.keep_firing_for
        rule["labels"] = {"severity": self.severity, "component": self.component, "source": SOURCE, **self.extra}
        rule["annotations"] = {
            "summary": self.summary,
            "description": self.description,
            "runbook_url": f"{settings.runbook_url}/{self.name}.md",
            "dashboard_url": self._dashboard(settings.grafana_url),
        }
        if self.flower:
            rule["annotations"]["flower_url"] = f"{settings.flower_url}{self.flower}"
        return rule

    def _dashboard(self, base: str) -> str:
        uid = UIDS[self.board or BOARDS[self.component]]
        # Without several brokers there is no such label, and an empty variable is not "All".
        given = "".join(
            f"{{{{ with $labels.{name} }}}}&var-{name}={{{{ . | urlquery }}}}{{{{ end }}}}"
            for name in ("broker", *self.variables)
        )
        return f"{base}/d/{uid}?from=now-3h&to=now{given}"


@dataclass(frozen=True)
class Helper:
    """A recording rule that only alerts read; `labels` are what it carries."""

    record: str
    expr: str
    labels: tuple[str, ...]

    def as_rule(self) -> dict[str, Any]:
        """Return Prometheus' form."""
        return {"record": self.record, "expr": self.expr}


@dataclass(frozen=True)
class Group:
    """Rules that are evaluated one after the other, helpers first; `costly` ones as often as recordings are made."""

    name: str
    alerts: Sequence[Alert]
    helpers: Sequence[Helper] = ()
    costly: bool = False

    def as_group(self, settings: RulesSettings) -> dict[str, Any]:
        """Return Prometheus' form."""
        interval = settings.rules_interval or (settings.recording_interval if self.costly else "")
        pace = {"interval": interval} if interval else {}
        rules = [helper.as_rule() for helper in self.helpers] + [alert.as_rule(settings) for alert in self.alerts]
        return {"name": self.name, **pace, "rules": rules}


def on_broker(text: str = " on broker ") -> str:
    """Return what names the broker where several are watched, and says nothing elsewhere."""
    return f"{{{{ with $labels.broker }}}}{text}{{{{ . }}}}{{{{ end }}}}"


def times(name: str = "$value") -> str:
    """Return a template for a count."""
    return f'{{{{ printf "%.0f" {name} }}}}'


LONG = "{{ $value | humanizeDuration }}"
SHARE = "{{ $value | humanizePercentage }}"
FLOWER_TASK = "/tasks?name={{ $labels.task | urlquery }}"
FLOWER_WORKER = "/worker/{{ $labels.worker | urlquery }}"
