"""The rule files: every alert and every recording, as Prometheus and its Kubernetes operator read them."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import yaml

from . import rules_beat, rules_monitor, rules_tasks, rules_workers
from .recordings import recordings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .rules_model import Alert, Group
    from .thresholds import RulesSettings

ALERTS_FILE = "rules/celeryscope-alerts.yml"
RECORDINGS_FILE = "rules/celeryscope-recordings.yml"
KUBERNETES_FILE = "kubernetes/celeryscope-prometheusrule.yml"
HEADER = "# Made by `celeryscope rules build`: change [rules] in celeryscope.toml, not this file.\n"


class _Dumper(yaml.SafeDumper):
    """Writes lists as people indent them."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, False)


def as_yaml(content: Mapping[str, Any]) -> str:
    """Return YAML that is the same for the same content, with a line that says where it comes from."""
    # No line is wrapped: a wrapped expression is hard to find again, and a diff of it hard to read.
    return HEADER + yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000)


def groups(settings: RulesSettings) -> list[Group]:
    """Return the groups of alerts, without those that are disabled."""
    found = [
        *rules_workers.groups(settings),
        *rules_tasks.groups(settings),
        *rules_beat.groups(settings),
        *rules_monitor.groups(settings),
    ]
    kept = [
        replace(group, alerts=[a for a in group.alerts if a.name not in settings.disable_alerts]) for group in found
    ]
    return [group for group in kept if group.alerts]


def alerts(settings: RulesSettings) -> list[Alert]:
    """Return all alerts that are not disabled, in the order of the file."""
    return [alert for group in groups(settings) for alert in group.alerts]


def recording_groups(settings: RulesSettings) -> list[dict[str, Any]]:
    """Return the recordings as Prometheus' groups."""
    found = []
    for name, members in groupby(recordings(), key=lambda recording: recording.group):
        rules = [{"record": recording.record, "expr": recording.expr} for recording in members]
        found.append({"name": name, "interval": settings.recording_interval, "rules": rules})
    return found


def files(settings: RulesSettings) -> dict[str, str]:
    """Return the text of every rule file, by its path below the output folder."""
    alerting = [group.as_group(settings) for group in groups(settings)]
    recording = recording_groups(settings)
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "celeryscope", "labels": {"app.kubernetes.io/name": "celeryscope"}},
        "spec": {"groups": [*recording, *alerting]},
    }
    return {
        ALERTS_FILE: as_yaml({"groups": alerting}),
        RECORDINGS_FILE: as_yaml({"groups": recording}),
        KUBERNETES_FILE: as_yaml(resource),
    }
