"""`celeryscope control` against a real Flower and real workers: each action has its effect, or says what it needs."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery import Celery
from celery.contrib.abortable import AbortableAsyncResult
from celeryscope import cli
from celeryscope.monitor.flower import FlowerLinks
from celeryscope.monitor.flower_client import FlowerClient
from flowers import LOGIN, environment, flower
from helpers import Process, RedisServer, eventually, running, worker_argv

pytestmark = pytest.mark.system

PLAIN, SCALED, BRIEF = "plain@ctl", "scaled@ctl", "brief@ctl"
LONG = 60.0


class Plant:
    """A broker, workers and Flowers: `url` is that of the one with the app."""

    def __init__(self, folder: Path, broker: str) -> None:
        self.folder, self.broker = folder, broker
        self.app = Celery("controlled", broker=broker, backend=broker, set_as_current=False)
        # Nobody waits for results here; one that is let go after its server has ended would look for that server.
        self.app.backend.result_consumer.consume_from = lambda *_: None
        self.url = self.appless = ""
        self.process: Process | None = None

    def worker(self, name: str, *options: str, **more: str) -> contextlib.AbstractContextManager[Process]:
        argv = worker_argv("control_app", "-n", name, *options)
        log = self.folder / f"{name}.log"
        return running(Process(argv, log=log, cwd=self.folder, env=environment(self.broker, **more)))

    def told(self, what: str, worker: str, *arguments: str) -> Any:
        """Return what a worker itself says when inspected."""
        answer = getattr(self.app.control.inspect([worker], timeout=5), what)(*arguments)
        assert answer, f"{worker} does not answer"
        return answer[worker]

    def processes(self, worker: str) -> list[int]:
        found: list[int] = self.told("stats", worker)["pool"]["processes"]
        return found

    def queues(self, worker: str) -> set[str]:
        return {queue["name"] for queue in self.told("active_queues", worker)}

    def registered(self, worker: str, *facts: str) -> dict[str, str]:
        lines = (line.partition(" ") for line in self.told("registered", worker, *facts))
        return {name: rest for name, _, rest in lines}


@pytest.fixture(scope="module", name="plant")
def _plant(valkey_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    # A database of its own: other modules empty the first one.
    plant = Plant(tmp_path_factory.mktemp("plant"), valkey_server.url.replace("/0", "/7"))
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(plant.worker(PLAIN, "-Q", "plain", "-c", "2")),
            stack.enter_context(plant.worker(SCALED, "-Q", "scaled", "--autoscale", "3,1", POOL_RESTARTS="1")),
        ]
        started = flower(
            plant.folder / "one", plant.broker, "-A", "control_app", "--state-dir", "state", prefix="tools/ops"
        )
        plant.url, plant.process = stack.enter_context(started)
        plant.appless, _ = stack.enter_context(flower(plant.folder / "two", plant.broker))
        for worker in workers:
            worker.wait_for(" ready.", LONG)
        with contextlib.closing(client(plant.url)) as asking:
            eventually(lambda: {PLAIN, SCALED} <= {name for name, on in asking.online().items() if on}, LONG)
        yield plant
    plant.app.close()


def client(url: str) -> FlowerClient:
    return FlowerClient(url, user=LOGIN[0], password=LOGIN[1])


@pytest.fixture(name="control")
def _control(plant: Plant, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Run a command as somebody would; give its exit code and what it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CELERYSCOPE_FLOWER_AUTH", ":".join(LOGIN))

    def run(*arguments: str, url: str = plant.url) -> tuple[int, str]:
        code = cli.run(["control", *arguments, "--yes", "--flower-url", url, "--timeout", "60"])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def done(control: Any, *arguments: str) -> None:
    """Have it done; whether it was, the effect tells.

    On a busy machine a worker may be late: nothing has been sent to one that "does not answer", and to one that did
    not answer in time it has.
    """

    def asked() -> bool:
        code, said = control(*arguments)
        assert "does not answer" not in said
        assert "no worker is called" not in said  # Flower has not met it yet
        return code == 0 or "is unknown" in said

    eventually(asked, LONG)


def refused(control: Any, told: str, *arguments: str, url: str | None = None, code: int = 1) -> None:
    """Be refused, with the reason; a worker that is late is asked again."""

    def asked() -> bool:
        got, said = control(*arguments, **({"url": url} if url else {}))
        assert got == code, said
        assert told in said, said
        return True

    eventually(asked, LONG)


def test_pools_grow_and_shrink(plant: Plant, control: Any) -> None:
    before = len(eventually(lambda: plant.processes(PLAIN)))
    done(control, "pool-grow", "plain", "2")
    eventually(lambda: len(plant.processes(PLAIN)) == before + 2, LONG)
    done(control, "pool-shrink", PLAIN, "1")
    eventually(lambda: len(plant.processes(PLAIN)) == before + 1, LONG)
    refused(control, "one must remain", "pool-shrink", "plain", "20")
    refused(control, "celeryscope control autoscale", "pool-grow", "scaled")
    refused(control, "celeryscope control autoscale", "pool-shrink", "scaled")


def test_autoscale_needs_a_worker_that_scales(plant: Plant, control: Any) -> None:
    done(control, "autoscale", "scaled", "1", "5")
    eventually(lambda: plant.told("stats", SCALED)["autoscaler"]["max"] == 5, LONG)
    refused(control, "--autoscale", "autoscale", "plain", "1", "5")


def test_pool_restart_needs_the_workers_leave(plant: Plant, control: Any) -> None:
    before = set(eventually(lambda: plant.processes(SCALED)))
    done(control, "pool-restart", "scaled")
    eventually(lambda: plant.processes(SCALED) and not before & set(plant.processes(SCALED)), LONG)
    refused(control, "worker_pool_restarts", "pool-restart", "plain")


def test_consumers_are_added_and_cancelled_and_revoked_tasks_skipped(plant: Plant, control: Any) -> None:
    """A task that was revoked while it waited is not run by the worker that gets it."""
    kept = plant.app.send_task("controlled.quick", queue="later")
    skipped = plant.app.send_task("controlled.quick", queue="later")
    done(control, "revoke", skipped.id)
    eventually(lambda: skipped.id in plant.told("revoked", PLAIN), LONG)
    done(control, "add-consumer", "plain", "later")
    eventually(lambda: "later" in plant.queues(PLAIN), LONG)
    eventually(lambda: (kept.state, skipped.state) == ("SUCCESS", "REVOKED"), LONG)
    done(control, "cancel-consumer", "plain", "later")
    eventually(lambda: "later" not in plant.queues(PLAIN), LONG)


def test_a_running_task_is_terminated(plant: Plant, control: Any) -> None:
    running_one = plant.app.send_task("controlled.slow", queue="plain")
    eventually(lambda: running_one.state == "STARTED", LONG)
    done(control, "terminate", running_one.id, "--signal", "SIGKILL")
    eventually(lambda: running_one.state == "REVOKED", LONG)
    eventually(lambda: not plant.told("active", PLAIN), LONG)


def test_an_abortable_task_is_aborted_where_flower_has_the_results(plant: Plant, control: Any) -> None:
    sent = plant.app.send_task("controlled.abortable", queue="plain")
    result = AbortableAsyncResult(sent.id, app=plant.app)
    eventually(lambda: result.state == "STARTED", LONG)
    refused(control, "start it with -A", "abort", sent.id, url=plant.appless)
    done(control, "abort", sent.id)
    eventually(lambda: result.result == "gave in", LONG)


def test_rates_are_limited_where_the_task_is_known(plant: Plant, control: Any) -> None:
    done(control, "rate-limit", "controlled.quick", "7/m", "--worker", "plain")
    eventually(lambda: "rate_limit=7/m" in plant.registered(PLAIN)["controlled.quick"], LONG)
    assert "7/m" not in eventually(lambda: plant.registered(SCALED))["controlled.quick"]

    def everywhere() -> bool:
        # Those that are late are left out, so that it takes another go.
        done(control, "rate-limit", "controlled.quick", "9/m")
        return all("9/m" in plant.registered(worker)["controlled.quick"] for worker in (PLAIN, SCALED))

    eventually(everywhere, LONG)
    done(control, "rate-limit", "controlled.quick", "0", "--worker", PLAIN)
    eventually(lambda: "9/m" not in plant.registered(PLAIN)["controlled.quick"], LONG)
    refused(control, "did you mean controlled.quick", "rate-limit", "controlled.quik", "1/s", "--worker", "plain")
    refused(control, "started with -A", "rate-limit", "controlled.quick", "1/s", "--worker", "plain", url=plant.appless)


def test_run_times_are_limited_where_the_task_is_known(plant: Plant, control: Any) -> None:
    """Celery goes by them once the pool was restarted, as the command says."""
    limits = ("soft_time_limit", "time_limit")
    order = ("time-limit", "controlled.limited", "--worker", "scaled")
    done(control, *order, "--soft", "1", "--hard", "300")
    eventually(lambda: "soft_time_limit=1.0" in plant.registered(SCALED, *limits)["controlled.limited"], LONG)
    before = set(eventually(lambda: plant.processes(SCALED)))
    done(control, "pool-restart", "scaled")
    eventually(lambda: plant.processes(SCALED) and not before & set(plant.processes(SCALED)), LONG)
    limited = plant.app.send_task("controlled.limited", queue="scaled")
    eventually(lambda: limited.state == "FAILURE", LONG)
    assert "SoftTimeLimitExceeded" in repr(limited.result)
    done(control, *order, "--none")
    eventually(lambda: "time_limit" not in plant.registered(SCALED, *limits)["controlled.limited"], LONG)
    refused(control, "started with -A", *order, "--soft", "1", url=plant.appless)


def test_a_worker_is_shut_down_and_then_asked_for_nothing(plant: Plant, control: Any) -> None:
    """Flower goes on listing it, and would say that it shuts down."""
    with plant.worker(BRIEF, "-Q", "brief", "-P", "solo") as brief:
        brief.wait_for(" ready.", LONG)
        done(control, "shutdown", BRIEF)
        assert brief.popen.wait(LONG) == 0
    refused(control, f"{BRIEF} does not answer", "shutdown", BRIEF)
    refused(control, "no worker is called 'nobody@ctl'", "pool-grow", "nobody@ctl")


def test_credentials_are_needed_and_checked(
    plant: Plant, control: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CELERYSCOPE_FLOWER_AUTH", "ops:wrong")
    refused(control, "does not accept these credentials", "revoke", "1", code=2)
    monkeypatch.delenv("CELERYSCOPE_FLOWER_AUTH")
    refused(control, "set CELERYSCOPE_FLOWER_AUTH", "revoke", "1", code=2)
    with flower(tmp_path / "open", plant.broker, login=False) as (url, _):
        refused(control, "runs without authentication", "revoke", "1", url=url, code=2)
    refused(control, "no Flower at", "revoke", "1", url=url, code=2)
    refused(control, "url_prefix", "revoke", "1", url=plant.url.removesuffix("/tools/ops"))


def test_links_lead_to_pages_and_the_client_reads_what_they_show(plant: Plant) -> None:
    """Below the prefix that Flower was started with."""
    sent = plant.app.send_task("controlled.quick", queue="plain")
    with contextlib.closing(client(plant.url)) as asking:
        task = eventually(lambda: (found := asking.task(sent.id)) and found.state == "SUCCESS" and found, LONG)
        assert (task.name, task.worker, task.ended) == ("controlled.quick", PLAIN, True)
        assert sent.id in {one.uuid for one in asking.tasks(name="controlled.quick", state="SUCCESS", worker=PLAIN)}
        assert asking.task("never-sent") is None
        assert asking.tasks(name="no.such.task") == []
    pages = FlowerLinks(plant.url)
    for page, shown in (
        (pages.task(sent.id), sent.id),
        (pages.worker(PLAIN), PLAIN),
        (pages.tasks(name="controlled.quick", state="SUCCESS", worker=PLAIN), "tasks-table"),
    ):
        answer = httpx.get(page, auth=LOGIN, timeout=LONG, trust_env=False)
        assert answer.status_code == 200
        assert shown in answer.text
        assert httpx.get(page, timeout=LONG, trust_env=False).status_code == 401


def test_what_flower_leaves_open_is_what_the_docs_say(plant: Plant) -> None:
    """Its /metrics and /healthcheck ask nobody for a password: docs/flower.md tells how to keep strangers out."""
    open_paths = {
        path
        for path in ("/metrics", "/healthcheck", "/", "/tasks", "/broker", "/api/workers", "/api/tasks", "/worker/x")
        if httpx.get(plant.url + path, timeout=LONG, trust_env=False).status_code == 200
    }
    assert open_paths == {"/metrics", "/healthcheck"}


def test_no_list_of_processes_shows_the_password(plant: Plant) -> None:
    assert plant.process is not None
    shown = subprocess.run(["ps", "ax", "-ww", "-o", "args="], capture_output=True, text=True, check=True).stdout
    assert "--url_prefix=tools/ops" in shown
    assert LOGIN[1] not in shown
    assert LOGIN[1] not in plant.process.output


def test_what_flower_has_seen_survives_its_restart(plant: Plant, tmp_path: Path) -> None:
    sent = plant.app.send_task("controlled.quick", queue="plain")
    options = ("-A", "control_app", "--state-dir", "kept")
    with flower(tmp_path, plant.broker, *options) as (url, process), contextlib.closing(client(url)) as asking:

        def seen() -> bool:
            plant.app.send_task("controlled.quick", queue="plain", task_id=sent.id)
            found = asking.task(sent.id)
            return found is not None and found.state == "SUCCESS"

        eventually(seen, LONG, 0.5)
        assert process.stop(LONG) == 0
    with flower(tmp_path, plant.broker, *options) as (url, _), contextlib.closing(client(url)) as asking:
        found = asking.task(sent.id)
        assert found is not None
        assert found.name == "controlled.quick"
