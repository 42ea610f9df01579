"""The demo's workers: ended by whoever tries things out, and back a while later."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celeryscope.alerts.options import task_settings
from celeryscope.demo import stack, tasks
from celeryscope.demo.slack import CHANNELS
from celeryscope.demo.stack import BACK_AFTER, Stack


class Child(SimpleNamespace):
    def finish(self, deadline: float) -> None:
        self.finished = deadline


def test_a_worker_that_was_killed_is_back_after_a_while_and_only_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Late enough to be lost first; what its process group left is ended before."""
    started: list[str] = []

    def start(given: Stack, name: str) -> None:
        started.append(name)
        given.services[name] = child(running=True)

    def child(**facts: Any) -> Any:
        return Child(finished=None, **facts)

    monkeypatch.setattr(stack, "start_worker", start)
    demo = Stack(None, 0, 1.0, services={"worker": child(running=True), "reports": child(running=False)})  # type: ignore[arg-type]
    killed: Any = demo.services["reports"]
    for now in (1000.0, 1001.0, 999.0 + BACK_AFTER):
        demo.revive(now)
    assert started == []
    demo.revive(1000.0 + BACK_AFTER)
    assert started == ["reports"]
    assert killed.finished == 1000.0 + BACK_AFTER
    demo.revive(1001.0 + BACK_AFTER)
    assert demo.ended == {}
    assert started == ["reports"]


def test_the_example_app_shows_settings_of_a_task_that_are_understood() -> None:
    """People copy it."""
    settings, wrong = task_settings("charge", tasks.charge.celeryscope)
    assert wrong == []
    assert settings.sent["channel"] == f"#{CHANNELS[1]}"
    assert settings.include_args == {"order"}
