"""A real Flower for tests, started as users start it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
from helpers import Process, eventually, free_port, running

APPS = Path(__file__).resolve().parent / "integration"
LOGIN = ("ops", "correct-horse")


def answers(url: str) -> bool:
    try:
        return httpx.get(url, auth=LOGIN, trust_env=False, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def environment(broker: str, **more: str) -> dict[str, str]:
    """Return what a worker or a Flower of these tests is told."""
    path = os.pathsep.join(filter(None, (str(APPS), os.environ.get("PYTHONPATH", ""))))
    return {"CELERY_BROKER_URL": broker, "CELERY_RESULT_BACKEND": broker, "PYTHONPATH": path, **more}


@contextlib.contextmanager
def flower(
    folder: Path, broker: str, *options: str, login: bool = True, prefix: str = ""
) -> Iterator[tuple[str, Process]]:
    """Run `celeryscope flower` on a free port; give its address and process."""
    folder.mkdir(exist_ok=True)
    env = environment(broker, **({"CELERYSCOPE_FLOWER_AUTH": ":".join(LOGIN)} if login else {}))
    if "-A" not in options:
        del env["CELERY_RESULT_BACKEND"]  # which Celery itself would read
    for _ in range(5):
        port = free_port()
        argv = [sys.executable, "-m", "celeryscope", "flower", "--listen", f"127.0.0.1:{port}", *options]
        argv += ["--url-prefix", prefix] if prefix else []
        url = "/".join(filter(None, (f"http://127.0.0.1:{port}", prefix)))
        with running(Process(argv, log=folder / f"flower-{port}.log", cwd=folder, env=env)) as process:
            eventually(lambda: answers(f"{url}/workers") or not process.running(), 90, 0.2)  # noqa: B023
            if process.running():
                yield url, process
                return
        assert "Address already in use" in process.output, process.output
    raise RuntimeError("no port stays free")
