"""Which brokers the settings name, by URL or through a user's app."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from celeryscope.monitor.apps import broker_configs
from celeryscope.monitor.broker import BrokerConfig, BrokerError
from celeryscope.monitor.configuration import load
from celeryscope.monitor.settings import MonitorSettings

if TYPE_CHECKING:
    from pathlib import Path

PROJECT = """
from celery import Celery
app = Celery("proj", broker="redis://:secret@of-the-app/3", set_as_current=False)
app.conf.broker_transport_options = {"global_keyprefix": "mine:"}
"""


def configs(**options: Any) -> list[BrokerConfig]:
    return broker_configs(load(MonitorSettings, options=options, environ={}))


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a project in it, as `celery -A` expects."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    for name in ("proj_for_apps", "broken_for_apps"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "proj_for_apps.py").write_text(PROJECT)
    (tmp_path / "broken_for_apps.py").write_text("raise RuntimeError('cannot reach redis://:secret@db')")
    return tmp_path


def test_urls_are_taken_as_they_are() -> None:
    a, b = configs(broker_url=("a=redis://a/1", "b=amqp://b//"), accept_content=("pickle",))
    assert [(a.name, a.url), (b.name, b.url)] == [("a", "redis://a/1"), ("b", "amqp://b//")]
    assert a.accept == {"json", "pickle"}


@pytest.mark.usefixtures("folder")
def test_an_app_gives_its_broker_and_options_and_a_url_replaces_its_broker() -> None:
    (own,) = configs(app="proj_for_apps")
    assert (own.url, own.transport_options) == ("redis://:secret@of-the-app/3", {"global_keyprefix": "mine:"})
    (other,) = configs(app="proj_for_apps", broker_url=("main=redis://elsewhere",))
    assert (other.name, other.url, other.transport_options) == ("main", "redis://elsewhere", own.transport_options)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("app", "reason"),
    [
        ("no_such_project", "ModuleNotFoundError: No module named 'no_such_project'"),
        ("broken_for_apps", "RuntimeError: cannot reach redis://:***@db"),
    ],
)
def test_an_app_that_cannot_be_imported_is_one_line(app: str, reason: str) -> None:
    with pytest.raises(BrokerError) as caught:
        configs(app=app)
    assert str(caught.value) == f"--app: cannot use {app!r}: {reason}"
