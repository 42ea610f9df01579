"""docker-compose.yml on a real Docker engine: every service comes up, and they work together (make compose-test)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from celeryscope.exporters.reading import Page
from deploying import make_env
from helpers import ROOT, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.system, pytest.mark.compose, pytest.mark.repository, pytest.mark.timeout(420)]

PORTS = {
    "api": 8000,
    "monitor": 9808,
    "flower": 5555,
    "prometheus": 9090,
    "alertmanager": 9093,
    "inbox": 8080,
}
"""What each service serves at inside its container."""

OURS = ("api", "worker", "worker-reports", "beat", "monitor", "alerter", "flower", "inbox", "customers")
OTHERS = ("redis", "prometheus", "alertmanager")


class Stack:
    """The stack of the demo profile, in a project of its own with any free ports."""

    def __init__(self, folder: Path) -> None:
        self.project = f"celeryscope-test-{os.getpid()}"
        made = make_env("demo")
        self.settings = dict(line.split("=", 1) for line in made.splitlines() if line and line[0] != "#")
        self.env_file = folder / "env"
        self.env_file.write_text(made)
        # Grafana's image cannot be had everywhere; its files have tests of their own.
        ports = {f"{name.upper()}_PORT": "0" for name in PORTS}
        ours = ("CELERY", "COMPOSE_", "BIND", "REDIS_", "GRAFANA_", "PROMETHEUS_", "ALERTMANAGER_", "FLOWER_")
        env = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        if image := os.environ.get("CELERYSCOPE_IMAGE"):
            env["CELERYSCOPE_IMAGE"] = image
        self.env = {**env, **ports, "COMPOSE_PROFILES": "demo", "WORKER_CONCURRENCY": "2"}

    def compose(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        binary = Path(sys.executable).with_name("docker-compose")
        given = ["--project-name", self.project, "--project-directory", ROOT, "--env-file", self.env_file]
        return subprocess.run(
            [binary, "--file", ROOT / "docker-compose.yml", *given, "--ansi", "never", *arguments],
            capture_output=True,
            text=True,
            env=self.env,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
        )

    def up(self) -> None:
        pull = os.environ.get("COMPOSE_TEST_PULL", "missing")
        limits = ("--wait", "--wait-timeout", "240", "--no-build", "--pull", pull, "--quiet-pull")
        done = self.compose("up", "--detach", *limits, timeout=600)
        if done.returncode:
            raise RuntimeError(f"the stack does not come up:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")

    def down(self) -> None:
        done = self.compose("down", "--volumes", "--remove-orphans", "--timeout", "10", timeout=180)
        assert done.returncode == 0, done.stderr
        for kind in (["ps", "--all"], ["volume", "ls"], ["network", "ls"]):
            label = f"label=com.docker.compose.project={self.project}"
            left = subprocess.run(
                ["docker", *kind, "--quiet", "--filter", label], capture_output=True, text=True, check=True, timeout=60
            )
            assert left.stdout == "", kind

    def logs(self) -> Iterator[str]:
        """Yield what a person would look at who wonders why it does not work."""
        for arguments in (("ps", "--all"), ("logs", "--tail", "25", "--no-color")):
            with contextlib.suppress(subprocess.TimeoutExpired):
                yield self.compose(*arguments).stdout[-30_000:]

    def execute(self, service: str, *command: str) -> subprocess.CompletedProcess[str]:
        return self.compose("exec", "--no-TTY", service, *command)

    def url(self, service: str) -> str:
        done = self.compose("port", service, str(PORTS[service]))
        assert done.returncode == 0, done.stderr
        host, _, port = done.stdout.strip().rpartition(":")
        assert host == "127.0.0.1"
        return f"http://{host}:{port}"


@pytest.fixture(scope="module", name="stack")
def _stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("compose"))
    failed = request.session.testsfailed
    try:
        stack.up()
        yield stack
    except BaseException:
        failed = -1
        raise
    finally:
        if request.session.testsfailed != failed:
            tell(request, *stack.logs())
        stack.down()


def tell(request: pytest.FixtureRequest, *texts: str) -> None:
    """Write past pytest's capture, which shows the output of a fixture's end with the last test alone."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        for text in texts:
            sys.stdout.write(f"\n{text}\n")


@pytest.fixture(scope="module", name="urls")
def _urls(stack: Stack) -> dict[str, str]:
    return {service: stack.url(service) for service in PORTS}


@pytest.fixture(scope="module", name="web")
def _web() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=20, trust_env=False) as client:
        yield client


def order(web: httpx.Client, urls: dict[str, str], what: str, **body: Any) -> dict[str, str]:
    """Send work through the example's API; return name → id of the tasks."""
    answer = web.post(f"{urls['api']}/{what}", json=body or None)
    assert answer.status_code == 202, answer.text
    tasks: dict[str, str] = answer.json()["tasks"]
    return tasks


def state(web: httpx.Client, urls: dict[str, str], task_id: str) -> str:
    return str(web.get(f"{urls['api']}/tasks/{task_id}").json()["state"])


def told(web: httpx.Client, urls: dict[str, str]) -> str:
    """Return what Slack's channel for all alerts shows."""
    return web.get(f"{urls['inbox']}/?channel=C0LOCAL0000").text


def query(web: httpx.Client, urls: dict[str, str], expression: str) -> dict[tuple[tuple[str, str], ...], float]:
    """Ask Prometheus; return labels → value."""
    answer = web.get(f"{urls['prometheus']}/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", answer
    return {tuple(sorted(row["metric"].items())): float(row["value"][1]) for row in answer["data"]["result"]}


def test_every_container_has_what_it_needs_and_no_more(stack: Stack, urls: dict[str, str]) -> None:
    """Not root, no capability, no new privileges, nothing to write to but what it needs; all pages on 127.0.0.1."""
    assert set(urls) == set(PORTS)  # each URL was checked where it was asked for
    # What Grafana would find: it is not started here.
    boards = stack.execute("prometheus", "ls", "/etc/celeryscope/boards").stdout.split()
    assert {path.name for path in (ROOT / "dashboards/generated/boards").glob("*.json")} == set(boards)
    for service in (*OURS, *OTHERS):
        status = stack.execute(service, "cat", "/proc/1/status")
        facts = dict(line.split(":\t", 1) for line in status.stdout.splitlines() if ":\t" in line)
        assert facts["Uid"].split()[0] != "0", service
        assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0, service
        assert facts["NoNewPrivs"] == "1", service
        assert stack.execute(service, "touch", "/etc/new").returncode != 0, service
        assert stack.execute(service, "touch", "/tmp/new").returncode == 0, service


def test_orders_sent_through_the_api_are_seen_in_prometheus(urls: dict[str, str], web: httpx.Client) -> None:
    tasks = order(web, urls, "orders", number=1)
    eventually(lambda: state(web, urls, tasks["shop.orders.place"]) == "SUCCESS", 60, 0.5)

    def seen() -> bool:
        done = query(web, urls, 'sum by (queue) (celery_task_succeeded_total{task="shop.orders.place"})')
        return done.get((("queue", "default"),), 0) >= 1

    eventually(seen, 90, 1)

    def all_is_known() -> bool:
        jobs = ("alertmanager", "celeryscope", "celeryscope-alerter", "prometheus")
        assert query(web, urls, "min by (job) (up)") == {(("job", job),): 1.0 for job in jobs}
        assert list(query(web, urls, "sum by (app) (celery_beats)").values()) == [1.0]
        assert query(web, urls, 'sum(celery_workers{state="online"})') == {(): 2.0}
        served = query(web, urls, "sum by (queue) (celery_queue_consumers)")
        assert set(served) >= {(("queue", name),) for name in ("default", "email", "reports")}
        return True

    eventually(all_is_known, 120, 1)


def test_a_task_that_fails_is_told_in_slack(urls: dict[str, str], web: httpx.Client) -> None:
    """From the worker through the broker's outbox and the alerter."""
    tasks = order(web, urls, "stock-syncs")
    eventually(lambda: state(web, urls, tasks["shop.stock.sync"]) == "FAILURE", 90, 0.5)
    eventually(lambda: "shop.stock.sync" in told(web, urls), 90, 1)


def test_a_task_is_revoked_through_flower_by_who_knows_the_password(
    stack: Stack, urls: dict[str, str], web: httpx.Client
) -> None:
    task_id = order(web, urls, "exports")["shop.reports.export"]
    user, _, password = stack.settings["CELERYSCOPE_FLOWER_AUTH"].partition(":")
    about = f"{urls['flower']}/api/task/info/{task_id}"

    def revoke(**auth: Any) -> int:
        return web.post(f"{urls['flower']}/api/task/revoke/{task_id}", params={"terminate": "true"}, **auth).status_code

    def started() -> bool:
        answer = web.get(about, auth=(user, password))
        return answer.status_code == 200 and answer.json()["state"] == "STARTED"

    assert revoke() == 401
    assert revoke(auth=(user, "guessed")) == 401
    eventually(started, 90, 0.5)
    assert revoke(auth=(user, password)) == 200
    eventually(lambda: state(web, urls, task_id) == "REVOKED", 60, 0.5)

    def counted() -> bool:
        page = Page(web.get(f"{urls['monitor']}/metrics").text)
        return page.total("celery_task_revoked_total", task="shop.reports.export", reason="terminated") >= 1

    eventually(counted, 60, 0.5)


def test_alerts_go_from_prometheus_to_alertmanager_to_slack(urls: dict[str, str], web: httpx.Client) -> None:
    """By the shipped rules: the watchdog always fires, and a task that has no retry left is an alert of its own."""

    def firing() -> set[str]:
        return {alert["labels"]["alertname"] for alert in web.get(f"{urls['alertmanager']}/api/v2/alerts").json()}

    order(web, urls, "stock-syncs")
    rules = web.get(f"{urls['prometheus']}/api/v1/rules").json()["data"]["groups"]
    assert [rule["name"] for group in rules for rule in group["rules"] if rule["health"] == "err"] == []
    eventually(lambda: {"Watchdog", "RetriesExhausted"} <= firing(), 120, 1)
    eventually(lambda: "RetriesExhausted" in told(web, urls), 90, 1)
