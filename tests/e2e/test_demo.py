"""`celeryscope demo` from start to end: every outcome can be seen, and nothing is left behind, however it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from celeryscope.demo.processes import free_port
from celeryscope.demo.screen import OUTCOMES
from celeryscope.exporters.reading import Page, UnreadableError, fetch
from helpers import Process, eventually


class Demo(Process):
    """A running demo, whose temporary folder is below `folder`."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        # Prometheus is another's test: without it on the PATH the demo starts sooner.
        env = {"TMPDIR": str(folder), "PATH": str(Path(sys.executable).parent)}
        argv = [sys.executable, "-m", "celeryscope", "demo", "--port", "0", *arguments]
        super().__init__(argv, log=folder / "demo.log", cwd=folder, env=env)

    def has(self, pattern: str, text: str = "") -> bool:
        """Whether a file of the demo's folder has `text` in it."""
        return any(
            text in path.read_text(errors="replace") for path in self.folder.glob(f"celeryscope-demo-*/{pattern}")
        )

    def gone(self) -> bool:
        """Whether no process knows the folder or works in it any more, and it is removed."""
        assert [path.name for path in self.folder.iterdir()] == ["demo.log"]
        assert not processes_of(self.folder)
        return True


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of all processes whose environment names the folder."""
    listing = subprocess.run(["ps", "axeww", "-o", "pid=,command="], capture_output=True, text=True, check=True)
    return [line for line in listing.stdout.splitlines() if f"TMPDIR={folder}" in line]


def page(demo: Demo) -> Page:
    found = re.search(r"metrics +(http://\S+)", demo.output)
    assert found, demo.output
    try:
        return Page(fetch(found[1]))
    except UnreadableError as error:
        raise AssertionError(str(error)) from None


def resolved(demo: Demo) -> list[str]:
    """Return the headings of the incidents that the inbox page shows as over."""
    found = re.search(r"slack inbox +(http://\S+)", demo.output)
    assert found, demo.output
    # Its first channel is where all goes that no task's settings send elsewhere.
    shown = httpx.get(f"{found[1]}/?channel=C0LOCAL0000", trust_env=False).text
    return [heading for heading in re.findall(r"<h2>(.*?)</h2>", shown) if "✅" in heading]


def controlled(demo: Demo, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `celeryscope control` with the address and the password that the demo shows."""
    found = re.search(r"flower +(http://\S+)  user (\S+), password (\S+)", demo.output)
    assert found, demo.output
    env = {"CELERYSCOPE_FLOWER_URL": found[1], "CELERYSCOPE_FLOWER_AUTH": f"{found[2]}:{found[3]}"}
    return subprocess.run(
        [sys.executable, "-m", "celeryscope", "control", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
        timeout=120,
    )


@pytest.mark.timeout(420)
def test_every_outcome_is_on_the_metrics_page_and_sigterm_leaves_nothing(tmp_path: Path) -> None:
    """What DESIGN promises of the demo, by the very numbers that its screen shows."""
    demo = Demo(tmp_path, "--rate", "4")
    try:
        demo.wait_for("try, in another terminal", 120)
        assert processes_of(tmp_path)

        def all_seen() -> bool:
            now = page(demo)
            missing = [title for title, name, match in OUTCOMES if not now.total(name, **match)]
            assert not missing, missing
            return True

        eventually(all_seen, 150, 1)
        # The mail server recovers each minute: its incident has been told by now, or is soon.
        eventually(lambda: any("shop.email.send" in heading for heading in resolved(demo)), 150, 1)
        now = page(demo)
        assert now.total("celery_beats") == 1
        assert {"default", "email", "reports"} <= set(now.by("queue", name="celery_queue_consumers"))
        assert now.total("celery_worker_starts_missed_total") == 0
        # For an order to a worker this machine may be too busy; nobody needs to answer to this one.
        told = controlled(demo, "revoke", "never-sent", "--yes")
        assert told.returncode == 0, told.stderr
        demo.send(signal.SIGTERM)
        assert demo.popen.wait(30) == 0
        eventually(demo.gone)
        assert "Traceback" not in demo.output
    finally:
        demo.stop()


@pytest.mark.parametrize(
    ("number", "pattern", "text", "code"),
    [
        (signal.SIGINT, "broker.log", "Ready to accept", 0),
        (signal.SIGKILL, "worker.log", " ready.", -signal.SIGKILL),
    ],
    ids=["Ctrl-C while it starts", "SIGKILL"],
)
def test_however_it_ends_nothing_is_left(number: int, pattern: str, text: str, code: int, tmp_path: Path) -> None:
    """Neither a process, pool children included, nor the folder."""
    demo = Demo(tmp_path)
    try:
        eventually(lambda: demo.has(pattern, text), 90)
        assert processes_of(tmp_path)
        demo.send(number)
        assert demo.popen.wait(30) == code
        eventually(demo.gone)
        assert "Traceback" not in demo.output
    finally:
        demo.stop()


def test_a_taken_port_is_replaced_by_a_free_one() -> None:
    """The port that was asked for if nobody has it, another one otherwise."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert free_port(port) != port
    assert free_port(port) == port
