"""`celeryscope flower`: starts Flower closed to strangers, bounded in memory, and with a memory of its own."""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, ClassVar

import click
from pydantic import Field

from . import values
from .configuration import Option
from .flower import FlowerLinks
from .flower_settings import LoginSettings
from .options import from_options, settings_options
from .values import Address, Target

DATABASE = "flower"
"""Flower's file in the state directory (its dbm may add endings)."""

MAIN = "celeryscope.monitor.flower_main"

# fmt: off
OURS = frozenset((
    "address", "port", "unix_socket", "xheaders", "url_prefix",
    "basic_auth", "auth", "auth_provider", "oauth2_key", "oauth2_secret", "oauth2_redirect_uri", "cookie_secret",
    "db", "persistent", "state_save_interval", "max_tasks", "purge_offline_workers", "read_only", "enable_events",
))
# fmt: on
"""Options of Flower's that only our settings, or its own FLOWER_* variables, may give."""

HELP = """Start Flower, for live control and for looking at single tasks.

It refuses to start without credentials where others than this machine could reach it. The password is handed over in
the environment: no list of processes shows it. What follows a -- goes to Flower as it is.

Flower's own FLOWER_* variables count too: FLOWER_AUTH, FLOWER_AUTH_PROVIDER and FLOWER_OAUTH2_* for a login by OAuth.
Flower answers /metrics and /healthcheck without asking for credentials: keep the former from strangers.
"""


def _prefix(raw: object) -> str:
    prefix = str(raw).strip().strip("/")
    if not re.fullmatch(r"[\w./~-]*", prefix):
        raise ValueError("must be a path such as flower or tools/flower")
    return prefix


class LaunchSettings(LoginSettings):
    """What `celeryscope flower` is told."""

    section: ClassVar[str] = "flower"

    app: Annotated[str, Option("MODULE", flag="--app", short="-A")] = Field(
        default="",
        description="Your Celery app, as in celery -A. Without it Flower can change no rate and time limits.",
    )
    broker_url: Annotated[
        tuple[Target, ...],
        Option("URL", flag="--broker", parse=values.targets, many=True, secret=True, table="brokers"),
    ] = Field(default=(), description="The broker, where the app does not name it. One Flower sees one broker.")
    flower_listen: Annotated[Address, Option("HOST:PORT", flag="--listen", parse=values.address)] = Field(
        default=Address("127.0.0.1", 5555), description="Where to serve; :5555 means all addresses."
    )
    flower_url_prefix: Annotated[str, Option("PATH", flag="--url-prefix", parse=_prefix)] = Field(
        default="", description="The path that Flower has behind a proxy, which must hand it over unchanged."
    )
    flower_max_tasks: Annotated[int, Option("COUNT", flag="--max-tasks"), Field(ge=100)] = Field(
        default=10_000, description="So many tasks are remembered, about 10 kB each."
    )
    flower_purge_offline_workers: Annotated[int, Option("SECONDS", flag="--purge-offline-workers"), Field(ge=1)] = (
        Field(default=86_400, description="Workers that are gone disappear after so long.")
    )
    flower_read_only: Annotated[bool, Option(flag="--read-only")] = Field(
        default=False, description="Show, and allow no control."
    )
    flower_enable_events: Annotated[bool, Option(flag="--enable-events")] = Field(
        default=False,
        description="Let Flower switch the workers' events on, every 5 s. install(app) or worker -E does it once.",
    )
    state_dir: Annotated[Path | None, Option("DIR")] = Field(
        default=None, description="Where Flower keeps what it has seen. Without it a restart forgets all."
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        """Say which settings do not go together."""
        yield from super().problems()
        if len(self.broker_url) > 1:
            yield "broker_url", "one Flower sees one broker; start one for each"
        if self.state_dir is not None and not (self.state_dir.is_dir() or self.state_dir.absolute().parent.is_dir()):
            yield "state_dir", f"neither {str(self.state_dir)!r} nor the directory it would be in exists"


def loopback(address: Address) -> bool:
    """Tell whether only this machine can reach an address."""
    if address.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.host.partition("%")[0]).is_loopback
    except ValueError:
        return False  # all addresses, or a name that may mean any


def refused(settings: LaunchSettings, environ: Mapping[str, str], extra: Sequence[str]) -> str | None:
    """Return why Flower must not be started so; None when it may."""
    for argument in extra:
        name = argument.lstrip("-").partition("=")[0].replace("-", "_")
        if argument.startswith("-") and name in OURS:
            return f"{argument.partition('=')[0]} after --: give it as a setting of celeryscope flower (see --help)"
    open_to_all = not settings.login[1] and not environ.get("FLOWER_BASIC_AUTH") and not environ.get("FLOWER_AUTH")
    if open_to_all and not loopback(settings.flower_listen):
        return (
            f"--listen: {settings.flower_listen} can be reached from other machines, and whoever reaches Flower can "
            "stop your workers: set CELERYSCOPE_FLOWER_AUTH=USER:PASSWORD (or CELERYSCOPE_FLOWER_AUTH_FILE, or "
            "FLOWER_AUTH for OAuth), or listen on 127.0.0.1"
        )
    return None


def command_line(settings: LaunchSettings, extra: Sequence[str]) -> list[str]:
    """Return the command that is Flower, without any secret in it."""
    host, port = settings.flower_listen
    given = {
        "address": host,
        "port": str(port),
        "max_tasks": str(settings.flower_max_tasks),
        "purge_offline_workers": str(settings.flower_purge_offline_workers),
        "enable_events": str(settings.flower_enable_events),
        "read_only": str(settings.flower_read_only),
    }
    if settings.flower_url_prefix:
        given["url_prefix"] = settings.flower_url_prefix
        given["xheaders"] = "True"
    if settings.state_dir is not None:
        given |= {"persistent": "True", "db": str(settings.state_dir.absolute() / DATABASE)}
        given["state_save_interval"] = "60000"
    if not any(argument.startswith("--conf") for argument in extra):
        # Else Flower runs a flowerconfig.py that happens to lie here, and that one could open it again.
        given["conf"] = os.devnull
    app = ["-A", settings.app] if settings.app else []
    options = [f"--{name}={value}" for name, value in given.items()]
    return [sys.executable, "-m", MAIN, *app, "flower", *options, *extra]


def environment(settings: LaunchSettings, environ: Mapping[str, str]) -> dict[str, str]:
    """Return Flower's environment, which carries its secrets: others cannot read it."""
    env = dict(environ)
    if settings.login[1]:
        env["FLOWER_BASIC_AUTH"] = ":".join(settings.login)
    if settings.broker_url:
        env["CELERY_BROKER_URL"] = settings.broker_url[0].url.get_secret_value()
    return env


@click.command("flower", help=HELP)
@settings_options(LaunchSettings)
@click.argument("extra", metavar="[-- FLOWER_OPTIONS...]", nargs=-1, type=click.UNPROCESSED)
def flower(extra: tuple[str, ...], **options: object) -> None:
    """Become Flower: signals reach it, and its exit code is ours."""
    settings = from_options(LaunchSettings, options, os.environ)
    if problem := refused(settings, os.environ, extra):
        raise click.UsageError(problem)
    if find_spec("flower") is None:
        raise click.ClickException("Flower is not installed: pip install 'flower>=2.2'")
    if settings.state_dir is not None:
        settings.state_dir.mkdir(mode=0o700, exist_ok=True)
    host, port = settings.flower_listen
    pages = FlowerLinks.below(f"http://{Address(host or '127.0.0.1', port)}", settings.flower_url_prefix)
    click.echo(f"celeryscope: Flower at {pages.base}", err=True)
    argv = command_line(settings, extra)
    os.execve(argv[0], argv, environment(settings, os.environ))  # noqa: S606 - our own command line, and no shell
