"""Alertmanager's configuration and message template: who is told what, what silences what, how it reads in Slack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .rules import as_yaml
from .rules_model import SOURCE

if TYPE_CHECKING:
    from .thresholds import RulesSettings

CONFIG_FILE = "alertmanager/alertmanager.yml"
TEMPLATE_FILE = "alertmanager/celeryscope.tmpl"
SLACK, FALLBACK, WATCHDOG = "celeryscope-slack", "celeryscope-not-slack", "celeryscope-dead-mans-switch"
WATCHED_BY_MONITOR = 'component=~"tasks|workers|queues|beat"'

TEMPLATE = """\
{{/* Made by `celeryscope rules build`. One message tells of one group: an alert's name, on one broker. */}}
{{/* Names come from users' code: no mention, no link, and no formatting (Slack takes * ~ ` and a word's first _). */}}
{{ define "celeryscope.safe" }}\
{{ . | reReplaceAll "&" "&amp;" | reReplaceAll "<" "&lt;" | reReplaceAll ">" "&gt;" | \
reReplaceAll "`" "ˋ" | reReplaceAll "[*]" "∗" | reReplaceAll "~" "∼" | \
reReplaceAll "(^|[^0-9A-Za-z_])_" "${1}ˍ" }}{{ end }}

{{ define "celeryscope.color" -}}
{{ if ne .Status "firing" }}#2eb67d{{ else if eq .CommonLabels.severity "critical" }}#d40e0d\
{{ else if eq .CommonLabels.severity "info" }}#1264a3{{ else }}#ecb22e{{ end }}
{{- end }}

{{ define "celeryscope.title" -}}
{{ if ne .Status "firing" }}Resolved{{ else }}\
{{ with .CommonLabels.severity }}{{ . | title }}{{ else }}Alert{{ end }}{{ end }}: \
{{ template "celeryscope.safe" .GroupLabels.alertname }}\
{{ with .GroupLabels.broker }} on {{ template "celeryscope.safe" . }}{{ end }}\
{{ if and (eq .Status "firing") (gt (len .Alerts.Firing) 1) }} ({{ len .Alerts.Firing }}){{ end }}
{{- end }}

{{ define "celeryscope.lines" -}}
{{ range $i, $alert := . }}{{ if lt $i 10 }}
• {{ template "celeryscope.safe" $alert.Annotations.summary }}\
{{ with $alert.Annotations.dashboard_url }} <{{ . }}|board>{{ end }}\
{{ with $alert.Annotations.flower_url }} <{{ . }}|Flower>{{ end }}\
{{ end }}{{ end }}{{ if gt (len .) 10 }}
… and more: {{ len . }} in all{{ end }}
{{- end }}

{{ define "celeryscope.descriptions" -}}
{{ range $i, $alert := . }}{{ if lt $i 3 }}{{ if $i }}
{{ end }}{{ template "celeryscope.safe" $alert.Annotations.description }}{{ end }}{{ end }}
{{- end }}

{{ define "celeryscope.text" -}}
{{ if .Alerts.Firing }}{{ template "celeryscope.lines" .Alerts.Firing }}
{{ with .CommonAnnotations.description }}{{ template "celeryscope.safe" . }}\
{{ else }}{{ template "celeryscope.descriptions" .Alerts.Firing }}{{ end }}{{ end }}\
{{ if .Alerts.Resolved }}
*No longer:*{{ template "celeryscope.lines" .Alerts.Resolved }}{{ end }}
{{- end }}

{{ define "celeryscope.runbook" }}{{ (index .Alerts 0).Annotations.runbook_url }}{{ end }}
{{ define "celeryscope.board" }}{{ (index .Alerts 0).Annotations.dashboard_url }}{{ end }}
""".replace("\\\n", "")


def files(settings: RulesSettings) -> dict[str, str]:
    """Return the text of Alertmanager's files, by path below the output folder."""
    return {CONFIG_FILE: as_yaml(config(settings)), TEMPLATE_FILE: TEMPLATE}


def config(settings: RulesSettings) -> dict[str, Any]:
    """Return a whole configuration; docs/alerts.md says how to take its parts into another one."""
    webhook = settings.alertmanager_webhook_file
    return {
        **({"global": {"slack_api_url_file": webhook}} if webhook else {}),
        "templates": ["celeryscope.tmpl"],
        "route": _route(settings),
        "inhibit_rules": inhibitions(),
        "receivers": [
            {"name": SLACK, "slack_configs": [_slack(settings)]},
            {"name": FALLBACK, "webhook_configs": [{"url": settings.alertmanager_fallback_url}]},
            {
                "name": WATCHDOG,
                "webhook_configs": [{"url": settings.alertmanager_watchdog_url, "send_resolved": False}],
            },
        ],
    }


def _route(settings: RulesSettings) -> dict[str, Any]:
    return {
        "receiver": SLACK,
        # By severity too: two alerts of one name may differ in it, and a message has one colour.
        "group_by": ["alertname", "broker", "severity"],
        "group_wait": settings.alertmanager_group_wait,
        "group_interval": settings.alertmanager_group_interval,
        "repeat_interval": settings.alertmanager_repeat_interval,
        "routes": [
            {
                "matchers": ['alertname="Watchdog"'],
                "receiver": WATCHDOG,
                "group_wait": "0s",
                "group_interval": "1m",
                # A little less: at the same length every second call is left out.
                "repeat_interval": "50s",
            },
            {"matchers": ['alertname="SlackUndeliverable"'], "receiver": FALLBACK},
            {"matchers": ['severity="info"', f'source="{SOURCE}"'], "receiver": SLACK, "repeat_interval": "1d"},
        ],
    }


def _slack(settings: RulesSettings) -> dict[str, Any]:
    token = {
        "api_url": settings.alertmanager_slack_url,
        "http_config": {
            "authorization": {"type": "Bearer", "credentials_file": settings.alertmanager_token_file},
        },
    }
    return {
        **({} if settings.alertmanager_webhook_file else token),
        "channel": settings.slack_channel,
        "send_resolved": True,
        "color": '{{ template "celeryscope.color" . }}',
        "title": '{{ template "celeryscope.title" . }}',
        "title_link": '{{ template "celeryscope.board" . }}',
        "fallback": '{{ template "celeryscope.title" . }}',
        "text": '{{ template "celeryscope.text" . }}',
        "mrkdwn_in": ["text"],
        "actions": [
            {"type": "button", "text": "Runbook", "url": '{{ template "celeryscope.runbook" . }}'},
            {"type": "button", "text": "Board", "url": '{{ template "celeryscope.board" . }}'},
        ],
    }


def inhibitions() -> list[dict[str, Any]]:
    """Return what silences what: the cause is told, and what follows from it is not."""
    of_queue = "QueueWithoutConsumers|QueueGrowing|OldestTaskTooOld|WorkersSaturated"
    blind = 'alertname=~"MonitorLagging|TaskStartsMissed"'
    everything, broker, one = (f'alertname="MonitorDown", scope="{scope}"' for scope in ("all", "broker", "instance"))
    return [
        _silences(everything, WATCHED_BY_MONITOR),
        _silences(everything, blind),
        _silences(everything, 'alertname="MonitorDown", scope=~"broker|instance"'),
        _silences(broker, WATCHED_BY_MONITOR, "broker"),
        _silences(broker, blind, "broker"),
        _silences(broker, one, "broker"),
        _silences('alertname="NoWorkers"', f'alertname=~"WorkerLost|TasksOrphaned|{of_queue}"', "broker"),
        _silences('alertname="WorkerLost"', 'alertname=~"WorkerWedged|EventsOff"', "broker", "worker"),
        _silences('alertname="QueueWithoutConsumers"', 'alertname=~"QueueGrowing|OldestTaskTooOld"', "broker", "queue"),
        _silences('alertname="QueueGrowing"', 'alertname="WorkersSaturated"', "broker", "queue"),
        _silences('alertname=~"BeatDown|BeatNotTicking"', 'alertname=~"ScheduleMissed|ScheduleLate"', "broker", "app"),
        _silences('alertname="BeatDown"', 'alertname="BeatNotTicking"', "broker", "app"),
        _silences(
            'alertname="BeatDuplicate", reason="beats"',
            'alertname="BeatDuplicate", reason="dispatches"',
            "broker",
            "app",
        ),
        _silences('alertname="AlerterDown"', 'alertname="FailuresWaiting"'),
    ]


def _silences(source: str, target: str, *equal: str) -> dict[str, Any]:
    """Return a rule between alerts of ours: others may have alerts of the same names."""
    ours = f'source="{SOURCE}"'
    rule: dict[str, Any] = {
        "source_matchers": [ours, *source.split(", ")],
        "target_matchers": [ours, *target.split(", ")],
    }
    return {**rule, "equal": list(equal)} if equal else rule
