"""`celeryscope control`: one command for each action that Flower can be asked for."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import click

from . import flower_actions as actions
from .control_run import Order, run
from .flower_actions import Action
from .flower_settings import ControlSettings
from .options import from_options, settings_options

HELP = """Live control of workers and tasks, through Flower's API and with its credentials.

A WORKER is a full node name (celery@host), or what stands before the @ where only one worker has that.

Asks before it ends, throws away or holds up work. Exit code: 0 when all was done; 1 when Flower or a worker refused, or
nobody confirmed; 2 when Flower cannot be reached or does not accept the credentials, and for mistakes of typing.
"""

SIGNALS = ("SIGTERM", "SIGKILL", "SIGINT", "SIGQUIT", "SIGUSR1")

Orders = Iterator[Order]

control = click.Group("control", help=HELP)


def _command(name: str) -> Callable[[Callable[..., Orders]], click.Command]:
    """Make a subcommand of a function from its arguments to orders; its docstring is the help."""

    def decorate(ordered: Callable[..., Orders]) -> click.Command:
        @functools.wraps(ordered)
        def invoke(*, yes: bool, dry_run: bool, as_json: bool, **given: Any) -> int:
            ours = {key: given.pop(key) for key in tuple(given) if key == "config" or key.startswith("flower_")}
            settings = from_options(ControlSettings, ours, os.environ)
            try:
                orders = list(ordered(**given))
                for order in orders:
                    order.make(order.worker)  # what makes no sense is said before anything is done
            except ValueError as error:
                raise click.UsageError(str(error)) from None
            return run(settings, orders, yes=yes, dry_run=dry_run, as_json=as_json)

        shared = (
            click.option("--yes", "-y", is_flag=True, help="Do not ask."),
            click.option("--dry-run", is_flag=True, help="Print the requests, and contact nobody."),
            click.option("--json", "as_json", is_flag=True, help="Print what became of each as JSON."),
            settings_options(ControlSettings),
        )
        for decorator in reversed(shared):
            invoke = decorator(invoke)
        return control.command(name)(invoke)

    return decorate


_WORKER = click.argument("worker")
_TASK_IDS = click.argument("task_ids", metavar="TASK_ID...", nargs=-1, required=True)
_QUEUE = click.argument("queue")
_COUNT = click.argument("count", metavar="[COUNT]", type=click.IntRange(1, 10_000), default=1)
_ONLY = click.option(
    "--worker", "only", multiple=True, help="Only there; may be repeated. Default: each worker that knows the task."
)


@_command("revoke")
@_TASK_IDS
def revoke(task_ids: tuple[str, ...]) -> Orders:
    """Skip tasks that have not started yet."""
    for uuid in task_ids:
        yield Order(lambda _, uuid=uuid: actions.revoke(uuid))  # type: ignore[misc]


@_command("terminate")
@_TASK_IDS
@click.option("--signal", type=click.Choice(SIGNALS), default="SIGTERM", show_default=True, help="Sent to the process.")
def terminate(task_ids: tuple[str, ...], signal: str) -> Orders:
    """End tasks, running ones too. Revokes them, and signals the processes that run them (prefork pool)."""
    for uuid in task_ids:
        yield Order(lambda _, uuid=uuid: actions.terminate(uuid, signal))  # type: ignore[misc]


@_command("abort")
@_TASK_IDS
def abort(task_ids: tuple[str, ...]) -> Orders:
    """Ask AbortableTasks to end by themselves. Flower needs -A and an app with a result backend."""
    for uuid in task_ids:
        yield Order(lambda _, uuid=uuid: actions.abort(uuid))  # type: ignore[misc]


@_command("rate-limit")
@click.argument("task")
@click.argument("rate")
@_ONLY
def rate_limit(task: str, rate: str, only: tuple[str, ...]) -> Orders:
    """Limit how often each worker starts a task. RATE is such as 10/s, 200/m or 5/h, and 0 lifts the limit."""

    def limit(name: str) -> Action:
        # Everywhere at once it can stop a task for good, or set a flood free.
        return replace(actions.rate_limit(task, rate, name), destructive=not only)

    for worker in only or ("",):
        yield Order(limit, worker, task)


@_command("time-limit")
@click.argument("task")
@click.option("--soft", type=float, metavar="SECONDS", help="Raise SoftTimeLimitExceeded in the task after so long.")
@click.option("--hard", type=float, metavar="SECONDS", help="Kill the task's process after so long.")
@click.option("--none", "lift", is_flag=True, help="Lift both limits.")
@_ONLY
def time_limit(task: str, soft: float | None, hard: float | None, *, lift: bool, only: tuple[str, ...]) -> Orders:
    """Limit how long a task may run. A limit that is not given is lifted; Celery goes by the new ones once the worker's
    pool is restarted."""
    if lift == (soft is not None or hard is not None):
        raise click.UsageError("give --soft, --hard or both; or --none to lift them")
    for worker in only or ("",):
        yield Order(lambda name: actions.time_limit(task, name, soft=soft, hard=hard), worker, task)


@_command("pool-grow")
@_WORKER
@_COUNT
def pool_grow(worker: str, count: int) -> Orders:
    """Add slots to a worker's pool. One, unless told otherwise."""
    yield Order(lambda name: actions.pool_grow(name, count), worker)


@_command("pool-shrink")
@_WORKER
@_COUNT
def pool_shrink(worker: str, count: int) -> Orders:
    """Remove idle slots from a worker's pool. One, unless told otherwise."""
    yield Order(lambda name: actions.pool_shrink(name, count), worker)


@_command("pool-restart")
@_WORKER
def pool_restart(worker: str) -> Orders:
    """Replace all processes of a pool. The worker needs worker_pool_restarts = True."""
    yield Order(actions.pool_restart, worker)


@_command("autoscale")
@_WORKER
@click.argument("least", metavar="MIN", type=int)
@click.argument("most", metavar="MAX", type=int)
def autoscale(worker: str, least: int, most: int) -> Orders:
    """Scale a pool between MIN and MAX slots. The worker must have been started with --autoscale."""
    yield Order(lambda name: actions.autoscale(name, least, most), worker)


@_command("add-consumer")
@_WORKER
@_QUEUE
def add_consumer(worker: str, queue: str) -> Orders:
    """Let a worker consume from one more queue."""
    yield Order(lambda name: actions.add_consumer(name, queue), worker)


@_command("cancel-consumer")
@_WORKER
@_QUEUE
def cancel_consumer(worker: str, queue: str) -> Orders:
    """Stop a worker from consuming from a queue."""
    yield Order(lambda name: actions.cancel_consumer(name, queue), worker)


@_command("shutdown")
@click.argument("workers", metavar="WORKER...", nargs=-1, required=True)
def shutdown(workers: tuple[str, ...]) -> Orders:
    """Let workers finish what they run, and end."""
    for worker in workers:
        yield Order(actions.shutdown, worker)
