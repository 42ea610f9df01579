"""`celeryscope doctor` beside the running demo: a set-up as it should be, so there is nothing to say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import Process, eventually

pytestmark = [pytest.mark.system, pytest.mark.timeout(420)]


def test_the_doctor_finds_nothing_in_the_demo(tmp_path: Path) -> None:
    """With load, retries, rejections and failing tasks: those are the tasks' own affair."""
    foreign = {name: "" for name in os.environ if name.startswith(("CELERY_", "CELERYSCOPE_"))}
    # Without Prometheus on the PATH the demo starts sooner.
    env = {**foreign, "TMPDIR": str(tmp_path), "PATH": str(Path(sys.executable).parent)}
    argv = [sys.executable, "-m", "celeryscope", "demo", "--port", "0", "--rate", "4"]
    demo = Process(argv, log=tmp_path / "demo.log", cwd=tmp_path, env=env)
    try:
        demo.wait_for("try, in another terminal", 120)
        found = {name: re.search(rf"{name} +(\S+://\S+)", demo.output) for name in ("broker", "metrics")}
        assert found["broker"], demo.output
        assert found["metrics"], demo.output
        broker, page = found["broker"][1], found["metrics"][1]
        patience = ["--answer-timeout", "6", "--listen-for", "13"]
        doctor = [sys.executable, "-m", "celeryscope", "doctor", "-A", "celeryscope.demo.app", "--json", *patience]

        def nothing_to_say() -> bool:
            told = {"CELERY_BROKER_URL": broker, "CELERY_RESULT_BACKEND": broker.replace("/0", "/1")}
            answer = subprocess.run(
                [*doctor, "--url", page],
                cwd=tmp_path,
                env={**os.environ, **foreign, **told},
                capture_output=True,
                text=True,
            )
            verdict = json.loads(answer.stdout)
            assert (answer.returncode, verdict["findings"], verdict["not_checked"]) == (0, [], []), answer.stderr
            return not verdict["failed"]

        eventually(nothing_to_say, 200)
    finally:
        demo.stop(30)
