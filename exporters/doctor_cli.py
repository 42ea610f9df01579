"""`celeryscope doctor`: hands the settings, the app and the monitor's page to the doctor, and shows its verdict."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from ..monitor.apps import broker_configs
from ..monitor.broker import BrokerError
from ..monitor.doctor.examine import LOOKS, Patience, gather
from ..monitor.doctor.facts import FLOWER_METRICS, Facts, Monitored, Project, TaskTimes
from ..monitor.doctor.report import as_json, render
from ..monitor.doctor.verdict import judge
from ..monitor.masking import masked
from ..monitor.options import from_options, settings_options
from .doctor_settings import DoctorSettings
from .reading import Page, UnreadableError, fetch
from .watch import terminating

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..monitor.broker import BrokerConfig

LEAST_RUNS = 3
"""Runs of a task from which on their mean tells something."""

HELP = """Check a Celery set-up against the operational checklist: app, broker, workers, beat.

Reads only; takes some 15 seconds. Give -A for what only the app knows, --url for what only a monitor knows; what
cannot be learnt is said. docs/doctor.md has every check.

Exit code: 0 when no check failed, 1 when one did (errors and warnings; advice is no failure), 2 when the command
line or the settings are wrong.
"""


@click.command("doctor", help=HELP)
@settings_options(DoctorSettings)
@click.option("--json", "as_data", is_flag=True, help="Print the verdict as one JSON object.")
@click.pass_context
def doctor(ctx: click.Context, /, *, as_data: bool, **options: object) -> None:
    """Examine, show, and exit by what was found."""
    settings = from_options(DoctorSettings, options, os.environ)
    config = _broker(settings)
    with terminating(), _patience(settings):
        verdict = judge(_facts(settings, config), LOOKS, settings.ignore)
    if as_data:
        click.echo(json.dumps(as_json(verdict), indent=2))
    else:
        Console(highlight=False).print(render(verdict))
    ctx.exit(1 if verdict.failed else 0)


def _broker(settings: DoctorSettings) -> BrokerConfig:
    try:
        configs = broker_configs(settings)
        if len(configs) > 1:
            raise click.UsageError("--broker: the doctor looks at one broker at a time; give it once")
        with configs[0].connection():
            pass  # not made yet: an address that nothing can use is a mistake of settings, and no finding
    except BrokerError as error:
        raise click.ClickException(str(error)) from None
    return configs[0]


def _patience(settings: DoctorSettings) -> AbstractContextManager[Any]:
    """Say to whoever waits at a terminal what takes so long."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        return nullcontext()
    return console.status(f"looking at app, broker and workers, listening for {settings.listen_for:g} s …")


def _facts(settings: DoctorSettings, config: BrokerConfig) -> Facts:
    watched = _monitored(settings)
    return gather(
        config,
        _project(settings.app),
        list(_pages(settings, watched)),
        monitored=watched,
        grace=settings.grace_period,
        patience=Patience(answer=settings.answer_timeout, listen=settings.listen_for),
    )


def _project(name: str) -> Project | None:
    if not name:
        return None
    from celery.app.utils import find_app

    from ..monitor.doctor.gather_app import project

    try:
        return project(find_app(name), name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's modules may raise anything, and sys.exit() is no verdict
        text = masked(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
        raise click.ClickException(f"--app: {name!r} cannot be read: {text}") from error


def _pages(settings: DoctorSettings, watched: Monitored) -> Iterator[tuple[str, str]]:
    """Yield what a stranger might try: what, and where."""
    if not watched.error:
        yield "the monitor", _metrics(settings.status_url)
    if settings.flower_url:
        yield "Flower", settings.flower_url
        yield FLOWER_METRICS, f"{settings.flower_url.rstrip('/')}/metrics"


def _metrics(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rstrip('/')}/metrics" if "/" not in rest.rstrip("/") else url


def _monitored(settings: DoctorSettings) -> Monitored:
    url = masked(settings.status_url)
    if not url:
        return Monitored(error="no page was named (--url)")
    password = settings.status_password.get_secret_value()
    try:
        text = fetch(settings.status_url, settings.status_user, password, settings.status_ca_file)
        return monitored(Page(text, settings.metric_prefix), url)
    except UnreadableError as error:
        return Monitored(url=url, error=str(error))


def monitored(page: Page, url: str) -> Monitored:
    """Return what a monitor's page tells the doctor; with several brokers, names carry theirs."""
    return Monitored(
        url=url,
        events_on={name: bool(on) for name, on in page.by("worker", name="celery_worker_events_enabled").items()},
        beats={app: int(count) for app, count in page.by("app", name="celery_beats").items()},
        skews=page.by("worker", name="celery_worker_clock_skew_seconds"),
        tasks=dict(_times(page)),
    )


def _times(page: Page) -> Iterator[tuple[str, TaskTimes]]:
    name = "celery_task_runtime_seconds"
    runs, spent = page.by("task", name=f"{name}_count"), page.by("task", name=f"{name}_sum")
    running = {labels["task"]: value for labels, value in page.samples("celery_task_oldest_running_seconds")}
    slowest = _slowest(page, f"{name}_bucket")
    for task, count in runs.items():
        mean = spent.get(task, 0.0) / count if count >= LEAST_RUNS else 0.0
        yield task, TaskTimes(runs=count, mean=mean, slowest=max(slowest.get(task, 0.0), running.get(task, 0.0)))


def _slowest(page: Page, name: str) -> dict[str, float]:
    """Return the bound, by task, that at least one run has certainly exceeded."""
    series: dict[tuple[Any, ...], list[tuple[float, float]]] = defaultdict(list)
    for labels, count in page.samples(name):
        rest = tuple(sorted((key, value) for key, value in labels.items() if key != "le"))
        series[rest].append((float(labels["le"]), count))
    found: dict[str, float] = defaultdict(float)
    for rest, buckets in series.items():
        buckets.sort()
        total = buckets[-1][1]
        below = [bound for bound, count in buckets if count < total]
        task = dict(rest).get("task", "")
        found[task] = max(found[task], below[-1] if below else 0.0)
    return dict(found)
