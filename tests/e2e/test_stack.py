"""`make stack`: the services of docker-compose.yml as plain processes, up to an alert in Slack."""

from __future__ import annotations

import re
import signal
import sys
from typing import TYPE_CHECKING

import httpx
import pytest
from helpers import Process, eventually, system_command

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.system, pytest.mark.timeout(420)]


def test_work_sent_to_the_web_service_ends_as_an_alert_in_slack(tmp_path: Path) -> None:
    """Through workers, monitor, Prometheus with the shipped rules, and Alertmanager."""
    system_command("prometheus")
    system_command("prometheus-alertmanager")
    argv = [sys.executable, "-m", "celeryscope", "demo", "--stack", "--port", "0", "--rate", "2"]
    stack = Process(argv, log=tmp_path / "stack.log", cwd=tmp_path, env={"TMPDIR": str(tmp_path)})
    try:
        stack.wait_for("try, in another terminal", 180)
        urls = dict(re.findall(r"^([a-z ]+?) +(http://\S+)", stack.output, re.MULTILINE))
        with httpx.Client(timeout=20, trust_env=False) as web:
            api = urls["api"].removesuffix("/docs")
            answer = web.post(f"{api}/stock-syncs")
            assert answer.status_code == 202, answer.text
            task = answer.json()["tasks"]["shop.stock.sync"]
            eventually(lambda: web.get(f"{api}/tasks/{task}").json()["state"] == "FAILURE", 90, 0.5)

            def firing() -> set[str]:
                alerts = web.get(f"{urls['alertmanager']}/api/v2/alerts").json()
                return {alert["labels"]["alertname"] for alert in alerts}

            eventually(lambda: {"Watchdog", "RetriesExhausted"} <= firing(), 120, 1)
            channel = f"{urls['slack inbox']}/?channel=C0LOCAL0000"
            eventually(lambda: "RetriesExhausted" in web.get(channel).text, 90, 1)
            jobs = web.get(f"{urls['prometheus']}/api/v1/targets").json()["data"]["activeTargets"]
            assert {job["labels"]["job"] for job in jobs} == {"alertmanager", "celeryscope", "celeryscope-alerter"}
        stack.send(signal.SIGTERM)
        assert stack.popen.wait(60) == 0
        assert "Traceback" not in stack.output
        eventually(lambda: [path.name for path in tmp_path.iterdir()] == ["stack.log"])
    finally:
        stack.stop()
