"""A real Prometheus scrapes us: plain, over TLS with basic auth and a client certificate; promtool likes every name."""

from __future__ import annotations

import subprocess

import bcrypt
import httpx
import pytest
import trustme
from celeryscope.exporters.compat import CompatFacts, compat_exposition
from celeryscope.exporters.http import Server
from celeryscope.exporters.prometheus import Exposition
from celeryscope.exporters.webconfig import WebConfig
from celeryscope.monitor.catalog import METRICS
from celeryscope.monitor.compat import CompatCounts
from celeryscope.monitor.facts import Family
from celeryscope.monitor.values import Address
from helpers import Process, eventually, free_port, running, system_command

pytestmark = pytest.mark.system

HOSTILE = 'evil"} 9\n# EOF \\ mörk 🐍'

WEB = """
tls_server_config:
  cert_file: server.crt
  key_file: server.key
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: ca.crt
  client_allowed_sans: [prometheus.example]
basic_auth_users:
  prometheus: {hash}
"""

SCRAPE = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
- job_name: plain
  static_configs: [{{targets: ["127.0.0.1:{plain}"]}}]
- job_name: compat
  metrics_path: /metrics/celery-exporter
  static_configs: [{{targets: ["127.0.0.1:{plain}"]}}]
- job_name: secure
  scheme: https
  tls_config: {{ca_file: {folder}/ca.crt, cert_file: {folder}/client.crt, key_file: {folder}/client.key}}
  basic_auth: {{username: prometheus, password: s3cret}}
  static_configs: [{{targets: ["127.0.0.1:{secure}"]}}]
- job_name: wrong-password
  scheme: https
  tls_config: {{ca_file: {folder}/ca.crt, cert_file: {folder}/client.crt, key_file: {folder}/client.key}}
  basic_auth: {{username: prometheus, password: wrong}}
  static_configs: [{{targets: ["127.0.0.1:{secure}"]}}]
- job_name: no-certificate
  scheme: https
  tls_config: {{ca_file: {folder}/ca.crt}}
  basic_auth: {{username: prometheus, password: s3cret}}
  static_configs: [{{targets: ["127.0.0.1:{secure}"]}}]
"""


class Everything:
    """One series of every metric of the catalogue."""

    def families(self):
        for metric in METRICS.values():
            value = [1.0] * (len(metric.buckets) + 1) + [2.5] if metric.kind == "histogram" else 7
            yield Family(metric, [(tuple(HOSTILE if label == "task" else label for label in metric.labels), value)])


def pages():
    counts = CompatCounts()
    counts.observe("started", HOSTILE, "q", "w@h", wait=0.5)
    counts.observe("succeeded", HOSTILE, "q", "w@h", runtime=0.5)
    facts = Everything()
    compat = compat_exposition({"": CompatFacts(facts, counts)})
    return {"/metrics": Exposition({"": facts}), "/metrics/celery-exporter": compat}


@pytest.fixture(scope="module", name="query")
def _query(tmp_path_factory):
    """Ask the Prometheus that scrapes both servers: the instant query's result, a list of samples."""
    folder = tmp_path_factory.mktemp("prometheus")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.crt")
    for name, cert in (("server", ca.issue_cert("127.0.0.1")), ("client", ca.issue_cert("prometheus.example"))):
        cert.cert_chain_pems[0].write_to_path(folder / f"{name}.crt")
        cert.private_key_pem.write_to_path(folder / f"{name}.key")
    (folder / "web.yml").write_text(WEB.format(hash=bcrypt.hashpw(b"s3cret", bcrypt.gensalt(10)).decode()))
    with (
        Server(Address("127.0.0.1", 0), pages()) as plain,
        Server(Address("127.0.0.1", 0), pages(), web_config=WebConfig(folder / "web.yml")) as secure,
    ):
        config = SCRAPE.format(plain=plain.port, secure=secure.port, folder=folder)
        (folder / "prometheus.yml").write_text(config)
        process, url = started_prometheus(folder)
        with running(process), httpx.Client(timeout=10) as client:

            def query(expression):
                answer = client.get(f"{url}/api/v1/query", params={"query": expression}).json()
                assert answer["status"] == "success", answer
                return answer["data"]["result"]

            yield query


def started_prometheus(folder):
    """Return a running Prometheus and its address; another port is tried where somebody else was quicker."""
    for attempt in range(5):
        port = free_port()
        process = Process(
            [
                system_command("prometheus"),
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data{attempt}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            log=folder / f"prometheus{attempt}.log",
            cwd=folder,
        )
        try:
            process.wait_for("Server is ready to receive web requests", 60)
        except RuntimeError:  # it ended
            continue
        return process, f"http://127.0.0.1:{port}"
    raise RuntimeError(f"prometheus does not start; see {folder}")


def up(query, job):
    """1 or 0 as Prometheus sees the target, None before the first scrape."""
    found = query(f'up{{job="{job}"}}')
    return int(found[0]["value"][1]) if found else None


@pytest.mark.parametrize("job", ["plain", "compat", "secure"])
def test_prometheus_scrapes(query, job):
    eventually(lambda: up(query, job) == 1, timeout=60)
    name = "celery_task_started_total"
    [sample] = query(f'{name}{{job="{job}"}}')
    assert sample["metric"]["name" if job == "compat" else "task"] == HOSTILE
    assert sample["value"][1] == ("1" if job == "compat" else "7")


@pytest.mark.parametrize("job", ["wrong-password", "no-certificate"])
def test_who_may_not_sees_nothing(query, job):
    eventually(lambda: up(query, job) == 0, timeout=60)
    assert query(f'{{job="{job}", __name__=~"celery.*"}}') == []


def test_every_metric_arrives(query):
    eventually(lambda: up(query, "plain") == 1, timeout=60)
    arrived = {s["metric"]["__name__"] for s in query('{job="plain", __name__=~"celery.*"}')}
    expected = {
        name
        for metric in METRICS.values()
        for name in (
            (f"{metric.name}_bucket", f"{metric.name}_count", f"{metric.name}_sum")
            if metric.kind == "histogram"
            else (metric.name,)
        )
    }
    assert arrived == expected


def lint(page):
    result = subprocess.run(
        [system_command("promtool"), "check", "metrics"], input=page, capture_output=True, timeout=60, check=False
    )
    return result.returncode, (result.stdout + result.stderr).decode()


def test_promtool_finds_nothing_to_say():
    """Of what is ours: process_* and python_* are prometheus_client's, and celery-exporter's names are its own."""
    assert lint(Exposition({"": Everything()}, own=False).render()) == (0, "")
