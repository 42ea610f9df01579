"""A real Prometheus that is not let in: the target is down, with a reason, and nobody's password is in that reason."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import bcrypt
import httpx
import pytest
import trustme
from helpers import Process, RedisServer, eventually, free_port, system_command

pytestmark = pytest.mark.system

PASSWORD, WRONG = "right-c4n4ry", "wrong-c4n4ry"
JOBS = {
    "right": ("https", "ca.crt", PASSWORD),
    "wrong-password": ("https", "ca.crt", WRONG),
    "no-password": ("https", "ca.crt", ""),
    "wrong-ca": ("https", "other.crt", PASSWORD),
    "wrong-ca-and-password": ("https", "other.crt", WRONG),
    "plain-http": ("http", "ca.crt", PASSWORD),
}
REASONS = {
    "wrong-password": "401",
    "no-password": "401",
    "wrong-ca": "certificate",
    "wrong-ca-and-password": "certificate",
    "plain-http": "400",
}
"""A word of what Prometheus says of each that is down."""


def job(name: str, port: int, folder: Path) -> dict[str, Any]:
    scheme, ca, password = JOBS[name]
    made: dict[str, Any] = {"job_name": name, "scheme": scheme, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
    if scheme == "https":
        made["tls_config"] = {"ca_file": str(folder / ca)}
    if password:
        made["basic_auth"] = {"username": "prometheus", "password": password}
    return made


def certificates(folder: Path) -> None:
    ca, other = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.crt")
    other.cert_pem.write_to_path(folder / "other.crt")
    cert = ca.issue_cert("127.0.0.1")
    cert.cert_chain_pems[0].write_to_path(folder / "server.crt")
    cert.private_key_pem.write_to_path(folder / "server.key")
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(5)).decode()
    tls = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"
    (folder / "web.yml").write_text(f"{tls}basic_auth_users:\n  prometheus: {hashed}\n")


@pytest.fixture(name="scene", scope="module")
def _scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Process, Process]]:
    """A real monitor behind TLS and a password, and a Prometheus that tries it in every way; the latter's address."""
    folder = tmp_path_factory.mktemp("scene")
    certificates(folder)
    with ExitStack() as stack:
        server = RedisServer(folder)
        stack.callback(server.stop)
        argv = [sys.executable, "-m", "celeryscope", "monitor", "--broker", server.url, "--listen", "127.0.0.1:0"]
        monitor = Process([*argv, "--web.config.file", folder / "web.yml", "--log-level", "debug"],
                          log=folder / "monitor.log", cwd=folder,
                          env={name: "" for name in os.environ if name.startswith("CELERY_")})  # fmt: skip
        stack.callback(monitor.stop)
        monitor.wait_for("serves https://")
        port = int(monitor.output.split("serves https://127.0.0.1:", 1)[1].split("/", 1)[0])
        given = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
                 "scrape_configs": [job(name, port, folder) for name in JOBS]}  # fmt: skip
        (folder / "prometheus.yml").write_text(json.dumps(given))
        url, prometheus = started(folder, stack)
        yield url, prometheus, monitor


def started(folder: Path, stack: ExitStack) -> tuple[str, Process]:
    for attempt in range(5):
        port = free_port()
        argv = [system_command("prometheus"), f"--config.file={folder}/prometheus.yml", "--log.level=debug",
                f"--storage.tsdb.path={folder}/data{attempt}", f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
        process = Process(argv, log=folder / f"prometheus{attempt}.log", cwd=folder)
        stack.callback(process.stop)
        try:
            process.wait_for("Server is ready to receive web requests", 60)
        except RuntimeError:  # somebody else was quicker
            continue
        return f"http://127.0.0.1:{port}", process
    raise RuntimeError(f"prometheus does not start; see {folder}")


def targets(url: str) -> dict[str, Any]:
    answer = httpx.get(f"{url}/api/v1/targets", trust_env=False, timeout=10).json()
    return {target["labels"]["job"]: target for target in answer["data"]["activeTargets"]}


def judged(url: str) -> dict[str, Any]:
    found = targets(url)
    assert set(found) == set(JOBS)
    assert "unknown" not in {target["health"] for target in found.values()}
    return found


def test_who_has_the_password_and_the_authority_is_let_in(scene: tuple[str, Process, Process]) -> None:
    eventually(lambda: judged(scene[0])["right"]["health"] == "up", 60)


@pytest.mark.parametrize("name", REASONS)
def test_who_has_not_is_down_with_a_reason_and_sees_nothing(scene: tuple[str, Process, Process], name: str) -> None:
    url = scene[0]
    eventually(lambda: judged(url), 60)
    target = judged(url)[name]
    assert target["health"] == "down"
    assert REASONS[name] in target["lastError"]
    query = {"query": f'{{job="{name}", __name__=~"celery.*"}}'}
    assert httpx.get(f"{url}/api/v1/query", params=query, trust_env=False).json()["data"]["result"] == []


def test_no_password_is_in_what_prometheus_and_the_monitor_say(scene: tuple[str, Process, Process]) -> None:
    """Neither in the reasons that its page of targets shows to everybody, nor in a log at debug level."""
    url, prometheus, monitor = scene
    eventually(lambda: judged(url), 60)
    assert "c4n4ry" not in json.dumps(targets(url))
    for process in (prometheus, monitor):
        assert "c4n4ry" not in process.output
