"""Every setting of `celeryscope monitor`, once: its name, its type, its default and what it means.

The options of the command line, the environment variables, the file and docs/configuration.md all follow from this.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from . import values
from .catalog import configured
from .configuration import Layer, Option, Settings, option_of
from .labels import DEFAULT_CAPS
from .values import Address, Target

FALLBACK_VARIABLE = "CELERY_BROKER_URL"
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _parsed_names(raw: object) -> tuple[str, ...]:
    return tuple(values.items(raw))


def _known_caps(caps: dict[str, int]) -> dict[str, int]:
    unknown = sorted(set(caps) - set(DEFAULT_CAPS))
    if unknown:
        raise ValueError(f"must be for one of the labels {', '.join(DEFAULT_CAPS)}; {unknown[0]!r} is none of them")
    return caps


def _known_buckets(buckets: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    configured(buckets)
    return buckets


def _label_names(labels: dict[str, str]) -> dict[str, str]:
    for name in labels:
        if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name) or name.startswith("__") or name in ("broker", "le"):
            raise ValueError(f"must have label names of letters, digits and _, not starting with __; not {name!r}")
    return labels


def _prefix(prefix: str) -> str:
    if prefix and not re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", prefix):
        raise ValueError("must be letters, digits, _ and :, not starting with a digit")
    return prefix


class BrokerSettings(Settings):
    """Which broker, and by whose app."""

    broker_url: Annotated[
        tuple[Target, ...],
        Option("[NAME=]URL", flag="--broker", parse=values.targets, many=True, secret=True, table="brokers"),
    ] = Field(
        default=(),
        description="The broker to watch, as in Celery's broker_url. For several brokers give NAME=URL repeatedly; "
        'every series then carries broker="NAME". Without it CELERY_BROKER_URL counts.',
    )
    app: Annotated[str, Option("MODULE", flag="--app", short="-A")] = Field(
        default="",
        description="A Celery app to take broker, TLS and transport options from, as in celery -A; a broker URL given "
        "as well replaces the app's.",
    )
    accept_content: Annotated[
        tuple[Literal["json", "yaml", "msgpack", "pickle"], ...], Option("TYPE", parse=_parsed_names, many=True)
    ] = Field(
        default=("json",),
        description="Content types accepted from the broker: json, yaml, msgpack, pickle. Whoever can write to the "
        "broker can run code in celeryscope where pickle is accepted.",
    )

    @classmethod
    def fallback(cls, environ: Mapping[str, str], given: Collection[str]) -> Layer:
        """Take Celery's own variable for the broker where neither a broker nor an app was given."""
        layer = Layer()
        text = environ.get(FALLBACK_VARIABLE)
        if text and not {"broker_url", "app"} & set(given):
            layer.take("broker_url", FALLBACK_VARIABLE, text, option_of(cls.model_fields["broker_url"]))
        return layer

    def problems(self) -> Iterator[tuple[str, str]]:
        """Say which settings do not go together."""
        if not self.broker_url and not self.app:
            yield "broker_url", "no broker is named; give --broker redis://host:6379/0, or -A with your Celery app"
        if self.app and len(self.broker_url) > 1:
            yield "app", "takes one broker's options; give it without several --broker"


class CommonSettings(BrokerSettings):
    """What every long-running command of celeryscope is told."""

    state_dir: Annotated[Path | None, Option("DIR")] = Field(
        default=None,
        description="Where to keep what must survive a restart. Made if its parent exists. Without it nothing is kept.",
    )
    web_config_file: Annotated[Path | None, Option("FILE", flag="--web.config.file", parse=values.readable_file)] = (
        Field(default=None, description="TLS and basic auth for our own pages, in Prometheus' exporter-toolkit format.")
    )
    static_label: Annotated[
        dict[str, str],
        Option("KEY=VALUE", parse=values.pairs(), many=True, table="static_labels"),
        AfterValidator(_label_names),
    ] = Field(default_factory=dict, description="A label that every series shall carry; may be repeated.")
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Option("LEVEL", parse=lambda raw: str(raw).lower())
    ] = Field(default="warning", description="The least level that is logged: debug, info, warning or error.")
    log_format: Annotated[Literal["text", "json"], Option("FORMAT")] = Field(
        default="text", description="Log lines as text, or as one JSON object each."
    )


class MonitorSettings(CommonSettings):
    """All that `celeryscope monitor` is told."""

    section: ClassVar[str] = "monitor"

    listen: Annotated[Address, Option("HOST:PORT", parse=values.address)] = Field(
        default=Address("127.0.0.1", 9808),
        description="Where to serve /metrics, /-/healthy and /-/ready; :9808 means all addresses.",
    )
    compat: Annotated[tuple[Literal["celery-exporter"], ...], Option("NAME", parse=_parsed_names, many=True)] = Field(
        default=(),
        description="celery-exporter: serve danihodovic/celery-exporter's names at /metrics/celery-exporter as well.",
    )
    metric_prefix: Annotated[str, Option("PREFIX"), AfterValidator(_prefix)] = Field(
        default="", description="Put in front of every metric's name. The shipped dashboards and rules expect none."
    )
    buckets: Annotated[
        dict[str, tuple[float, ...]],
        Option("METRIC=BOUND,BOUND,…", parse=values.pairs(value=values.numbers), many=True),
        AfterValidator(_known_buckets),
    ] = Field(
        default_factory=dict,
        description="Other bucket bounds for one histogram, such as celery_task_runtime_seconds=0.1,1,10; may be "
        "repeated.",
    )
    cap: Annotated[
        dict[str, Annotated[int, Field(ge=1)]],
        Option("LABEL=COUNT", parse=values.pairs(), many=True, table="caps"),
        AfterValidator(_known_caps),
    ] = Field(
        default_factory=dict,
        description="How many values a label may have before the rest are put under __other__; may be repeated. "
        "Defaults: " + ", ".join(f"{label}={count}" for label, count in DEFAULT_CAPS.items()) + ".",
    )
    queue: Annotated[tuple[str, ...], Option("NAME", parse=_parsed_names, many=True, table="queues")] = Field(
        default=(), description="A queue to sample even before any worker or message tells of it; may be repeated."
    )
    max_live_tasks: Annotated[int, Option("COUNT"), Field(ge=1)] = Field(
        default=200_000, description="Unfinished tasks remembered for each broker; beyond it the oldest are dropped."
    )
    worker_timeout: Annotated[Seconds, Option("SECONDS")] = Field(
        default=60.0, description="A worker that is silent for so long counts as lost."
    )
    forget_worker_after: Annotated[Seconds, Option("SECONDS")] = Field(
        default=3600.0, description="The series of a worker that is gone disappear after so long."
    )
    sample_interval: Annotated[float, Option("SECONDS"), Field(ge=0.1, le=86400, allow_inf_nan=False)] = Field(
        default=10.0, description="Time between two samples of the broker's queues."
    )
    state_save_interval: Annotated[float, Option("SECONDS"), Field(ge=0.1, le=86400, allow_inf_nan=False)] = Field(
        default=60.0, description="Time between two saves into the state directory."
    )
    enable_events: Annotated[bool, Option()] = Field(
        default=False,
        description="Switch task events on in workers that were started without -E, and keep them switched on.",
    )
    rabbitmq_management_url: Annotated[
        tuple[Target, ...],
        Option("[NAME=]URL", parse=values.targets, many=True, secret=True, table="rabbitmq_management_urls"),
    ] = Field(
        default=(),
        description="RabbitMQ's management API, such as http://user:password@host:15672, for the priorities and the "
        "age of messages. With several brokers give NAME=URL.",
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        """Say which settings do not go together."""
        yield from super().problems()
        brokers = {target.name for target in self.broker_url} or {""}
        for target in self.rabbitmq_management_url:
            if target.name not in brokers:
                yield "rabbitmq_management_url", f"{target.name!r} is not the name of a broker"
        if self.forget_worker_after < self.worker_timeout:
            yield "forget_worker_after", f"must not be shorter than worker_timeout ({self.worker_timeout:g} s)"
