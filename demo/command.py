"""`celeryscope demo`: starts the stack, shows it, and leaves nothing behind."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

import click
from rich.console import Console
from rich.live import Live

from ..exporters.reading import Page, UnreadableError, fetch
from .processes import Nursery
from .screen import hints, places, screen
from .stack import DemoError, Stack

REFRESH = 1.0


class _Stop(Exception):  # noqa: N818 - no error: somebody wants us to end
    """SIGTERM, SIGINT or SIGHUP came."""


@click.command("demo")
@click.option("--port", default=9808, show_default=True, help="Port for the metrics; a free one where it is taken.")
@click.option("--rate", default=8.0, show_default=True, type=click.FloatRange(0.1, 200), help="Messages a second.")
@click.option("--for", "seconds", type=click.FloatRange(min=0), help="End by itself after so many seconds.")
@click.option(
    "--stack", "whole", is_flag=True, help="The services of docker-compose.yml: a web service and Alertmanager as well."
)
def demo(port: int, rate: float, seconds: float | None, whole: bool) -> None:
    """Run the whole system on this machine, on a broker of its own: no Docker, nothing to configure.

    An example shop with two workers, beat and customers; celeryscope monitor; the alerter and a Slack inbox to read;
    Flower for live control; Prometheus where it is installed.
    """
    console = Console(highlight=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    nursery = Nursery()
    try:
        stack = Stack(nursery, port, rate)
        console.print(
            "starting broker, monitor, Slack inbox, Flower, alerter, two workers, beat, customers …", style="dim"
        )
        stack.start(whole_stack() if whole else ())
        _show(console, stack, time.monotonic() + seconds if seconds is not None else None)
    except _Stop:
        console.print("\nstopping …", style="dim")
    except DemoError as error:
        raise click.ClickException(str(error)) from None
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave anything behind
        nursery.close()


def whole_stack() -> Sequence[Callable[[Stack], None]]:
    """Return all services; the rules that they need are imported for them alone."""
    from .whole import SERVICES

    return SERVICES


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise _Stop


def _show(console: Console, stack: Stack, until: float | None) -> None:
    """Show the stack until somebody ends it; without a terminal, say once where it is."""
    if not console.is_terminal:
        sys.stdout.write(f"{places(stack)}\n\ntry, in another terminal:\n{hints(stack)}")
        sys.stdout.flush()
        _wait(stack, until, None)
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        _wait(stack, until, live)


def _wait(stack: Stack, until: float | None, live: Live | None) -> None:
    while until is None or time.monotonic() < until:
        if problem := stack.lost():
            raise DemoError(problem)
        stack.revive(time.monotonic())
        if live is not None:
            live.update(screen(stack, _page(stack)), refresh=True)
        time.sleep(REFRESH)


def _page(stack: Stack) -> Page | None:
    try:
        return Page(fetch(stack.monitor_url))
    except UnreadableError:
        return None
