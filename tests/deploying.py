"""How each deployment starts a service: read from the chart, the systemd units, Compose and the Cloud Run example."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from celeryscope import cli
from celeryscope.monitor.configuration import load
from helpers import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping

CHART = ROOT / "deploy" / "helm" / "celeryscope"
UNITS = ROOT / "deploy" / "systemd"
SERVICES = ("monitor", "alerter", "flower")
SECRETS = {
    "CELERY_BROKER_URL": "redis://:secret@broker:6379/0",
    "CELERYSCOPE_BROKER_URL": "redis://:secret@broker:6379/0",
    "CELERYSCOPE_SLACK_TOKEN": "xoxb-secret",
    "CELERYSCOPE_FLOWER_AUTH": "admin:secret",
    "CELERYSCOPE_STORE": "postgresql://user:secret@db/incidents",
    "CELERYSCOPE_RABBITMQ_MANAGEMENT_URL": "http://user:secret@rabbit:15672",
}
"""What a deployment takes from a secret, and what this stands for in tests."""


@dataclass
class Start:
    """A command, and the environment it gets; where a value comes from a secret, `SECRETS` has it."""

    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> set[str]:
        """The names of the settings that are given, however: from a file, by Celery's name or by ours."""
        names = {name.removesuffix("_FILE") if name.removesuffix("_FILE") in SECRETS else name for name in self.env}
        return {{"CELERY_BROKER_URL": "CELERYSCOPE_BROKER_URL"}.get(name, name) for name in names} - {"MODE"}


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    binary = Path(sys.executable).with_name("helm")
    assert binary.exists(), "helm-binary is among the development pins: run `make test`"
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    return subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True, timeout=60, env=env)


def rendered(folder: Path, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the objects that the chart makes of these values."""
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(dict(values)))
    done = helm("template", "celeryscope", CHART, "--namespace", "monitoring", "--values", file)
    assert done.returncode == 0, done.stderr
    return [item for item in yaml.safe_load_all(done.stdout) if item]


def of_container(container: Mapping[str, Any]) -> Start:
    """Return how a container of Kubernetes' form starts; what may be missing of a secret is left out."""
    env = {}
    for item in container["env"]:
        source = item.get("valueFrom", {}).get("secretKeyRef")
        if source is None:
            env[item["name"]] = item["value"]
        elif not source.get("optional") or item["name"] in SECRETS:
            env[item["name"]] = SECRETS[item["name"]]
    return Start([*container["command"], *container.get("args", ())], env)


def of_unit(name: str, folder: Path) -> Start:
    """Return how systemd starts a service; its credentials are files in `folder`, its variables the shipped ones."""
    text = (UNITS / f"celeryscope-{name}.service").read_text()
    (start,) = re.findall(r"^ExecStart=(.+)$", text, re.MULTILINE)
    env = dict(item.split("=", 1) for item in re.findall(r"^Environment=(.+)$", text, re.MULTILINE))
    shipped = UNITS / f"{name}.env"
    if shipped.exists():
        env.update(re.findall(r'^(\w+)="?(.*?)"?$', shipped.read_text(), re.MULTILINE))
    credentials = dict(item.split(":", 1) for item in re.findall(r"^LoadCredential=(.+)$", text, re.MULTILINE))
    for variable, value in env.items():
        if value.startswith("%d/"):
            assert value[3:] in credentials, f"{variable} names a credential that is not loaded"
            (folder / value[3:]).write_text(SECRETS[variable.removesuffix("_FILE")])
        env[variable] = value.replace("%d", str(folder)).replace("%S", "/var/lib")
    binary, *arguments = start.split()
    return Start([Path(binary).name, *arguments], env)


def make_env(*arguments: str) -> str:
    """Return the settings for Compose that deploy/make-env makes, with passwords of their own."""
    return subprocess.run(
        [ROOT / "deploy/make-env", *arguments, "--out", "-"], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def compose(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the services of docker-compose.yml, as Compose understands it."""
    binary = Path(sys.executable).with_name("docker-compose")
    (folder / "env").write_text(make_env("demo"))
    done = subprocess.run(
        [binary, "-f", ROOT / "docker-compose.yml", "--env-file", folder / "env", "config", "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
    )
    services: dict[str, dict[str, Any]] = json.loads(done.stdout)["services"]
    return services


def of_compose(service: Mapping[str, Any], folder: Path) -> Start:
    """Return how the image's entry point starts a service of docker-compose.yml."""
    given = {key: value for key, value in service["environment"].items() if value}
    stand_in = folder / "celeryscope"
    stand_in.write_text('#!/bin/sh\necho celeryscope "$@"\nenv | grep ^CELERY\n')
    stand_in.chmod(0o755)
    ran = subprocess.run(
        ["/bin/sh", ROOT / "deploy/entrypoint.sh"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"PATH": f"{folder}:{os.environ['PATH']}", **given},
    )
    command, *variables = ran.stdout.splitlines()
    return Start(command.split(), dict(item.split("=", 1) for item in variables))


def understood(start: Start) -> Any:
    """Read the settings as the command itself would; SettingsError where it would refuse to start."""
    binary, command = start.argv[:2]
    assert binary == "celeryscope"
    (settings,) = (cli._resolve(where) for where in cli.SETTINGS if cli._resolve(where).section == command)
    click_command = cli.cli.get_command(None, command)
    parsed = click_command.make_context(command, start.argv[2:]).params
    options = {name: value for name, value in parsed.items() if name in settings.model_fields}
    return load(settings, options=options, environ=start.env, also_known=cli.known_settings())
