"""The alert rules as data: what they may name, what each must say, what they go by. promtool plays them elsewhere."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import yaml
from celeryscope import cli
from celeryscope.dashboards import alertmanager, rules
from celeryscope.dashboards.links import UIDS
from celeryscope.dashboards.queries import SUFFIXES, labels_of, metric_of
from celeryscope.dashboards.recordings import recordings
from celeryscope.dashboards.rules_cli import outputs, stale, write
from celeryscope.dashboards.rules_monitor import FOREIGN
from celeryscope.dashboards.thresholds import ALERT_NAMES, defaults, seconds
from celeryscope.monitor.catalog import METRICS
from celeryscope.monitor.configuration import SettingsError
from celeryscope.monitor.settings import MonitorSettings
from helpers import ROOT
from rule_cases import ALWAYS, CASES, WEEKS

if TYPE_CHECKING:
    from pathlib import Path

    from celeryscope.dashboards.rules_model import Alert

DEFAULTS = defaults()
ALERTS = rules.alerts(DEFAULTS)
HELPERS = {helper.record: helper.labels for group in rules.groups(DEFAULTS) for helper in group.helpers}
RECORDED = {recording.record: recording.labels for recording in recordings()} | HELPERS
EXPRESSIONS = {f"{alert.name} {alert.extra}": alert.expr for alert in ALERTS} | {
    rule["record"]: rule["expr"]
    for group in yaml.safe_load(rules.files(DEFAULTS)[rules.KUBERNETES_FILE])["spec"]["groups"]
    for rule in group["rules"]
    if "record" in rule
}
WORDS = {
    *(
        "sum",
        "max",
        "min",
        "count",
        "by",
        "on",
        "and",
        "or",
        "unless",
        "offset",
        "rate",
        "increase",
        "absent",
        "time",
        "vector",
    ),
    *("last_over_time", "avg_over_time", "count_over_time", "predict_linear", "group_left"),
}
"""What PromQL itself says in our rules."""
VARIABLES = {"datasource", "broker", "queue", "task", "worker", "app", "entry"}
SECTIONS = ["Meaning", "Impact", "What to do", "How it is computed", "When it fires for nothing"]

each_alert = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: "-".join((alert.name, *alert.extra.values())))


def labels_known(series: str) -> set[str]:
    """The labels that a series has; a KeyError or UnknownSeriesError says that there is no such series."""
    if series in RECORDED:
        return set(RECORDED[series])
    return set(FOREIGN[series] if series in FOREIGN else (*labels_of(series), "instance", "job"))


def bare(expression: str) -> str:
    """The expression without texts and durations."""
    return re.sub(r'"(?:[^"\\]|\\.)*"|\[\w+\]|\boffset \w+', "", expression)


def series_in(expression: str) -> list[str]:
    """Every name that stands where a series may stand."""
    without_labels = re.sub(r"\b(by|on) \([^)]*\)|\{[^}]*\}", "", bare(expression))
    return [word for word in re.findall(r"(?<![\w.])[a-zA-Z_][\w:]*", without_labels) if word not in WORDS]


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_only_what_the_catalogue_or_a_recording_has_is_named(name: str) -> None:
    expression = EXPRESSIONS[name]
    for series in series_in(expression):
        labels_known(series)
    for series, matchers in re.findall(r"([\w:]+)\{([^}]*)\}", bare(expression)):
        assert set(re.findall(r"(\w+) *(?:=~|!~|!=|=)", matchers)) <= labels_known(series)
    grouped = {label.strip() for labels in re.findall(r"\bby \(([^)]*)\)", expression) for label in labels.split(",")}
    assert grouped <= {"broker"}.union(*map(labels_known, series_in(expression)))


def test_all_alerts_are_there_and_no_others() -> None:
    assert {alert.name for alert in ALERTS} == set(ALERT_NAMES)


@each_alert
def test_an_alert_says_all_that_people_need(alert: Alert) -> None:
    rule = alert.as_rule(DEFAULTS)
    assert rule["labels"]["severity"] in ("critical", "warning", "info", "none")
    assert rule["labels"]["source"] == "celeryscope"
    told = rule["annotations"]
    assert {"summary", "description", "runbook_url", "dashboard_url"} <= set(told)
    assert all(text and not text.startswith(" ") for text in told.values())
    assert told["description"].endswith(".")
    assert told["runbook_url"] == f"{DEFAULTS.runbook_url}/{alert.name}.md"
    uid, variables = re.fullmatch(
        r"http://localhost:3000/d/([\w-]+)\?from=now-3h&to=now(.*)", told["dashboard_url"]
    ).groups()
    assert uid in UIDS.values()
    assert set(re.findall(r"&var-(\w+)=", variables)) <= VARIABLES
    if alert.component == "tasks" or "worker" in alert.variables:
        assert told["flower_url"].startswith(f"{DEFAULTS.flower_url}/")


@each_alert
def test_templates_use_labels_that_the_alert_has(alert: Alert) -> None:
    used = set(re.findall(r"\$labels\.(\w+)", " ".join(alert.as_rule(DEFAULTS)["annotations"].values()))) - {"broker"}
    # What the outermost operation leaves: the labels of the first grouping, or of the recording.
    kept = re.search(r"\b(?:sum|max|min) by \(([^)]*)\)", alert.expr)
    series = series_in(alert.expr)
    labels = set(kept[1].split(", ")) if kept else set(RECORDED.get(series[0], ())) if series else set()
    assert used <= labels


def without_max(expression: str) -> str:
    """The expression without what stands inside `max by (…) (…)`."""
    found = re.search(r"\b(?:max|min) by \([^)]*\) \(", expression)
    if found is None:
        return expression
    depth, end = 1, found.end()
    while depth:
        depth += {"(": 1, ")": -1}.get(expression[end], 0)
        end += 1
    return expression[: found.start()] + without_max(expression[end:])


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_two_monitors_do_not_double_anything(name: str) -> None:
    """Every series of ours is read through `max` over what tells monitors apart, or was recorded so."""
    assert not re.findall(r"\bcelery(?:scope)?_\w+", without_max(bare(EXPRESSIONS[name])))


@pytest.mark.repository
@pytest.mark.parametrize("name", ALERT_NAMES)
def test_every_alert_has_a_runbook(name: str) -> None:
    page = (ROOT / "docs" / "runbooks" / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {name}\n")
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == SECTIONS
    severities = dict.fromkeys(alert.severity for alert in ALERTS if alert.name == name)
    assert f"\nSeverity {' and '.join(severities)}." in page
    # What it names in code and looks like a metric or a setting of ours is one.
    for word in re.findall(r"`(celery(?:scope)?_\w+)", page):
        metric_of(word)
    computed = page.split("## How it is computed")[1]
    known = set(type(DEFAULTS).model_fields) | {*METRICS, "beat_max_loop_interval", "increase", "acks_late"}
    for word in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", computed):
        assert word in known or word.endswith(SUFFIXES) or word == "redbeat_lock_timeout"


@pytest.mark.repository
def test_the_reference_lists_every_alert_as_it_is() -> None:
    page = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\w+)\]\(runbooks/\1\.md\) \| (\w+) \| ([\w ]+) \|", page, re.MULTILINE)
    assert rows == [(alert.name, alert.severity, "at once" if alert.hold == "0s" else alert.hold) for alert in ALERTS]


@pytest.mark.repository
def test_what_is_shipped_is_what_the_defaults_make() -> None:
    assert outputs(DEFAULTS) == outputs(defaults())
    assert stale(ROOT / "dashboards" / "generated", outputs(DEFAULTS)) == []


def test_every_alert_is_played_both_ways() -> None:
    """A story in which it fires for each of its variants, and one in which it must not."""
    played = [*CASES, *WEEKS]
    for alert in ALERTS:
        stories = [case for case in played if case.alert == alert.name]
        assert any(set(alert.extra.items()) <= set(labels.items()) for case in stories for labels in case.fires)
        assert any(not case.fires for case in stories) != (alert.name in ALWAYS)


def test_a_lost_worker_stays_on_the_page_until_its_alert_has_fired() -> None:
    forgotten = MonitorSettings.model_fields["forget_worker_after"].default
    assert seconds(DEFAULTS.worker_lost_for) + 60 < forgotten
    assert seconds(DEFAULTS.events_off_for) < forgotten


def test_a_lost_worker_is_told_no_sooner_than_that_all_are_gone() -> None:
    """NoWorkers silences WorkerLost, which it cannot where that was told before."""
    assert seconds(DEFAULTS.no_workers_for) <= seconds(DEFAULTS.worker_lost_for)


def test_what_reads_every_tasks_counters_is_evaluated_as_often_as_recordings_are_made() -> None:
    for given, expected in (({}, "1m"), ({"recording_interval": "2m"}, "2m"), ({"rules_interval": "15s"}, "15s")):
        settings = defaults(**given)
        [group] = [one.as_group(settings) for one in rules.groups(settings) if one.helpers]
        assert group["interval"] == expected
    assert {recording.interval for recording in recordings()} == {seconds(DEFAULTS.recording_interval)}


def test_the_restart_of_a_monitor_is_not_the_end_of_what_it_told() -> None:
    keeps = {alert.component: alert.as_rule(DEFAULTS).get("keep_firing_for") for alert in ALERTS}
    assert keeps == {**dict.fromkeys(("tasks", "workers", "queues", "beat"), "5m"), "monitor": None, "alerter": None}
    off = defaults(keep_firing_for="0s")
    assert not any("keep_firing_for" in alert.as_rule(off) for alert in ALERTS)


def test_what_is_left_out_is_left_out() -> None:
    names = {alert.name for alert in rules.alerts(defaults(disable_alerts=("WorkerLost",), watch_alerter=False))}
    assert set(ALERT_NAMES) - names == {"WorkerLost", "AlerterDown", "FailuresWaiting"}


def test_patterns_of_tasks_are_quoted_for_promql() -> None:
    changed = defaults(task_stuck_ignore=(r"reports\..*", 'odd"name'))
    [stuck] = [alert for alert in rules.alerts(changed) if alert.name == "TaskStuck"]
    assert r'{task!~"reports\\..*|odd\"name"}' in stuck.expr


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"worker_lost_for": "5"}, "must be a duration such as 30s, 5m, 1h30m or 1d (got '5')"),
        ({"task_window": "0s"}, "must be longer than 0s"),
        ({"recording_interval": "5m"}, "must be at most 4m"),
        ({"rules_interval": "1h"}, "must be at most 4m"),
        ({"task_failure_ratio": "1.5"}, "must be at most 1"),
        ({"runtime_factor": "1"}, "must be more than 1"),
        ({"queue_growing_messages": "0"}, "must be at least 1"),
        ({"task_stuck_ignore": ("(",)}, "must be regular expressions"),
        ({"disable_alerts": ("WorkerGone",)}, "'WorkerGone' is none of"),
        ({"disable_alerts": ("Watchdog",)}, "must not hold Watchdog"),
        ({"grafana_url": "grafana:3000"}, "must be an address that starts with http://"),
        ({"monitor_job": 'a"b'}, "must be letters, digits"),
        ({"alertmanager_token_file": ""}, "no way to Slack is given"),
    ],
)
def test_what_makes_no_sense_is_said(given: dict[str, object], problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        defaults(**given)
    [told] = caught.value.problems
    assert problem in told


@pytest.mark.parametrize(
    ("text", "expected"), [("90s", 90), ("1h30m", 5400), ("1d", 86400), ("2w", 1_209_600), ("500ms", 0.5), ("0s", 0)]
)
def test_durations_are_prometheus_own(text: str, expected: float) -> None:
    assert seconds(text) == expected


def test_build_writes_what_the_settings_say_and_check_finds_what_is_old(tmp_path: Path, capsys) -> None:
    config = tmp_path / "celeryscope.toml"
    config.write_text('grafana_url = "https://g.example/"\n[rules]\nworker_lost_for = "7m"\n')
    command = ["rules", "build", "--config", str(config), "--out", str(tmp_path / "out")]
    assert cli.run([*command, "--check"]) == 1
    assert not (tmp_path / "out").exists()
    assert cli.run(command) == 0
    text = (tmp_path / "out" / rules.ALERTS_FILE).read_text()
    assert "for: 7m\n" in text
    assert "dashboard_url: https://g.example/d/celery-workers?" in text
    capsys.readouterr()
    assert cli.run([*command, "--check"]) == 0
    assert "all 5 files are up to date" in capsys.readouterr().out
    (tmp_path / "out" / rules.ALERTS_FILE).write_text("by hand")
    assert cli.run([*command, "--check"]) == 1
    assert f"{rules.ALERTS_FILE} is out of date" in capsys.readouterr().out


def test_a_name_that_is_not_known_is_an_error(tmp_path: Path, capsys) -> None:
    config = tmp_path / "celeryscope.toml"
    config.write_text('[rules]\nworker_lost_fro = "7m"\n')
    assert cli.run(["rules", "build", "--config", str(config), "--out", str(tmp_path)]) == 2
    assert "worker_lost_fro: no such setting; did you mean worker_lost_for?" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "rules").write_text("a file")
    assert cli.run(["rules", "build", "--config", "/dev/null", "--out", str(tmp_path)]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_only_the_route_that_is_not_slack_tells_of_slack() -> None:
    config = alertmanager.config(DEFAULTS)
    routes = {route["matchers"][0]: route["receiver"] for route in config["route"]["routes"]}
    kinds = {receiver["name"]: [key for key in receiver if key != "name"] for receiver in config["receivers"]}
    assert kinds[routes['alertname="SlackUndeliverable"']] == ["webhook_configs"]
    assert kinds[routes['alertname="Watchdog"']] == ["webhook_configs"]
    assert kinds[config["route"]["receiver"]] == ["slack_configs"]


@pytest.mark.parametrize("webhook", ["", "/run/secrets/hook"])
def test_no_secret_is_in_the_configuration(webhook: str) -> None:
    text = alertmanager.files(defaults(alertmanager_webhook_file=webhook))[alertmanager.CONFIG_FILE]
    config = yaml.safe_load(text)
    [slack] = config["receivers"][0]["slack_configs"]
    if webhook:
        assert config["global"] == {"slack_api_url_file": webhook}
        assert not {"api_url", "http_config"} & set(slack)
    else:
        assert slack["http_config"]["authorization"]["credentials_file"] == DEFAULTS.alertmanager_token_file


def test_the_dead_mans_switch_is_called_every_minute() -> None:
    """What is to be repeated after the group's own interval or more waits for the next one."""
    [watchdog] = [r for r in alertmanager.config(DEFAULTS)["route"]["routes"] if "Watchdog" in r["matchers"][0]]
    assert seconds(watchdog["repeat_interval"]) < seconds(watchdog["group_interval"]) == 60


def test_inhibitions_name_alerts_that_exist() -> None:
    for rule in alertmanager.inhibitions():
        # Other people's alerts may have the same names.
        assert 'source="celeryscope"' in rule["source_matchers"]
        assert 'source="celeryscope"' in rule["target_matchers"]
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            label, values = re.fullmatch(r'(\w+)=~?"(.+)"', matcher).groups()
            known = set(ALERT_NAMES) if label == "alertname" else {
                str(value) for alert in ALERTS for value in {"component": alert.component, "source": "celeryscope",
                                                             **alert.extra}.values()}  # fmt: skip
            assert set(values.split("|")) <= known


def test_written_files_are_read_as_they_were_meant(tmp_path: Path) -> None:
    write(tmp_path, {"a/b.yml": "ä\n"})
    assert (tmp_path / "a" / "b.yml").read_bytes() == "ä\n".encode()
    assert stale(tmp_path, {"a/b.yml": "ä\n", "c": ""}) == ["c"]
