"""The rules through Debian's promtool and amtool: each fires when it must, stays silent when it must."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from celeryscope.dashboards import rules
from celeryscope.dashboards.rules_cli import outputs, write
from celeryscope.dashboards.thresholds import defaults
from helpers import system_command
from rule_cases import CASES, WEEKS, Case

pytestmark = pytest.mark.system


@pytest.fixture(name="built", scope="module")
def _built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rules")
    write(folder, outputs(defaults()))
    return folder


def run(*argv: str | Path) -> str:
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def promtool_test(folder: Path, content: dict[str, Any], cases: tuple[Case, ...], interval: str) -> None:
    """Let promtool play the cases, one sample and one evaluation every `interval`."""
    (folder / "played.yml").write_text(yaml.safe_dump(content))
    tests = [case.as_test(interval) for case in cases]
    play = {"rule_files": ["played.yml"], "evaluation_interval": interval, "tests": tests}
    (folder / "test.yml").write_text(yaml.safe_dump(play, sort_keys=False))
    run(system_command("promtool"), "test", "rules", folder / "test.yml")


def test_promtool_accepts_every_rule(built: Path) -> None:
    told = run(system_command("promtool"), "check", "rules", built / rules.ALERTS_FILE, built / rules.RECORDINGS_FILE)
    assert told.count("SUCCESS") == 2


def test_the_kubernetes_resource_holds_the_same_groups(built: Path) -> None:
    """And promtool accepts them: what the operator writes into Prometheus' folder is its `spec`."""
    resource = yaml.safe_load((built / rules.KUBERNETES_FILE).read_text())
    (built / "spec.yml").write_text(yaml.safe_dump(resource["spec"]))
    run(system_command("promtool"), "check", "rules", built / "spec.yml")
    names = [yaml.safe_load((built / n).read_text())["groups"] for n in (rules.RECORDINGS_FILE, rules.ALERTS_FILE)]
    assert resource["spec"]["groups"] == [group for groups in names for group in groups]


def test_every_alert_fires_when_it_must_and_only_then(built: Path) -> None:
    """Group by group: a story is played to every rule that is loaded."""
    played = 0
    for group in yaml.safe_load((built / rules.ALERTS_FILE).read_text())["groups"]:
        names = {rule.get("alert") for rule in group["rules"]}
        cases = tuple(case for case in CASES if case.alert in names)
        promtool_test(built, {"groups": [group]}, cases, "1m")
        played += len(cases)
    assert played == len(CASES)


def test_runtimes_are_held_against_the_same_hour_last_week(built: Path) -> None:
    """Of eight days only what this alert needs is evaluated, and every ten minutes."""
    spec = yaml.safe_load((built / rules.KUBERNETES_FILE).read_text())["spec"]
    every = [rule for group in spec["groups"] for rule in group["rules"]]
    needed = [r for r in every if r.get("record", "").endswith("1h") or r.get("alert") == "RuntimeRegressed"]
    assert len(needed) == 3
    promtool_test(built, {"groups": [{"name": "needed", "rules": needed}]}, WEEKS, "10m")


@pytest.mark.parametrize("options", [{}, {"alertmanager_webhook_file": "/run/secrets/slack-webhook"}])
def test_amtool_accepts_the_configuration(tmp_path: Path, options: dict[str, str]) -> None:
    write(tmp_path, outputs(defaults(**options)))
    told = run(system_command("amtool"), "check-config", tmp_path / "alertmanager" / "alertmanager.yml")
    assert "3 receivers" in told
    assert "1 templates" in told


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (("alertname=Watchdog", "severity=none"), "celeryscope-dead-mans-switch"),
        (("alertname=SlackUndeliverable", "severity=critical"), "celeryscope-not-slack"),
        (("alertname=WorkerLost", "severity=warning"), "celeryscope-slack"),
        (("alertname=RuntimeRegressed", "severity=info"), "celeryscope-slack"),
    ],
)
def test_alerts_go_where_they_should(built: Path, labels: tuple[str, ...], receiver: str) -> None:
    config = built / "alertmanager" / "alertmanager.yml"
    command = (system_command("amtool"), "config", "routes", "test", f"--config.file={config}")
    assert run(*command, *labels, "source=celeryscope").splitlines()[0] == receiver


def alert(status: str, summary: str, **annotations: str) -> dict[str, Any]:
    links = {"runbook_url": "https://r/W.md", "dashboard_url": "https://g/d?x=1&y=2", "description": "Do <this>."}
    times = {"startsAt": "2026-11-21T00:00:00Z", "endsAt": "2026-11-21T01:00:00Z"}
    return {"status": status, "annotations": {"summary": summary, **links, **annotations}, "labels": {}, **times}


def rendered(folder: Path, alerts: list[dict[str, Any]], part: str) -> str:
    """What Alertmanager makes of a group of alerts."""
    status = "firing" if any(a["status"] == "firing" for a in alerts) else "resolved"
    group = {"alertname": "WorkerLost", "broker": "main"}
    told = [a["annotations"] for a in alerts]
    common = {key: text for key, text in told[0].items() if all(one.get(key) == text for one in told)}
    data = {"status": status, "alerts": alerts, "groupLabels": group, "commonLabels": {**group, "severity": "warning"}}
    data["commonAnnotations"] = common
    (folder / "data.json").write_text(json.dumps(data))
    template = folder / "alertmanager" / "celeryscope.tmpl"
    command = (system_command("amtool"), "template", "render", f"--template.glob={template}", "--template.type=text")
    text = f'--template.text={{{{ template "celeryscope.{part}" . }}}}'
    return run(*command, f"--template.data={folder / 'data.json'}", text).strip()


def test_how_it_reads_in_slack(built: Path) -> None:
    """What others wrote is neutralised, each alert has its links, and what is over is said to be over."""
    gone = alert("firing", "Worker <!channel>&a is gone", flower_url="https://f/w")
    alerts = [gone, alert("firing", "Worker b is gone"), alert("resolved", "Worker c is gone")]
    assert rendered(built, alerts, "title") == "Warning: WorkerLost on main (2)"
    assert rendered(built, alerts, "text").splitlines() == [
        "• Worker &lt;!channel&gt;&amp;a is gone <https://g/d?x=1&y=2|board> <https://f/w|Flower>",
        "• Worker b is gone <https://g/d?x=1&y=2|board>",
        "Do &lt;this&gt;.",
        "*No longer:*",
        "• Worker c is gone <https://g/d?x=1&y=2|board>",
    ]
    assert rendered(built, alerts, "runbook") == "https://r/W.md"
    assert rendered(built, alerts[2:], "title") == "Resolved: WorkerLost on main"
    assert rendered(built, alerts[2:], "color") == "#2eb67d"


def test_fifty_alerts_are_one_readable_message(built: Path) -> None:
    lines = rendered(built, [alert("firing", f"Worker {n} is gone") for n in range(50)], "text").splitlines()
    assert lines[9].startswith("• Worker 9 is gone")
    assert lines[10:] == ["… and more: 50 in all", "Do &lt;this&gt;."]


def test_names_cannot_format_what_people_read(built: Path) -> None:
    """And what each of several alerts says to do is said."""
    alerts = [alert("firing", "Worker *a* `b` ~c~ _d_ my_e is gone", description=f"Mend {name}.") for name in "xyzw"]
    lines = rendered(built, alerts, "text").splitlines()
    assert lines[0].startswith("• Worker ∗a∗ ˋbˋ ∼c∼ ˍd_ my_e is gone <")
    assert lines[4:] == ["Mend x.", "Mend y.", "Mend z."]
