"""`celeryscope status --watch`: what it shows when all is well, when it is cut off, and how it ends."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator

import pytest
from celeryscope.exporters import status as status_module
from celeryscope.exporters.reading import Page, UnreadableError
from celeryscope.exporters.report import Report, report
from celeryscope.exporters.status import StatusSettings, read
from celeryscope.exporters.watch import Watched, lines, watch
from rich.console import Console

GOOD = 'celeryscope_connected 1\ncelery_worker_up{worker="w"} 1\n'
BAD = "celeryscope_connected 0\n"


class Monitor:
    """Says one page after the other; None is a monitor that cannot be read."""

    def __init__(self, *pages: str | None) -> None:
        self.pages = list(pages)
        self.now = 1_000_000.0

    def read(self, now: float) -> Report:
        page = self.pages.pop(0)
        if page is None:
            raise UnreadableError("cannot be read: refused")
        return report(Page(page), now)

    def clock(self) -> float:
        self.now += 5
        return self.now

    def watched(self) -> Watched:
        return Watched("http://monitor:9808", self.read, self.clock)

    def ended(self, _seconds: float) -> bool:
        """Somebody presses q once there is nothing more to see."""
        return not self.pages


def test_the_exit_code_is_that_of_the_last_screen() -> None:
    for pages, code in [((GOOD,), 0), ((GOOD, BAD), 1), ((BAD, GOOD), 0), ((GOOD, None), 2), ((None, GOOD), 0)]:
        monitor = Monitor(*pages)
        assert watch(monitor.watched(), Console(file=io.StringIO()), 15, monitor.ended) == code, pages


def test_ctrl_c_ends_as_q_does() -> None:
    def interrupted(_seconds: float) -> bool:
        raise KeyboardInterrupt

    for page, code in ((GOOD, 0), (BAD, 1), (None, 2)):
        assert watch(Monitor(page).watched(), Console(file=io.StringIO()), 15, interrupted) == code


def screens(*pages: str | None) -> Iterator[str]:
    """Yield what is on the screen after each reading."""
    monitor = Monitor(*pages)
    watched = monitor.watched()
    while monitor.pages:
        watched.look()
        console = Console(file=io.StringIO(), width=80, height=24, highlight=False)
        console.print(watched.screen(console, 15))
        file = console.file
        assert isinstance(file, io.StringIO)
        yield " ".join(file.getvalue().split())


def test_a_lost_connection_keeps_the_last_screen_and_says_so() -> None:
    """With the time it is from, and for as long as it takes."""
    fine, cut_off, still, back = screens(GOOD, None, None, BAD)
    assert "nothing is wrong" in fine
    assert "cannot be read" not in fine
    assert "http://monitor:9808 cannot be read: refused; below is what it said at" in cut_off
    assert "5 s ago" in cut_off
    assert "nothing is wrong" in cut_off
    assert "10 s ago" in still
    assert "hears nothing from the broker" in back
    assert "cannot be read" not in back


def test_a_monitor_that_was_never_there_is_one_line() -> None:
    (screen,) = screens(None)
    assert "cannot be read: refused" in screen
    assert "below" not in screen
    assert "trust" not in screen


def test_without_a_terminal_reports_come_one_after_the_other() -> None:
    """Into a pipe or a file go texts, no control codes; NO_COLOR and a terminal without colours mean the same words."""
    out = io.StringIO()
    monitor = Monitor(GOOD, None, BAD)
    watch(monitor.watched(), Console(file=out, width=80, highlight=False), 15, monitor.ended)
    text = out.getvalue()
    assert "\x1b" not in text
    assert [text.count(words) for words in ("✓ nothing is wrong", "cannot be read: refused", "hears nothing")] == [
        1,
        1,
        1,
    ]


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "xterm-256color"}])
def test_a_terminal_gets_a_screen_of_its_own_and_has_its_old_one_back(environment: dict[str, str]) -> None:
    out = io.StringIO()
    monitor = Monitor(GOOD, BAD)
    console = Console(
        file=out, width=80, height=24, force_terminal=True, highlight=False, _environ={"TERM": "xterm", **environment}
    )
    assert watch(monitor.watched(), console, 15, monitor.ended) == 1
    text = out.getvalue()
    assert text.index("\x1b[?1049h") < text.index("nothing is wrong") < text.rindex("\x1b[?1049l")
    coloured = "\x1b[1;31m" in text or "\x1b[1;32m" in text
    assert coloured == ("NO_COLOR" not in environment)


def test_scripts_get_a_line_for_each_reading() -> None:
    written: list[dict[str, object]] = []

    def write(watched: Watched) -> None:
        written.append(json.loads(json.dumps(status_module._data(watched))))

    monitor = Monitor(GOOD, None, BAD)
    assert lines(monitor.watched(), write, monitor.ended) == 1
    assert [set(line) >= {"at", "problems", "trust"} for line in written] == [True, False, True]
    assert written[1] == {"at": 1_000_010.0, "error": "cannot be read: refused"}


def test_another_servers_page_is_not_all_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is wrong with nothing: that would be a lie."""
    settings = StatusSettings(status_url="http://other:9100")
    pages: Callable[..., str] = lambda *_: "node_load1 0.5\n"  # noqa: E731
    monkeypatch.setattr(status_module, "fetch", pages)
    with pytest.raises(UnreadableError, match="is not a monitor's page"):
        read(settings, 0.0)
