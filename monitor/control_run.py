"""Carries orders out through Flower: finds whom they are for, asks back, performs, and reports what came of each."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import click
import msgspec
from rich.console import Console
from rich.text import Text

from .doctor.facts import is_local
from .flower_actions import Action, FlowerError
from .flower_client import FlowerClient, Worker
from .flower_settings import ControlSettings
from .masking import HIDDEN
from .printable import printable

TRIES = 3
"""Asking a worker about itself harms nobody, and a busy machine may be late."""


@dataclass(frozen=True)
class Order:
    """What somebody wants: `make` gives the action for a worker's full name.

    `worker` is how the worker was typed. Without it, `task` means every worker that registers that task; without
    either, no single worker is meant.
    """

    make: Callable[[str], Action]
    worker: str = ""
    task: str = ""


@dataclass(frozen=True)
class Step:
    """An action that is ready to be performed, or why it is not; `note` is what Flower knows of its target."""

    action: Action
    note: str = ""
    error: FlowerError | None = None
    said: str = ""

    @property
    def ok(self) -> bool:
        """Whether it was done."""
        return self.error is None

    @property
    def message(self) -> str:
        """What came of it, in a line."""
        return printable(self.said if self.error is None else str(self.error))


def run(settings: ControlSettings, orders: Sequence[Order], *, yes: bool, dry_run: bool, as_json: bool) -> int:
    """Carry out the orders and report on them; return the exit code."""
    if dry_run:
        _show_requests(settings, [_unsent(order) for order in orders], as_json=as_json)
        return 0
    _warn_of_clear_text(settings)
    with closing(_client(settings)) as client:
        steps = [step for order in orders for step in prepared(client, order)]
        if not yes and not _confirmed([step for step in steps if step.ok and step.action.destructive]):
            click.echo(
                "celeryscope: error: not confirmed, and nothing was done; --yes does it without asking", err=True
            )
            return 1
        steps = [performed(client, step) if step.ok else step for step in steps]
    _report(settings, steps, as_json=as_json)
    return exit_code(steps)


def _warn_of_clear_text(settings: ControlSettings) -> None:
    address = urlsplit(settings.flower_url)
    if settings.login[0] and address.scheme == "http" and not is_local(address.hostname or ""):
        click.echo(
            f"celeryscope: warning: --flower-url: the password goes to {address.hostname} in clear text; use https://",
            err=True,
        )


def exit_code(steps: Sequence[Step]) -> int:
    """Return 0 when all was done, 2 when Flower could not be asked, 1 when something was refused."""
    kinds = {step.error.kind for step in steps if step.error is not None}
    return 2 if kinds - {"refused"} else 1 if kinds else 0


def prepared(client: FlowerClient, order: Order) -> Iterator[Step]:
    """Yield the steps of an order, after a look at whom they are for."""
    name = order.worker
    try:
        if order.worker:
            name = full_name(client, order.worker)
            yield _checked(client, order.make(name))
        elif order.task:
            found, silent = everywhere(client, order.task)
            yield from (Step(order.make(name)) for name in found)
            yield from (Step(order.make(name), error=_silence(name)) for name in silent)
        else:
            yield _noted(client, order.make(""))
    except FlowerError as error:
        yield Step(order.make(name), error=error)


def performed(client: FlowerClient, step: Step) -> Step:
    """Do it, and return the step with what came of it."""
    try:
        return replace(step, said=client.perform(step.action))
    except FlowerError as error:
        return replace(step, error=error)


def full_name(client: FlowerClient, typed: str) -> str:
    """Return the full name of the worker that `typed` means.

    Raises:
        FlowerError: no worker is called so, or several are.
    """
    if "@" in typed:
        return typed
    online = client.online()
    found = [name for name in online if name.partition("@")[0] == typed]
    # One that is gone does not stand in the way of the one that took its place.
    found = [name for name in found if online[name]] or found
    if len(found) == 1:
        return found[0]
    if found:
        raise FlowerError(f"several workers are called {typed!r}; name one of: {', '.join(sorted(found))}")
    raise FlowerError(f"no worker is called {typed!r}; {_known(online)}")


def everywhere(client: FlowerClient, task: str) -> tuple[list[str], list[str]]:
    """Return the names of all workers that answer and register the task, and of those that may but do not answer.

    Raises:
        FlowerError: no worker registers it.
    """
    online = client.online()
    workers = client.workers()
    answering = [worker for worker in workers.values() if worker.answered]
    found = sorted(worker.name for worker in answering if task in worker.tasks)
    others = (name for name, alive in online.items() if alive and name not in {worker.name for worker in answering})
    silent = sorted(name for name in others if name not in workers or task in workers[name].tasks)
    if not found and not silent:
        raise _unknown_task(task, answering) if answering else FlowerError("no worker answers")
    return found, silent


def _checked(client: FlowerClient, action: Action) -> Step:
    worker = _asked(client, action.worker)
    if action.task and action.task not in worker.tasks:
        raise _unknown_task(action.task, [worker])
    count = int(dict(action.params).get("n", "0"))
    if action.name == "pool-shrink" and not worker.autoscale and count >= (worker.slots or math.inf):
        raise FlowerError(f"{worker.name} has {worker.slots} slots, and one must remain: shut it down instead")
    if action.name == "autoscale" and worker.autoscale and int(dict(action.params)["max"]) < worker.autoscale["max"]:
        action = replace(action, destructive=True)  # what it takes off holds up work, as pool-shrink does
    note = "" if worker.active is None else f"{worker.active} of {worker.slots or '?'} slots are busy"
    return Step(action, note)


def _asked(client: FlowerClient, name: str) -> Worker:
    for _ in range(TRIES):
        worker = client.worker(name)
        if worker is not None and worker.answered:
            return worker
    if worker is None:
        raise FlowerError(f"no worker is called {name!r}; {_known(client.online())}")
    raise _silence(name)


def _silence(name: str) -> FlowerError:
    return FlowerError(f"{name} does not answer: it may be busy, stopped or gone")


def _noted(client: FlowerClient, action: Action) -> Step:
    task = client.task(action.uuid)
    if task is None:
        # It may wait in a queue since before Flower was started: workers will remember the order.
        return Step(action, "Flower has not seen it")
    where = f" on {task.worker}" if task.worker else ""
    ended = ", it has ended already" if task.ended else ""
    return Step(action, f"{task.name or 'of unknown name'}, {task.state}{where}{ended}")


def _known(online: dict[str, bool]) -> str:
    alive = sorted(name for name, is_alive in online.items() if is_alive)
    return f"Flower knows: {', '.join(alive)}" if alive else "Flower hears of no worker at all"


def _unknown_task(task: str, workers: Sequence[Worker]) -> FlowerError:
    registered = sorted({name for worker in workers for name in worker.tasks})
    near = difflib.get_close_matches(task, registered, n=1)
    who = workers[0].name if len(workers) == 1 else "any worker"
    return FlowerError(f"{task!r} is not registered by {who}" + (f"; did you mean {near[0]}?" if near else ""))


def _client(settings: ControlSettings) -> FlowerClient:
    try:
        return settings.client()
    except FlowerError as error:
        raise click.ClickException(str(error)) from None


def _confirmed(steps: Sequence[Step]) -> bool:
    if not steps:
        return True
    for step in steps:
        click.echo(printable(step.action.effect + (f" ({step.note})" if step.note else "")), err=True)
    try:
        return click.confirm("Do it?" if len(steps) == 1 else f"Do all {len(steps)}?", err=True)
    except click.Abort:
        click.echo(err=True)
        return False


def _unsent(order: Order) -> Action:
    return order.make(order.worker or (f"<each worker that knows {order.task}>" if order.task else ""))


def _request(settings: ControlSettings, action: Action) -> dict[str, Any]:
    return {"method": "POST", "url": f"{settings.flower_url.rstrip('/')}/{action.path}", "form": dict(action.params)}


def _show_requests(settings: ControlSettings, actions: Sequence[Action], *, as_json: bool) -> None:
    if as_json:
        _print_json([{"action": one.name, "target": one.target, "request": _request(settings, one)} for one in actions])
        return
    user, _ = settings.login
    for action in actions:
        request = _request(settings, action)
        click.echo(f"POST {request['url']}")
        if user:
            click.echo(f"     Authorization: Basic {user}:{HIDDEN}")
        for key, value in request["form"].items():
            click.echo(f"     {key}={value}")


def _report(settings: ControlSettings, steps: Sequence[Step], *, as_json: bool) -> None:
    if as_json:
        _print_json([_plain(settings, step) for step in steps])
        return
    good, bad = Console(highlight=False, soft_wrap=True), Console(highlight=False, soft_wrap=True, stderr=True)
    for step in steps:
        if not step.ok:
            # As every other error of ours, in one line.
            bad.print(Text("celeryscope: error: "), Text(step.message, style="red"), sep="")
            continue
        more = printable(f": {step.said}" + (f" ({step.note})" if step.note else ""))
        good.print(Text("✓ ", style="green"), Text(printable(step.action.effect)), Text(more, style="dim"), sep="")
        if step.action.caveat:
            good.print(Text(f"  {step.action.caveat}", style="yellow"))


def _plain(settings: ControlSettings, step: Step) -> dict[str, Any]:
    about = {"action": step.action.name, "target": step.action.target, "request": _request(settings, step.action)}
    return {**about, "ok": step.ok, "message": step.message, "note": step.note, "caveat": step.action.caveat}


def _print_json(value: object) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
