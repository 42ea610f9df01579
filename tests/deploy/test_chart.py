"""The Helm chart, rendered by a real helm: valid for Kubernetes, hardened, without default passwords, and startable."""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import celeryscope
import kubernetes_validate
import pytest
import yaml
from celeryscope import cli
from celeryscope.dashboards.thresholds import defaults
from celeryscope.monitor.configuration import Option
from deploying import CHART, SERVICES, helm, of_container, rendered, understood
from documented import commands
from helpers import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from documented import Command

pytestmark = pytest.mark.repository

OBJECTS = list[dict[str, Any]]
PLAIN = {"broker": {"url": "redis://:secret@broker:6379/0"}}
ALL = {
    "broker": {"existingSecret": "my-broker", "key": "url"},
    "config": '# {{ no template }}\nslack_fallback_channel = "#ops"\n[monitor]\nmax_live_tasks = 1000\n',
    "webConfig": {"existingSecret": "web"},
    "image": {"repository": "registry.example.com/celeryscope", "digest": "sha256:" + "ab" * 32},
    "imagePullSecrets": [{"name": "registry"}],
    "serviceAccount": {"name": "celeryscope"},
    "monitor": {
        "replicas": 2,
        "settings": {"log_level": "info", "sample_interval": 5, "max_live_tasks": 3_000_000, "enable_events": True},
        "args": ["--compat", "celery-exporter"],
        "extraEnv": [
            {
                "name": "CELERYSCOPE_RABBITMQ_MANAGEMENT_URL",
                "valueFrom": {"secretKeyRef": {"name": "rabbit", "key": "url"}},
            }
        ],
        "podAnnotations": {"team": "shop"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
    },
    "alerter": {
        "enabled": True,
        "slack": {"token": "xoxb-secret"},
        "channel": "#celery",
        "store": {"url": "postgresql://user:secret@db/incidents"},
        "settings": {"quiet": "5m"},
        "persistence": {"storageClass": "fast"},
    },
    "flower": {
        "enabled": True,
        "app": "proj",
        "image": {"repository": "registry.example.com/shop", "tag": "4.2"},
        "auth": {"value": "admin:secret"},
        "urlPrefix": "tools/flower",
        "persistence": {"enabled": True, "existingClaim": "mine"},
    },
    "serviceMonitor": {"enabled": True, "labels": {"release": "prom"}, "endpoint": {"scheme": "https"}},
    "prometheusRule": {"enabled": True},
    "dashboards": {"enabled": True},
    "networkPolicy": {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]},
}
NOTHING = {"monitor": {"enabled": False}}
FLOWER = {"enabled": True, "auth": {"value": "a:b"}}


@pytest.fixture(scope="module", name="plain")
def _plain(tmp_path_factory: pytest.TempPathFactory) -> OBJECTS:
    return rendered(tmp_path_factory.mktemp("plain"), PLAIN)


@pytest.fixture(scope="module", name="everything")
def _everything(tmp_path_factory: pytest.TempPathFactory) -> OBJECTS:
    return rendered(tmp_path_factory.mktemp("everything"), ALL)


def by_kind(objects: OBJECTS) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for item in objects:
        assert item["metadata"]["name"] not in found[item["kind"]]
        assert item["metadata"]["namespace"] == "monitoring"
        found[item["kind"]][item["metadata"]["name"]] = item
    return found


def pods(objects: OBJECTS) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield component, pod and container of each Deployment."""
    for item in by_kind(objects)["Deployment"].values():
        pod = item["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        yield container["name"], pod, container


@pytest.mark.parametrize("values", [PLAIN, ALL, NOTHING], ids=["plain", "everything", "nothing"])
def test_helm_lints_it(values: dict[str, Any], tmp_path: Path):
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    done = helm("lint", "--strict", CHART, "--values", tmp_path / "values.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("version", ["1.25", "1.37"])
def test_kubernetes_accepts_every_object(version: str, plain: OBJECTS, everything: OBJECTS):
    """Those of the Prometheus operator are looked at below: Kubernetes has no schema for them."""
    for item in (*plain, *everything):
        if not item["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(item, version, strict=True)


def test_what_is_installed_is_what_was_asked_for(plain: OBJECTS, everything: OBJECTS, tmp_path: Path):
    assert rendered(tmp_path, NOTHING) == []
    assert {kind: len(items) for kind, items in by_kind(plain).items()} == {
        **dict.fromkeys(("Deployment", "Service", "Secret", "NetworkPolicy", "PodDisruptionBudget"), 1),
    }
    boards = len(list((ROOT / "dashboards/generated/boards").glob("*.json")))
    assert {kind: len(items) for kind, items in by_kind(everything).items()} == {
        **dict.fromkeys(("Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget"), 3),
        "Secret": 2,
        "PersistentVolumeClaim": 1,
        "ConfigMap": 1 + boards,
        "ServiceMonitor": 2,
        "PrometheusRule": 1,
    }


def test_no_pod_may_do_more_than_its_work(plain: OBJECTS, everything: OBJECTS):
    for name, pod, container in (*pods(plain), *pods(everything)):
        assert pod["automountServiceAccountToken"] is False, name
        # Else a Service named celeryscope puts CELERYSCOPE_PORT into the environment, and no such setting is known.
        assert pod["enableServiceLinks"] is False, name
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert min(security["runAsUser"], security["runAsGroup"], security["fsGroup"]) >= 10_000
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"memory"} <= set(container["resources"]["limits"])
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not any("hostPath" in volume for volume in pod["volumes"])
        mounted = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
        assert {path for path, read_only in mounted.items() if not read_only} == {"/tmp", "/var/lib/celeryscope"}
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_user_is_that_of_the_image(plain: OBJECTS):
    user = re.findall(r"^USER (\d+):(\d+)$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)
    for _, pod, _ in pods(plain):
        security = pod["securityContext"]
        assert user == [(str(security["runAsUser"]), str(security["runAsGroup"]))]


@pytest.mark.parametrize("values", [PLAIN, ALL], ids=["plain", "everything"])
def test_every_container_starts(values: dict[str, Any], tmp_path: Path):
    """The commands take their options, variables and the file, as they would in the pod."""
    objects = rendered(tmp_path, values)
    config = by_kind(objects)["ConfigMap"].get("celeryscope-config", {}).get("data", {})
    web = "basic_auth_users: {}\n"
    for name, _, container in pods(objects):
        start = of_container(container)
        for mounted, files in (("/etc/celeryscope", config), ("/etc/celeryscope-web", {"web.yml": web})):
            folder = tmp_path / mounted.rpartition("/")[2]
            folder.mkdir(exist_ok=True)
            for file, text in files.items():
                (folder / file).write_text(text)
            start.env = {
                key: str(folder / value.rpartition("/")[2]) if value.startswith(mounted + "/") else value
                for key, value in start.env.items()
            }
        assert start.argv[:2] == ["celeryscope", name]
        assert start.env["MODE"] == name
        settings = understood(start)
        listen = settings.flower_listen if name == "flower" else settings.listen
        assert (listen.host, listen.port) == ("", container["ports"][0]["containerPort"])
        if values is ALL and name == "monitor":
            assert (settings.max_live_tasks, settings.sample_interval, settings.enable_events) == (3_000_000, 5, True)
            assert settings.compat == ("celery-exporter",)
        if values is ALL and name == "alerter":
            assert settings.slack_fallback_channel == "#ops"
            assert config["celeryscope.toml"] == ALL["config"]
        if values is ALL and name == "flower":
            assert (settings.flower_url_prefix, settings.app) == ("tools/flower", "proj")


def test_probes_ask_what_the_service_answers(plain: OBJECTS, everything: OBJECTS, tmp_path: Path):
    def paths(container: dict[str, Any]) -> list[str]:
        kinds = ("startupProbe", "livenessProbe", "readinessProbe")
        return [container[kind].get("httpGet", {}).get("path", "") for kind in kinds]

    ((_, _, monitor),) = pods(plain)
    assert paths(monitor) == ["/-/healthy", "/-/healthy", "/-/ready"]
    behind_a_password = {name: container for name, _, container in pods(everything)}
    assert paths(behind_a_password["flower"]) == ["/tools/flower/healthcheck"] * 3
    for name in ("monitor", "alerter"):
        container = behind_a_password[name]
        assert container["livenessProbe"]["exec"]["command"][-1] == "/opt/celeryscope/healthcheck.py"
        assert container["readinessProbe"]["tcpSocket"] == {"port": "http"}
    ((_, _, flower),) = pods(rendered(tmp_path, {**PLAIN, "monitor": {"enabled": False}, "flower": FLOWER}))
    assert set(paths(flower)) == {"/healthcheck"}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "name a Secret that holds your broker's URL (broker.existingSecret)"),
        ({"broker": {"url": "redis://a", "existingSecret": "b"}}, "give existingSecret or url, not both"),
        ({**PLAIN, "alerter": {"enabled": True}}, "name a Secret that holds Slack's bot token or webhook"),
        ({**PLAIN, "alerter": {"enabled": True, "slack": {"token": "x"}}}, "alerter.channel: name the channel"),
        ({**PLAIN, "flower": {"enabled": True}}, "name a Secret that holds USER:PASSWORD (flower.auth.existingSecret)"),
        ({**PLAIN, "flower": {"enabled": True, "auth": {"value": "no colon"}}}, "flower.auth.value"),
        ({**PLAIN, "monitor": {"replicas": 2, "persistence": {"enabled": True}}}, "cannot share one volume"),
        (
            {**PLAIN, "alerter": {"enabled": True, "replicas": 2, "channel": "#a", "slack": {"token": "x"}}},
            "several alerters need a store that they share",
        ),
        ({**PLAIN, "monitro": {"replicas": 2}}, "monitro"),
        ({**PLAIN, "monitor": {"settings": {"LOG_LEVEL": "info"}}}, "monitor.settings"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_installed(values: dict[str, Any], says: str, tmp_path: Path):
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    done = helm("template", "celeryscope", CHART, "--values", tmp_path / "values.yaml")
    assert done.returncode != 0
    assert says in done.stderr


def test_secrets_are_in_secrets_alone(everything: OBJECTS):
    for item in everything:
        if item["kind"] != "Secret":
            assert "secret@" not in json.dumps(item)
            assert "xoxb-" not in json.dumps(item)
    made = by_kind(everything)["Secret"]
    assert set(made["celeryscope-alerter"]["stringData"]) == {"slack-token", "store"}
    named = {
        (item["valueFrom"]["secretKeyRef"]["name"], item["valueFrom"]["secretKeyRef"]["key"])
        for _, _, container in pods(everything)
        for item in container["env"]
        if "valueFrom" in item and not item["valueFrom"]["secretKeyRef"].get("optional")
    }
    ours = {(name, key) for name, secret in made.items() for key in secret["stringData"]}
    assert named - ours == {("my-broker", "url"), ("rabbit", "url")}
    assert ours - named == {("celeryscope-alerter", "slack-token")}


def secret_settings() -> dict[str, str]:
    """Return name → the beginning of its option, of every setting that is secret."""
    return {
        name: option.flag or f"--{name.replace('_', '-')}"
        for where in cli.SETTINGS
        for name, field in cli._resolve(where).model_fields.items()
        for option in field.metadata
        if isinstance(option, Option) and option.secret
    }


PLANTED = "s3cr3t-planted"
ON = {
    **PLAIN,
    "alerter": {"enabled": True, "slack": {"existingSecret": "slack"}, "channel": "#celery"},
    "flower": FLOWER,
}


@pytest.mark.parametrize("name", sorted(secret_settings()))
def test_a_secret_setting_is_refused_where_others_than_secrets_would_show_it(name: str, tmp_path: Path):
    """Each way: as a setting, as a plain variable, as an option and in the file."""
    service = "flower" if "flower" in name else "alerter" if name.startswith(("slack", "store")) else "monitor"
    variable = f"CELERYSCOPE_{name.upper()}"
    value = f"redis://:{PLANTED}@host/0" if name.endswith(("broker_url", "management_url", "store")) else PLANTED
    planted: list[tuple[dict[str, Any], str]] = [
        ({"settings": {name: value}}, f"{service}.settings.{name}: it is a secret"),
        ({"extraEnv": [{"name": variable, "value": value}]}, f"{service}.extraEnv: {variable} is a secret"),
    ]
    if name not in {"status_password", "grafana_token"}:  # no service has them as options
        planted.append(({"args": [secret_settings()[name], value]}, f"{service}.args: "))
    for part, says in planted:
        refused({**ON, service: {**ON.get(service, {}), **part}}, says, tmp_path)
    refused({**ON, "config": f'[{service}]\n{name} = "{value}"\n'}, "config: ", tmp_path)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"config": f'[brokers]\nmain = "redis://:{PLANTED}@a/0"\n'},
            "belong in monitor.extraEnv and alerter.extraEnv",
        ),
        ({"config": f'brokers = {{main = "amqp://me:{PLANTED}@a//"}}\n'}, "a ConfigMap is for all to read"),
        ({"config": f'alerter = {{slack_token = "{PLANTED}"}}\n'}, "config: slack_token is a secret"),
        ({"monitor": {"args": [f"--broker=redis://:{PLANTED}@a/0"]}}, "monitor.args: "),
        (
            {"monitor": {"extraEnv": [{"name": "CELERY_RESULT_BACKEND", "value": f"redis://:{PLANTED}@a/0"}]}},
            "the value of CELERY_RESULT_BACKEND",
        ),
        ({"config": '[flower]\nport = "1"\n'}, "give it [flower] as flower.settings"),
    ],
)
def test_passwords_elsewhere_are_refused_too(values: dict[str, Any], says: str, tmp_path: Path):
    refused({**ON, **values}, says, tmp_path)


def refused(values: dict[str, Any], says: str, folder: Path) -> None:
    (folder / "values.yaml").write_text(yaml.safe_dump(values))
    done = helm("template", "celeryscope", CHART, "--values", folder / "values.yaml")
    assert done.returncode != 0, values
    assert says in done.stderr, (values, done.stderr)
    assert PLANTED not in done.stderr + done.stdout


def test_no_secret_that_is_given_shows_up_outside_of_secrets(tmp_path: Path):
    """Every value of the chart that holds a secret is planted at once."""
    values = {
        **ALL,
        "broker": {"url": f"redis://:{PLANTED}-broker@broker/0"},
        "alerter": {
            **ALL["alerter"],
            "slack": {"token": f"{PLANTED}-token", "webhookUrl": f"https://hooks.slack.com/{PLANTED}-hook"},
            "store": {"url": f"postgresql://user:{PLANTED}-store@db/incidents"},
        },
        "flower": {**ALL["flower"], "auth": {"value": f"admin:{PLANTED}-flower"}},
    }
    objects = rendered(tmp_path, values)
    assert [item["kind"] for item in objects if item["kind"] != "Secret" and PLANTED in json.dumps(item)] == []
    shown = json.dumps([item for item in objects if item["kind"] == "Secret"])
    assert set(re.findall(rf"{PLANTED}-(\w+)", shown)) == {"broker", "token", "hook", "store", "flower"}


def test_what_only_looks_like_a_secret_is_taken(tmp_path: Path):
    config = (
        '# slack_token = "…"\n[brokers]\nmain = "amqp://celeryscope@rabbit//"\n[alerter]\nslack_token_file = "/a"\n'
    )
    objects = rendered(tmp_path, {**ON, "config": config})
    assert by_kind(objects)["ConfigMap"]["celeryscope-config"]["data"] == {"celeryscope.toml": config}


def test_flower_gets_no_file_for_it_watches_one_broker(everything: OBJECTS):
    reads = {
        name: {item["name"] for item in container["env"]} & {"CELERYSCOPE_CONFIG"}
        | {volume["name"] for volume in pod["volumes"]} & {"config"}
        for name, pod, container in pods(everything)
    }
    assert reads == {
        "monitor": {"CELERYSCOPE_CONFIG", "config"},
        "alerter": {"CELERYSCOPE_CONFIG", "config"},
        "flower": set(),
    }


@pytest.mark.parametrize("replicas", [0, 1, 3])
def test_there_are_as_many_pods_as_asked_for(replicas: int, tmp_path: Path):
    values = {**PLAIN, "monitor": {"replicas": replicas}}
    (deployment,) = by_kind(rendered(tmp_path, values))["Deployment"].values()
    assert deployment["spec"]["replicas"] == replicas


def test_fields_of_the_endpoint_are_merged_with_ours(tmp_path: Path):
    """Were a key there twice, the API server would refuse the object, or take one of them without a word."""
    more = {"targetLabel": "cluster", "replacement": "eu"}
    endpoint = {"interval": "60s", "relabelings": [more], "basicAuth": {"username": {"name": "a", "key": "b"}}}
    values = {**PLAIN, "serviceMonitor": {"enabled": True, "endpoint": endpoint}}
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    done = helm("template", "celeryscope", CHART, "--values", tmp_path / "values.yaml")
    (text,) = (part for part in done.stdout.split("\n---\n") if "kind: ServiceMonitor" in part)
    assert [text.count(f"{key}:") for key in ("interval", "relabelings", "port", "path")] == [1, 1, 1, 1]
    (made,) = yaml.safe_load(text)["spec"]["endpoints"]
    ours = {"targetLabel": "job", "replacement": defaults().monitor_job}
    assert made == {"port": "http", "path": "/metrics", **endpoint, "relabelings": [ours, more]}


def test_selectors_find_the_pods_they_are_for(everything: OBJECTS):
    found = by_kind(everything)
    labels = {name: item["spec"]["template"]["metadata"]["labels"] for name, item in found["Deployment"].items()}

    def matched(wanted: dict[str, str], candidates: dict[str, dict[str, str]]) -> list[str]:
        return [name for name, has in candidates.items() if wanted.items() <= has.items()]

    assert set(labels) == {f"celeryscope-{name}" for name in SERVICES}
    for name, item in found["Deployment"].items():
        assert matched(item["spec"]["selector"]["matchLabels"], labels) == [name]
        assert matched(found["Service"][name]["spec"]["selector"], labels) == [name]
        assert matched(found["PodDisruptionBudget"][name]["spec"]["selector"]["matchLabels"], labels) == [name]
        policy = found["NetworkPolicy"][name]["spec"]
        assert matched(policy["podSelector"]["matchLabels"], labels) == [name]
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        assert policy["ingress"][0]["ports"] == [{"port": "http", "protocol": "TCP"}]
        assert {port["port"] for port in policy["egress"][0]["ports"]} == {53}
    services = {name: item["metadata"]["labels"] for name, item in found["Service"].items()}
    for name, item in found["ServiceMonitor"].items():
        assert matched(item["spec"]["selector"]["matchLabels"], services) == [name]


def test_prometheus_scrapes_under_the_names_that_the_rules_know(everything: OBJECTS):
    jobs = {}
    for name, item in by_kind(everything)["ServiceMonitor"].items():
        assert item["metadata"]["labels"]["release"] == "prom"
        (endpoint,) = item["spec"]["endpoints"]
        assert set(endpoint) == {"port", "path", "interval", "relabelings", "scheme"}
        assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
        (relabeling,) = endpoint["relabelings"]
        assert set(relabeling) == {"targetLabel", "replacement"}
        assert relabeling["targetLabel"] == "job"
        jobs[name] = relabeling["replacement"]
    assert jobs == {"celeryscope-monitor": defaults().monitor_job, "celeryscope-alerter": defaults().alerter_job}


def test_rules_and_boards_arrive_unchanged(everything: OBJECTS):
    """They are full of double braces, which belong to Prometheus and Grafana and not to Helm."""
    (rule,) = by_kind(everything)["PrometheusRule"].values()
    shipped = yaml.safe_load((ROOT / "dashboards/generated/kubernetes/celeryscope-prometheusrule.yml").read_text())
    assert rule["apiVersion"] == shipped["apiVersion"]
    assert rule["spec"] == shipped["spec"]
    assert "{{ $labels." in json.dumps(rule["spec"])
    arrived = {}
    for item in by_kind(everything)["ConfigMap"].values():
        if "celeryscope.toml" not in item["data"]:
            assert item["metadata"]["labels"]["grafana_dashboard"] == "1"
            arrived.update(item["data"])
    assert arrived == {path.name: path.read_text() for path in (ROOT / "dashboards/generated/boards").glob("*.json")}


def test_the_release_fits_into_the_secret_that_helm_keeps_it_in(everything: OBJECTS):
    """Kubernetes takes 1 MiB; Helm stores the chart and what it rendered, compressed and then twice in base64."""
    chart = b"".join(path.read_bytes() for path in sorted(CHART.rglob("*")) if path.is_file())
    size = len(gzip.compress(chart + yaml.safe_dump_all(everything).encode()))
    assert size * 16 / 9 < 1 << 19


def test_a_change_of_a_secret_or_the_file_starts_new_pods(tmp_path: Path):
    def annotations(values: dict[str, Any]) -> dict[str, str]:
        (item,) = by_kind(rendered(tmp_path, values))["Deployment"].values()
        return dict(item["spec"]["template"]["metadata"]["annotations"])

    before = annotations(PLAIN)
    assert annotations(PLAIN) == before
    assert annotations({"broker": {"url": "redis://other/0"}}) != before
    assert annotations({**PLAIN, "config": "log_level = 'info'"}) != before


def test_a_change_starts_new_pods_of_what_reads_it_alone(tmp_path: Path):
    def annotations(values: dict[str, Any]) -> dict[str, dict[str, str]]:
        items = by_kind(rendered(tmp_path, values))["Deployment"]
        return {name: item["spec"]["template"]["metadata"]["annotations"] for name, item in items.items()}

    def changed(**values: Any) -> set[str]:
        after = annotations({**ON, **values})
        return {name.removeprefix("celeryscope-") for name in before if before[name] != after[name]}

    before = annotations(ON)
    assert changed(broker={"url": "redis://other/0"}) == {"monitor", "alerter", "flower"}
    assert changed(config="log_level = 'info'") == {"monitor", "alerter"}
    assert changed(flower={"enabled": True, "auth": {"value": "a:c"}}) == {"flower"}
    assert changed(alerter={**ON["alerter"], "store": {"url": "postgresql://db/x"}}) == {"alerter"}


def test_a_volume_has_one_pod_at_a_time(tmp_path: Path):
    values = {**PLAIN, "monitor": {"persistence": {"enabled": True}}}
    found = by_kind(rendered(tmp_path, values))
    (deployment,) = found["Deployment"].values()
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    claims = [v["persistentVolumeClaim"]["claimName"] for v in deployment["spec"]["template"]["spec"]["volumes"][:1]]
    assert claims == list(found["PersistentVolumeClaim"])


def test_the_chart_names_the_version_that_it_installs():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == celeryscope.__version__


def test_the_values_are_those_of_the_schema():
    """Each value has a place in the schema and each place a value: the file is the list of what there is."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())

    def compare(value: Any, schema: dict[str, Any], where: str) -> None:
        if "properties" not in schema:
            return
        assert schema["additionalProperties"] is False, where
        assert set(value) == set(schema["properties"]) - {"global"}, where
        for name, inner in value.items():
            compare(inner, schema["properties"][name], f"{where}.{name}")

    compare(values, schema, "")


INSTALLED = [command for command in commands(ROOT / "docs" / "kubernetes.md") if command.argv[:1] == ["helm"]]


@pytest.mark.parametrize("command", INSTALLED, ids=lambda command: " ".join(command.argv))
def test_what_the_page_installs_can_be_rendered(command: Command, tmp_path: Path):
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    (values,) = re.findall(r"```yaml\n# values.yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "values.yaml").write_text(values)
    here = {"deploy/helm/celeryscope": str(CHART), "values.yaml": str(tmp_path / "values.yaml")}
    start = ["helm", "upgrade", "--install", "celeryscope"]
    assert command.argv[:4] == start
    done = helm("template", "celeryscope", *(here.get(word, word) for word in command.argv[4:]))
    assert done.returncode == 0, done.stderr
    names = {item["metadata"]["name"] for item in yaml.safe_load_all(done.stdout) if item and item["kind"] == "Service"}
    assert "celeryscope-monitor" in names  # what the page forwards a port to
