"""A user's project that has folders of our names (`alerts`, `monitor`, ...) beside a real worker that uses us."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import celeryscope
import pytest
import redis
from celery import Celery
from helpers import Process, eventually, running, worker_argv

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import RedisServer

# Our own folders and modules, each of which a user may have at the top of a project.
NAMES = ("alerts", "cli", "dashboards", "demo", "exporters", "monitor")

PROJECT = """
import celeryscope
from celery import Celery

app = Celery("proj", include=INCLUDE)
app.config_from_object("settings")
celeryscope.install(app)
""".replace("INCLUDE", repr([f"{name}.tasks" for name in NAMES]))

TASKS = """
import sys
from celery import shared_task

@shared_task
def where(name):
    # The user's module and ours of the same name, as this worker knows them.
    import importlib
    user, ours = importlib.import_module(name), importlib.import_module("celeryscope.monitor.guard")
    return [user.__file__, user.OWNER, ours.__name__, sorted(m for m in sys.modules if m.startswith("celeryscope"))]
"""


@pytest.fixture(name="project")
def _project(tmp_path: Path, valkey: RedisServer) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "proj.py").write_text(PROJECT)
    (folder / "settings.py").write_text(f"broker_url = result_backend = {valkey.url!r}\ntask_ignore_result = False\n")
    for name in NAMES:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("OWNER = 'the user'\n")
        (folder / name / "tasks.py").write_text(TASKS)
    return folder


@pytest.fixture(name="worker")
def _worker(project: Path, tmp_path: Path) -> Iterator[Process]:
    argv = worker_argv("proj", "-c", "1", "--without-mingle", "--without-gossip")
    with running(Process(argv, log=tmp_path / "worker.log", cwd=project)) as process:
        process.wait_for(" ready.", 60)
        yield process


@pytest.fixture(name="producer")
def _producer(valkey: RedisServer) -> Iterator[Celery]:
    with Celery("producer", broker=valkey.url, backend=valkey.url, set_as_current=False) as app:
        celeryscope.install(app)
        yield app
        app.backend.result_consumer.stop()


@pytest.fixture(name="events")
def _events(valkey: RedisServer) -> Iterator[list[dict[str, Any]]]:
    """All events published from here on, as far as they were read (see `read`)."""
    with redis.Redis.from_url(valkey.url) as client, client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.psubscribe("/0.celeryev/*")
        eventually(lambda: client.pubsub_numpat() >= 1)
        yield Published(pubsub)


class Published(list[dict[str, Any]]):
    """The list of events, filled from a subscription by `read`."""

    def __init__(self, pubsub: redis.client.PubSub) -> None:
        super().__init__()
        self.pubsub = pubsub

    def read(self) -> set[str]:
        """Take in what has arrived; return the types of all events so far."""
        while (message := self.pubsub.get_message()) is not None:
            body = json.loads(base64.b64decode(json.loads(message["data"])["body"]))
            self.extend(body if isinstance(body, list) else [body])
        return {event["type"] for event in self}


def test_users_folders_keep_their_names_and_our_events_flow(
    worker: Process, project: Path, producer: Celery, events: Published
):
    """Each name means the user's folder, ours are all under `celeryscope`, and the worker reports its tasks."""
    for name in NAMES:
        path, owner, ours, loaded = producer.send_task(f"{name}.tasks.where", [name]).get(timeout=60)
        assert Path(path) == project / name / "__init__.py"
        assert owner == "the user"
        assert ours == "celeryscope.monitor.guard"
        assert "celeryscope" in loaded
    wanted = {"task-sent", "task-received", "task-started", "task-succeeded"}
    eventually(lambda: wanted <= events.read())
    assert "task events: ON" in worker.output


def test_a_project_beside_the_clone_itself_is_not_shadowed(project: Path):
    """Celery puts the working folder first on sys.path; from there our folders must not be importable by bare name."""
    code = "import alerts, monitor, celeryscope; print(alerts.OWNER, monitor.OWNER, celeryscope.__version__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["the", "user", "the", "user", celeryscope.__version__]
