"""Compose, the chart, the systemd units and the Cloud Run example start the same commands with the same settings."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from deploying import SECRETS, SERVICES, UNITS, compose, of_compose, of_container, of_unit, rendered, understood
from helpers import ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.repository

ESSENTIAL = {
    "monitor": {"CELERYSCOPE_BROKER_URL", "CELERYSCOPE_STATE_DIR", "CELERYSCOPE_LISTEN"},
    "alerter": {
        *("CELERYSCOPE_BROKER_URL", "CELERYSCOPE_STATE_DIR", "CELERYSCOPE_LISTEN"),
        *("CELERYSCOPE_SLACK_TOKEN", "CELERYSCOPE_SLACK_CHANNEL"),
    },
    "flower": {
        *("CELERYSCOPE_BROKER_URL", "CELERYSCOPE_STATE_DIR", "CELERYSCOPE_FLOWER_LISTEN"),
        "CELERYSCOPE_FLOWER_AUTH",
    },
}
"""What each deployment gives a service; the rest is the user's to add, in each of them."""

CHART = {
    "broker": {"existingSecret": "broker"},
    "monitor": {"enabled": True},
    "alerter": {"enabled": True, "slack": {"existingSecret": "slack"}, "channel": "#celery-alerts"},
    "flower": {"enabled": True, "auth": {"existingSecret": "flower"}},
}


@pytest.fixture(scope="module", name="services")
def _services(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return compose(tmp_path_factory.mktemp("compose"))


def container(objects: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (item,) = (o for o in objects if o["kind"] == "Deployment" and o["metadata"]["name"] == f"celeryscope-{name}")
    found: dict[str, Any] = item["spec"]["template"]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize("name", SERVICES)
def test_the_same_command_with_the_same_settings(name: str, services: dict[str, dict[str, Any]], tmp_path: Path):
    by_compose = of_compose(services[name], tmp_path)
    by_unit = of_unit(name, tmp_path)
    by_chart = of_container(container(rendered(tmp_path, CHART), name))
    assert by_compose.argv == by_unit.argv == by_chart.argv == ["celeryscope", name]
    assert by_chart.settings == by_unit.settings == ESSENTIAL[name]

    # What Compose gives beside that comes out the same where the chart is given it.
    more = {key: value for key, value in by_compose.env.items() if key in by_compose.settings - ESSENTIAL[name]}
    own = {key: value for key, value in more.items() if key.startswith("CELERYSCOPE_")}
    assert set(more) - set(own) <= {"CELERY_RESULT_BACKEND", "APP"}
    settings = {key.removeprefix("CELERYSCOPE_").lower(): value for key, value in own.items() if key not in SECRETS}
    values = {**CHART, name: {**CHART[name], "settings": settings}}
    again = of_container(container(rendered(tmp_path, values), name))
    assert again.settings == by_compose.settings - {"CELERY_RESULT_BACKEND", "APP"}
    # And systemd takes it from a file.
    assert f"EnvironmentFile=-/etc/celeryscope/{name}.env" in (UNITS / f"celeryscope-{name}.service").read_text()
    for start in (by_compose, by_unit, by_chart, again):
        understood(start)


@pytest.mark.parametrize("name", SERVICES)
def test_the_same_port_and_the_same_limits(name: str, services: dict[str, dict[str, Any]], tmp_path: Path):
    unit = (UNITS / f"celeryscope-{name}.service").read_text()
    rendered_container = container(rendered(tmp_path, CHART), name)
    starts = [of_compose(services[name], tmp_path), of_unit(name, tmp_path), of_container(rendered_container)]
    ports = set()
    for start in starts:
        settings = understood(start)
        ports.add((settings.flower_listen if name == "flower" else settings.listen).port)
    assert ports == {rendered_container["ports"][0]["containerPort"]}
    memory = int(services[name]["mem_limit"]) >> 20
    assert rendered_container["resources"]["limits"]["memory"] == f"{memory}Mi"
    assert f"MemoryMax={memory}M" in unit
    assert services[name]["stop_grace_period"] == "30s"
    assert "TimeoutStopSec=30" in unit
    assert f"TasksMax={services[name]['pids_limit']}" in unit


def test_flower_on_cloud_run_is_the_same_too(services: dict[str, dict[str, Any]], tmp_path: Path):
    service = yaml.safe_load((ROOT / "deploy/cloudrun/flower.yaml").read_text())
    spec = service["spec"]["template"]["spec"]
    (there,) = spec["containers"]
    start = of_container(there)
    assert start.argv == of_compose(services["flower"], tmp_path).argv
    assert start.settings == ESSENTIAL["flower"]
    start.env["CELERYSCOPE_STATE_DIR"] = str(tmp_path / "flower")
    assert understood(start).flower_listen.port == there["ports"][0]["containerPort"]
    scale = service["spec"]["template"]["metadata"]["annotations"]
    assert scale["autoscaling.knative.dev/minScale"] == scale["autoscaling.knative.dev/maxScale"] == "1"
    assert service["metadata"]["annotations"]["run.googleapis.com/ingress"] != "all"


@pytest.mark.parametrize("name", SERVICES)
def test_units_may_do_nothing_but_their_work(name: str):
    text = (UNITS / f"celeryscope-{name}.service").read_text()
    options = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    assert options["DynamicUser"] == options["NoNewPrivileges"] == options["ProtectHome"] == "yes"
    assert options["ProtectSystem"] == "strict"
    assert options["CapabilityBoundingSet"] == options["AmbientCapabilities"] == ""
    assert options["StateDirectory"] == f"celeryscope-{name}"
    # A broker that is away when the monitor starts ends it, with the exit code of a wrong setting.
    assert (options["Restart"], options["StartLimitIntervalSec"]) == ("always", "0")
    assert "RestartPreventExitStatus" not in options
    assert not re.search(r"(?i)^Environment=.*(password|token|auth|url)=(?!%d/)", text, re.MULTILINE)
    # The three differ in what they are and in nothing else.
    assert shape(text) == shape((UNITS / "celeryscope-monitor.service").read_text())


def shape(unit: str) -> list[str]:
    names = re.findall(r"^([A-Z]\w+)=", unit, re.MULTILINE)
    return [name for name in names if name not in {"LoadCredential", "Environment"}]
