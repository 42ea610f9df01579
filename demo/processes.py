"""Child processes that never outlive the demo: started in groups of their own, ended politely or for certain."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

REAPER = Path(__file__).with_name("reaper.py")


class Child:
    """A process, in a session of its own with all that it starts; its output goes to a file."""

    def __init__(self, name: str, argv: Sequence[str], nursery: Nursery, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = nursery.folder / f"{name}.log"
        self._nursery = nursery
        with self.log.open("ab") as out:
            self.popen = subprocess.Popen(  # noqa: S603 - our own command lines
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=nursery.folder,
                env=dict(env) if env is not None else None,
                start_new_session=True,
            )
        nursery.adopt(self)

    @property
    def pid(self) -> int:
        """The process id, which is its group's too."""
        return self.popen.pid

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self.popen.poll() is None

    @property
    def state(self) -> str:
        """One word or two for people."""
        return "running" if self.running else f"ended ({self.popen.returncode})"

    def tail(self, lines: int = 5) -> str:
        """Return the last lines of the output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def terminate(self) -> None:
        """Ask the process to end; a stopped one is woken, or it could not."""
        if self.running:
            self.popen.terminate()
            self.popen.send_signal(signal.SIGCONT)

    def finish(self, deadline: float) -> None:
        """Wait for the process until the monotonic time `deadline`, then kill whatever is left of its group."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait()
        self._nursery.forget(self)


class Nursery:
    """Owns a temporary folder and all children; when this process dies, a reaper process sees to both."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="celeryscope-demo-"))
        self.children: list[Child] = []
        self._reaper = subprocess.Popen(  # noqa: S603 - our own file
            [sys.executable, "-I", str(REAPER)], stdin=subprocess.PIPE, text=True, start_new_session=True
        )
        self._tell(f"folder {self.folder}")

    def adopt(self, child: Child) -> None:
        """See to it that the child does not outlive us."""
        self.children.append(child)
        self._tell(f"group {child.pid}")

    def forget(self, child: Child) -> None:
        """The child has ended, and its group with it."""
        self.children.remove(child)
        self._tell(f"ended {child.pid}")

    def close(self, grace: float = 4.0) -> None:
        """End the children, the last one first, within `grace` seconds; then remove the folder."""
        deadline = time.monotonic() + grace
        for child in reversed(self.children):
            child.terminate()
        for child in reversed(self.children):
            child.finish(deadline)
        assert self._reaper.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._reaper.stdin.close()
        self._reaper.wait()

    def _tell(self, line: str) -> None:
        assert self._reaper.stdin is not None
        self._reaper.stdin.write(line + "\n")
        self._reaper.stdin.flush()


def free_port(preferred: int = 0) -> int:
    """Return the preferred port if nobody listens there, else one that was free a moment ago."""
    for port in (preferred, 0):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(sock.getsockname()[1])
    raise OSError("no free port")
