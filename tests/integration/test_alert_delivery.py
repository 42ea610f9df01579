"""A worker is killed, and people read it in Slack: by a real Prometheus, a real Alertmanager and an inbox."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from celeryscope.dashboards import alertmanager, rules
from celeryscope.demo.inbox import TOKEN, Inbox, Posted
from helpers import Process, RedisServer, eventually, running, worker_argv
from watching import Alertmanager, Prometheus, receiver

pytestmark = pytest.mark.system

APPS = Path(__file__).resolve().parent.parent / "apps"
SLOW = 120
"""Seconds in which everything must have happened, on a busy machine."""
SETTINGS = """
grafana_url = "https://grafana.example"
slack_channel = "#alerts"
[rules]
worker_lost_for = "2s"
no_workers_for = "1h"
keep_firing_for = "1s"
flower_url = "https://flower.example"
alertmanager_slack_url = "{slack}chat.postMessage"
alertmanager_token_file = "{folder}/token"
alertmanager_watchdog_url = "{hook}/watchdog"
alertmanager_fallback_url = "{hook}/fallback"
alertmanager_group_wait = "1s"
alertmanager_group_interval = "2s"
"""


class World:
    """Everything between a worker and Slack."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        (folder / "broker").mkdir()
        server = RedisServer(folder / "broker")
        stack.callback(server.stop)
        self.inbox = stack.enter_context(Inbox(["general", "alerts"]).serving())
        hook, self.hooked = stack.enter_context(receiver())
        self.env = {name: "" for name in os.environ if name.startswith("CELERY_")}
        self.env |= {"BROKER": server.url, "GATE": str(folder / "gate"), "PYTHONPATH": str(APPS)}
        self.monitor = self.celeryscope(
            "monitor", "--broker", server.url, "--listen", "127.0.0.1:0", "--worker-timeout", "6"
        )
        stack.enter_context(running(self.monitor))
        self.monitor.wait_for("serves http://", SLOW)
        (folder / "token").write_text(TOKEN)
        (folder / "celeryscope.toml").write_text(
            SETTINGS.format(slack=self.inbox.api_url, folder=folder, hook=hook), encoding="utf-8"
        )
        assert self.celeryscope("rules", "build", "--out", folder).popen.wait(SLOW) == 0
        manager = Alertmanager(folder / "alertmanager-data", folder / alertmanager.CONFIG_FILE)
        stack.callback(manager.stop)
        page = self.monitor.output.split("serves http://", 1)[1].split("/metrics", 1)[0]
        built = [folder / name for name in (rules.RECORDINGS_FILE, rules.ALERTS_FILE)]
        self.prometheus = Prometheus(folder / "prometheus", {"celeryscope": page}, built, manager.address)
        stack.callback(self.prometheus.stop)

    def celeryscope(self, command: str, *options: str | Path) -> Process:
        argv = [sys.executable, "-m", "celeryscope", command, *options]
        return Process(argv, log=self.folder / f"{command}.log", cwd=self.folder, env=self.env)

    def worker(self) -> Process:
        argv = worker_argv("plant", "-n", "doomed@plant", "-c", "1")
        return Process(argv, log=self.folder / "worker.log", cwd=self.folder, env=self.env)

    def told(self, title: str) -> Posted | None:
        return next((m for m in self.inbox.top("alerts") if attachment(m)["title"].startswith(title)), None)


def attachment(message: Posted) -> dict[str, Any]:
    return message.body["attachments"][0]


@pytest.fixture(name="world")
def _world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(tmp_path, stack)


@pytest.mark.timeout(600)
def test_a_killed_worker_reaches_slack_and_its_return_does_too(world: World) -> None:
    up = 'celery_worker_up{worker="doomed@plant"}'
    with running(world.worker()) as worker:
        eventually(lambda: world.prometheus.values(up) == [1], SLOW, 0.5)
        worker.kill_group()
        message = eventually(lambda: world.told("Warning: WorkerLost"), SLOW, 0.5)
    said = attachment(message)
    assert "Worker doomed@plant is gone without a goodbye" in said["text"]
    assert "https://flower.example/worker/doomed%40plant" in said["text"]
    links = {action["text"]: action["url"] for action in said["actions"]}
    assert links["Runbook"].endswith("/docs/runbooks/WorkerLost.md")
    assert links["Board"].startswith("https://grafana.example/d/celery-workers?")
    assert links["Board"].endswith("&var-worker=doomed%40plant")
    eventually(lambda: any(post["path"] == "/watchdog" for post in world.hooked), SLOW, 0.5)
    with running(world.worker()):
        eventually(lambda: world.told("Resolved: WorkerLost"), SLOW, 0.5)
    assert "Watchdog" not in "".join(m.everything for m in world.inbox.messages)
    assert not world.inbox.refused
