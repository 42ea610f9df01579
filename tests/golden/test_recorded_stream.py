"""The page that a recorded stream of a real worker gives, whole; linted by promtool as well."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from celeryscope.exporters.prometheus import Exposition
from celeryscope.monitor.catalog import METRICS
from celeryscope.monitor.events import Decoder
from celeryscope.monitor.pipeline import Pipeline
from helpers import system_command

if TYPE_CHECKING:
    from collections.abc import Callable

STREAM = Path(__file__).with_name("stream.jsonl")


class Replay:
    """A pipeline that was fed the stream, each event at its own time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pipeline = Pipeline(METRICS, clock=lambda: self.now)
        self.pipeline.connection(up=True, now=1_799_999_990.0)
        decoder = Decoder()
        for line in STREAM.read_bytes().splitlines():
            (event,) = decoder.decode("", line)
            self.now = max(self.now, event.timestamp)
            self.pipeline.tick(self.now)
            self.pipeline.feed([event], self.now)
        self.pipeline.tick(self.now + 2)

    def page(self) -> str:
        return Exposition({"": self.pipeline}, own=False).render().decode()


def test_page(golden: Callable[[str, str], None]) -> None:
    golden("recorded_stream.txt", Replay().page())


@pytest.mark.system
def test_promtool_finds_nothing_wrong_with_it() -> None:
    lint = subprocess.run(
        [system_command("promtool"), "check", "metrics"], input=Replay().page(), capture_output=True, text=True
    )
    assert (lint.returncode, lint.stdout + lint.stderr) == (0, "")


def test_everything_on_the_page_is_in_the_catalogue_and_the_other_way_round() -> None:
    """What needs the broker or the source rather than events is filled elsewhere."""
    page: dict[str, Any] = {metric.name: metric for metric, _ in Replay().pipeline.families()}
    assert page == {name: METRICS[name] for name in page}
    expected = {m.name for m in METRICS.values() if m.group in ("tasks", "workers")}
    assert expected <= page.keys()


def test_the_stream_survives_any_batching() -> None:
    decoder = Decoder()
    lines = STREAM.read_bytes().splitlines()
    one = Pipeline(METRICS)
    for line in lines:
        one.feed(decoder.decode("", line), 1_800_000_000.0)
    many = Pipeline(METRICS)
    batch = [event for line in lines for event in decoder.decode("", line)]
    assert len(batch) == len(lines)
    many.feed(batch, 1_800_000_000.0)
    counts = [m for m in METRICS.values() if m.group == "tasks" and m.kind == "counter"]
    for pipeline in (one, many):
        pipeline.tick(1_800_000_010.0)
    assert [_samples(one, m.name) for m in counts] == [_samples(many, m.name) for m in counts]
    assert msgspec.json.encode(one.dump(clean=False)["runs"]) == msgspec.json.encode(many.dump(clean=False)["runs"])


def _samples(pipeline: Pipeline, name: str) -> list[Any]:
    return sorted(sample for metric, samples in pipeline.families() if metric.name == name for sample in samples)
