"""`celeryscope status --watch` in a real terminal: live, through an outage of the monitor, and out again by a key."""

from __future__ import annotations

import fcntl
import http.server
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import eventually

pytestmark = [pytest.mark.system, pytest.mark.timeout(200)]


class Page(http.server.BaseHTTPRequestHandler):
    """A monitor's page, or an error while `down`."""

    down = False

    def do_GET(self) -> None:
        self.send_response(503 if self.down else 200)
        self.end_headers()
        self.wfile.write(b"" if self.down else b'celeryscope_connected 1\ncelery_worker_up{worker="w"} 1\n')

    def log_message(self, *_args: object) -> None: ...


@pytest.fixture(name="url")
def _url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Page, "down", False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class Terminal:
    """A command in a terminal of 80 columns and 24 lines, and all that it has written there."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(self.ours)
        argv = [sys.executable, "-m", "celeryscope", *arguments]
        env = {**os.environ, "TERM": "xterm-256color"}
        env.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            argv, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=env, start_new_session=True
        )
        os.close(theirs)
        self.written = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self.ours, 65536):
                self.written += data.decode(errors="replace")
        except OSError:
            return  # the last one on the other side has gone

    def shows(self, text: str) -> None:
        """Wait until it has written `text` anew."""
        since = len(self.written)
        eventually(lambda: text in self.written[since:], 60)

    def ended(self) -> int:
        code = self.process.wait(60)
        self._reader.join(20)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self._reader.join(20)
        os.close(self.ours)


@pytest.fixture(name="terminal")
def _terminal(url: str, tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path, "status", "--watch", "--url", url)
    try:
        terminal.shows("nothing is wrong")
        yield terminal
    finally:
        terminal.close()


def test_it_lives_through_an_outage_and_ends_by_q(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal is left as it was found, and the exit code is that of the last screen."""
    monkeypatch.setattr(Page, "down", True)
    terminal.shows("answers 503")
    terminal.shows("nothing is wrong")  # what it last knew stays below
    os.write(terminal.ours, b"xq")
    assert terminal.ended() == 2
    assert "below is" in terminal.written
    assert terminal.written.index("\x1b[?1049h") < terminal.written.rindex("\x1b[?1049l")
    assert termios.tcgetattr(terminal.ours)[3] == terminal.before[3]
    assert "Traceback" not in terminal.written


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_as_cleanly(terminal: Terminal, number: int) -> None:
    terminal.process.send_signal(number)
    assert terminal.ended() == 0
    assert terminal.written.rindex("\x1b[?1049l") > terminal.written.rindex("nothing is wrong")
    assert "Traceback" not in terminal.written


def test_into_a_pipe_it_writes_plain_text(url: str, tmp_path: Path) -> None:
    """One report after the other; Ctrl-C is an end, not an error."""
    log = tmp_path / "out"
    with log.open("wb") as out:
        argv = [sys.executable, "-m", "celeryscope", "status", "--watch", "--url", url]
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=tmp_path,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    try:
        eventually(lambda: log.read_text().count("nothing is wrong") >= 2, 60)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert "\x1b" not in log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait(10)
