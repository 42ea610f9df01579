"""`celeryscope monitor` as people run it: against a real broker and worker, through restarts, and with wrong input."""

from __future__ import annotations

import logging
import os
import socket
import sys
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from celery import Celery
from celeryscope import cli
from celeryscope.exporters.reading import Page
from celeryscope.monitor import service
from celeryscope.monitor.configuration import load
from celeryscope.monitor.settings import MonitorSettings
from celeryscope.monitor.statefile import StateFile, encode
from helpers import Process, RedisServer, eventually, free_port, running, worker_argv

if TYPE_CHECKING:
    from collections.abc import Iterator

SHOP = "celeryscope.demo.app"
PASSWORD = "correct-horse-battery"


def environment(**more: str) -> dict[str, str]:
    """An environment without anybody's settings of celeryscope or Celery."""
    return {name: "" for name in os.environ if name.startswith("CELERY_")} | more


class Monitor(Process):
    """A monitor process; `page` is what a scrape says."""

    def __init__(self, folder: Path, *arguments: str | Path, name: str = "monitor") -> None:
        argv = [sys.executable, "-m", "celeryscope", "monitor", "--listen", "127.0.0.1:0", *arguments]
        super().__init__(argv, log=folder / f"{name}.log", cwd=folder, env=environment())
        self.wait_for("serves http://")
        self.url = self.output.split("serves ", 1)[1].split("/metrics", 1)[0]

    @property
    def page(self) -> Page:
        return Page(self.get("/metrics")[1])

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def ready(self) -> bool:
        return self.get("/-/ready")[0] == 200


@pytest.fixture(name="home", scope="module")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("monitor")


@pytest.fixture(name="broker", scope="module")
def _broker(home: Path) -> Iterator[RedisServer]:
    """A broker with a password, for this module alone."""
    folder = home / "broker"
    folder.mkdir()
    server = RedisServer(folder, "--requirepass", PASSWORD)
    yield server
    server.stop()


def url(broker: RedisServer, password: str = PASSWORD) -> str:
    return f"redis://:{password}@127.0.0.1:{broker.port}/0"


@pytest.fixture(name="shop", scope="module")
def _shop(home: Path, broker: RedisServer) -> Iterator[Celery]:
    """The example app with a worker of its own; sends as a producer of the same app would."""
    env = environment(CELERY_BROKER_URL=url(broker), CELERY_RESULT_BACKEND=url(broker))
    argv = worker_argv(SHOP, "-P", "threads", "-c", "2", "-Q", "default,email,reports")
    app = Celery("producer", broker=url(broker), set_as_current=False)
    app.conf.update(task_send_sent_event=True, task_default_queue="default")
    with running(Process(argv, log=home / "worker.log", cwd=home, env=env)) as worker:
        worker.wait_for(" ready.", 60)
        yield app
    app.close()


def succeeded(monitor: Monitor) -> float:
    return monitor.page.total("celery_task_succeeded_total", task="shop.orders.place", queue="default")


def test_outcomes_are_on_the_page_and_survive_a_clean_restart(home: Path, broker: RedisServer, shop: Celery) -> None:
    """What tasks did can be scraped; SIGTERM saves it; the next start goes on from there."""
    arguments = ("--broker", url(broker), "--state-dir", home / "state")
    with running(Monitor(home, *arguments, name="first")) as monitor:
        eventually(monitor.ready)
        for number in range(5):
            shop.send_task("shop.orders.place", (number,))
        shop.send_task("shop.legacy.cleanup")
        eventually(lambda: succeeded(monitor) == 5)
        eventually(lambda: monitor.page.total("celery_task_failed_total", task="shop.legacy.cleanup") == 1)
        page = monitor.page
        assert page.total("celery_task_runtime_seconds_count", task="shop.orders.place") == 5
        assert page.total("celeryscope_connected") == 1
        assert page.total("celery_workers", state="online") == 1
        assert monitor.get("/-/healthy")[0] == 200
        eventually(lambda: monitor.page.total("celery_queue_consumers", queue="default") == 1, 30)
        assert monitor.stop() == 0
        assert "Traceback" not in monitor.output
    with running(Monitor(home, *arguments, name="second")) as monitor:
        assert succeeded(monitor) == 5
        eventually(monitor.ready)
        shop.send_task("shop.orders.place", (6,))
        eventually(lambda: succeeded(monitor) == 6)


def test_no_password_is_in_the_debug_log(home: Path, tmp_path: Path) -> None:
    """Not at the start, not while the broker is away, not when it is back."""
    server = RedisServer(tmp_path, "--requirepass", PASSWORD)
    try:
        arguments = ("--broker", url(server), "--log-level", "debug", "--state-dir", tmp_path / "state")
        with running(Monitor(tmp_path, *arguments)) as monitor:
            eventually(monitor.ready)
            server.stop()
            monitor.wait_for("trying again until it answers")
            server.start()
            monitor.wait_for("is back after", 60)
            eventually(monitor.ready)
            assert monitor.stop() == 0
        assert PASSWORD not in monitor.output
        assert "a password on the command line can be read by everybody" in monitor.output
    finally:
        server.stop()


def test_one_broker_of_several_that_is_away_does_not_disturb_the_others(tmp_path: Path, broker: RedisServer) -> None:
    """It is warned of, it is not ready, and the other one is served."""
    away = f"redis://127.0.0.1:{free_port()}/0"
    with running(Monitor(tmp_path, "--broker", f"here={url(broker)}", "--broker", f"away={away}")) as monitor:
        eventually(lambda: monitor.page.total("celeryscope_connected", broker="here") == 1)
        assert monitor.page.total("celeryscope_connected", broker="away") == 0
        status, text = monitor.get("/-/ready")
        assert status == 503
        assert "ok here" in text
        assert "failed away" in text
        assert "trying again until it answers" in monitor.output


# --- wrong input, each one line, exit code 2 --------------------------------------------------------------------------


@pytest.fixture(name="unharmed")
def _unharmed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Runs in this process: put its logging back, and let it see no settings but those given."""
    for name in list(os.environ):
        if name.startswith(("CELERY_", "CELERYSCOPE_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    root, own = logging.getLogger(), logging.getLogger("celeryscope")
    handlers, levels = root.handlers[:], (root.level, own.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    own.setLevel(levels[1])
    logging.captureWarnings(capture=False)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run the monitor in this process; return the one line it refuses with."""
    assert cli.run(["monitor", "--listen", "127.0.0.1:0", *map(str, arguments)]) == 2
    streams = capsys.readouterr()
    lines = [line for line in streams.err.splitlines() if not line.startswith("celeryscope: warning: --broker")]
    assert len(lines) == 1, streams.err
    assert lines[0].startswith("celeryscope: error: ")
    assert PASSWORD not in streams.err + streams.out
    return lines[0].removeprefix("celeryscope: error: ")


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--broker", "reids://host"], "--broker: broker reids://host: "),
        (["--broker", "nonsense"], "--broker: must be a URL"),
        (["--broker", f"redis://:{PASSWORD}@127.0.0.1:1/0"], "--broker: broker redis://:***@127.0.0.1:1/0: "),
        (["--broker", "redis://no-such-host.invalid:6379/0"], "--broker: broker redis://no-such-host.invalid:6379/0: "),
        (["--broker", "rediss://h/0?ssl_ca_certs=/no/ca.pem"], "--broker: ssl_ca_certs must be a readable file"),
        (["--broker", "redis://h", "--buckets", "celery_task_runtime_seconds=-1"], "--buckets: "),
        (["--broker", "redis://h", "--no-such-setting"], "No such option"),
        (["--broker", "redis://h", "--static-label", "queue=x"], "--static-label: static label 'queue': "),
        (["--broker", "redis://h", "--web.config.file", "/no/web.yml"], "--web.config.file: must be a readable file"),
        (["--broker", "redis://h", "--state-dir", "/no/such/dir"], "--state-dir: '/no/such/dir' cannot be made"),
        (["--broker", "redis://h", "--state-dir", "/dev/null"], "--state-dir: '/dev/null' is not a directory"),
        (["--broker", "redis://h", "--config", "/no/c.toml"], "--config: cannot read '/no/c.toml': No such file"),
        (["-A", "no_such_project"], "--app: cannot use 'no_such_project': ModuleNotFoundError"),
        ([], "--broker: no broker is named"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Names the setting, shows no password, and is no traceback."""
    assert refused(capsys, *arguments).startswith(line)


@pytest.mark.usefixtures("unharmed")
def test_a_wrong_password_is_one_line(capsys: pytest.CaptureFixture[str], broker: RedisServer) -> None:
    problem = refused(capsys, "--broker", url(broker, "guess"))
    assert problem.startswith(f"--broker: broker {url(broker, '***')}: wrong user name or password")


@pytest.mark.usefixtures("unharmed")
def test_a_port_in_use_is_one_line(capsys: pytest.CaptureFixture[str], broker: RedisServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        problem = refused(capsys, "--broker", url(broker), "--listen", address)
    assert problem.startswith(f"--listen {address}: the port is in use")


@pytest.mark.usefixtures("unharmed")
def test_an_unknown_variable_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERYSCOPE_STATE_DIRECTORY", "/x")
    assert refused(capsys, "--broker", "redis://h") == (
        "CELERYSCOPE_STATE_DIRECTORY: no such setting; did you mean CELERYSCOPE_STATE_DIR?"
    )


@pytest.mark.usefixtures("unharmed")
def test_a_state_of_a_newer_version_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_bytes(encode({}).replace(b"state 1 ", b"state 99 ", 1))
    problem = refused(capsys, "--broker", "redis://h", "--state-dir", tmp_path)
    assert problem.startswith(f"--state-dir: '{state}' was written by a newer celeryscope (format 99")


@pytest.mark.usefixtures("unharmed")
def test_a_state_that_another_monitor_holds_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    other = StateFile(tmp_path)
    other.open()
    problem = refused(capsys, "--broker", "redis://h", "--state-dir", tmp_path)
    other.close()
    assert problem == f"--state-dir: '{tmp_path}' is held by another monitor; give each its own directory"


@pytest.mark.usefixtures("unharmed")
def test_a_web_config_with_an_unknown_key_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "web.yml"
    path.write_text("tls_servr_config: {}\n")
    assert "tls_servr_config" in refused(capsys, "--broker", "redis://h", "--web.config.file", path)


def test_a_state_that_makes_no_sense_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A whole file with strange content: a warning and an empty start, and the file is kept for people."""
    file = StateFile(tmp_path)
    file.open()
    file.save({"": {"runs": "nonsense"}})
    file.close()
    options = {"broker_url": ("redis://h",), "state_dir": str(tmp_path)}
    with closing(service.Monitor(load(MonitorSettings, options=options, environ={}))) as monitor:
        monitor.restore()
        assert monitor.watches[""].pipeline.dump(clean=True)["runs"] != "nonsense"
    assert "makes no sense for broker '': " in caplog.text
    assert list(tmp_path.glob("state.damaged-*"))
