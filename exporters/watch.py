"""`celeryscope status --watch`: reads again and again, keeps the last screen when cut off, and ends well."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.text import Text

from .reading import UnreadableError
from .status_screen import fitting, render

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from .report import Report

EVERY = 2.0
ENDING = frozenset(b"qQ\x04")


@dataclass
class Watched:
    """What is known at the moment: the last report that could be had, and why there is no newer one."""

    address: str
    read: Callable[[float], Report]
    clock: Callable[[], float] = time.time
    report: Report | None = None
    read_at: float = 0.0
    error: str = ""
    tried_at: float = 0.0

    def look(self) -> None:
        """Read once."""
        self.tried_at = self.clock()
        try:
            self.report, self.read_at, self.error = self.read(self.tried_at), self.tried_at, ""
        except UnreadableError as error:
            self.error = str(error)

    @property
    def code(self) -> int:
        """The exit code of this moment: 2 unreadable, 1 something is wrong, 0 fine."""
        if self.error or self.report is None:
            return 2
        return 1 if self.report.problems else 0

    def headline(self) -> Text:
        """Return what is watched and when it was read; or since when it cannot be."""
        if not self.error:
            return Text(f"{self.address}  {_clock(self.read_at)}", style="dim")
        text = f"✗ {_clock(self.tried_at)}: {self.address} {self.error}"
        if self.report is not None:
            text += f"; below is what it said at {_clock(self.read_at)}, {self.tried_at - self.read_at:.0f} s ago"
        return Text(text, style="bold red")

    def screen(self, console: Console, limit: int) -> RenderableType:
        """Return the whole screen, with as many rows as the terminal has lines for."""
        parts: list[RenderableType] = [self.headline(), Text("q ends", style="dim")]
        if self.report is not None:
            used = len(console.render_lines(Group(*parts), pad=False))
            parts.append(fitting(self.report, limit, console, console.height - used))
        return Group(*parts)


def _clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))


def watch(watched: Watched, console: Console, limit: int, ended: Callable[[float], bool]) -> int:
    """Show until `ended`, which waits for so many seconds, says so, or Ctrl-C; return the exit code of the last screen.

    Where the output is no terminal, each report is printed after the other, as `status` would.
    """
    with contextlib.suppress(KeyboardInterrupt):
        if console.is_terminal:
            _live(watched, console, limit, ended)
        else:
            _printed(watched, console, limit, ended)
    return watched.code


def _live(watched: Watched, console: Console, limit: int, ended: Callable[[float], bool]) -> None:
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            watched.look()
            live.update(watched.screen(console, limit), refresh=True)
            if ended(EVERY):
                return


def _printed(watched: Watched, console: Console, limit: int, ended: Callable[[float], bool]) -> None:
    while True:
        watched.look()
        console.print(watched.headline())
        if watched.report is not None and not watched.error:
            console.print(render(watched.report, limit))
        if ended(EVERY):
            return


def lines(watched: Watched, write: Callable[[Watched], None], ended: Callable[[float], bool]) -> int:
    """Write one line after the other, for scripts; return the exit code of the last."""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            watched.look()
            write(watched)
            if ended(EVERY):
                break
    return watched.code


@contextlib.contextmanager
def keys() -> Iterator[Callable[[float], bool]]:
    """Give a function that waits for so many seconds and tells whether somebody pressed q; SIGTERM ends as Ctrl-C does.

    The terminal answers single keys meanwhile, and is as before afterwards.
    """
    with contextlib.ExitStack() as afterwards:
        afterwards.enter_context(terminating())
        if not _single_keys(afterwards):
            yield _waited
            return
        yield _pressed


def _waited(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _pressed(seconds: float) -> bool:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left)[0]:
            pressed = os.read(sys.stdin.fileno(), 64)
            if not pressed or ENDING & set(pressed):
                return True
    return False


def _single_keys(afterwards: contextlib.ExitStack) -> bool:
    if not sys.stdin.isatty():
        return False
    try:
        import termios
        import tty
    except ImportError:  # Windows
        return False
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    afterwards.callback(termios.tcsetattr, sys.stdin, termios.TCSADRAIN, before)
    return True


@contextlib.contextmanager
def terminating() -> Iterator[None]:
    """Let SIGTERM end as Ctrl-C does: a terminal that is left as it is shows no prompt."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
