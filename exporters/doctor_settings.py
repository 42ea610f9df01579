"""What `celeryscope doctor` is told; imports neither Celery nor the doctor: other commands ask for its names."""

from __future__ import annotations

import difflib
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from ..monitor import values
from ..monitor.configuration import Option
from ..monitor.doctor.registry import CHECKS
from ..monitor.settings import BrokerSettings
from .status import StatusSettings


def _known_ids(ids: tuple[str, ...]) -> tuple[str, ...]:
    for name in ids:
        if name not in CHECKS:
            near = difflib.get_close_matches(name, CHECKS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"no check is called {name!r}; {hint}There are: {', '.join(CHECKS)}")
    return ids


def _ids(raw: object) -> tuple[str, ...]:
    return tuple(values.items(raw))


class DoctorSettings(StatusSettings, BrokerSettings):
    """What `celeryscope doctor` is told: as the monitor and as status, and what follows."""

    section: ClassVar[str] = "doctor"

    ignore: Annotated[tuple[str, ...], Option("ID", parse=_ids, many=True), AfterValidator(_known_ids)] = Field(
        default=(), description="A check that is left out, by its id; may be repeated."
    )
    flower_url: Annotated[str, Option("URL")] = Field(
        default="",
        repr=False,  # it may hold a password
        description="A Flower, to see whether it answers strangers.",
    )
    grace_period: Annotated[float | None, Option("SECONDS"), Field(gt=0, allow_inf_nan=False)] = Field(
        default=None,
        description="How long a worker may take to end before it is killed (terminationGracePeriodSeconds, "
        "stop_grace_period, TimeoutStopSec). Without it Kubernetes' 30 s are taken, for advice only.",
    )
    answer_timeout: Annotated[float, Option("SECONDS"), Field(gt=0, le=60)] = Field(
        default=3.0, description="How long to wait for another worker's answer."
    )
    listen_for: Annotated[float, Option("SECONDS"), Field(ge=0, le=600)] = Field(
        default=11.0,
        description="How long to listen to events; workers tell of themselves every 2 s, beats every 10 s.",
    )
