"""Modules that are put off: imported, and executed only once something of them is asked for."""

from __future__ import annotations

import importlib
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from celeryscope.monitor.later import put_off

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "celeryscope_test_package"


@pytest.fixture(name="executed")
def _executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Return what has been executed of a package whose parts note down that they are."""
    package = tmp_path / NAME
    package.mkdir()
    note = "import celeryscope_test_notes; celeryscope_test_notes.executed.append(__name__)\n"
    (tmp_path / "celeryscope_test_notes.py").write_text("executed = []\n")
    (package / "__init__.py").write_text(f"{note}from {NAME}.part import thing\n")
    (package / "part.py").write_text(f"{note}thing = 'a thing'\n")
    (package / "light.py").write_text(note)
    monkeypatch.syspath_prepend(tmp_path)
    notes = importlib.import_module("celeryscope_test_notes")
    yield notes.executed
    for name in [name for name in sys.modules if name.startswith("celeryscope_test_")]:
        del sys.modules[name]


def test_a_package_is_executed_when_something_of_it_is_asked_for_and_once(executed: list[str]) -> None:
    """Importing it is not asking, nor is importing one of its submodules; it may refer to itself while it loads."""
    with put_off(NAME):
        importlib.import_module(NAME)
    importlib.import_module(f"{NAME}.light")
    assert executed == [f"{NAME}.light"]
    package = sys.modules[NAME]
    threads = [threading.Thread(target=lambda: seen.append(package.thing)) for _ in range(4)]
    seen: list[str] = []
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["a thing"] * 4
    assert executed == [f"{NAME}.light", NAME, f"{NAME}.part"]
    assert not hasattr(package, "no_such_thing")


def test_what_is_imported_from_it_is_there(executed: list[str]) -> None:
    with put_off(NAME):
        namespace: dict[str, str] = {}
        exec(f"from {NAME} import thing", namespace)
    assert namespace["thing"] == "a thing"
    assert executed == [NAME, f"{NAME}.part"]


def test_others_and_later_imports_are_as_ever(executed: list[str]) -> None:
    """Nothing is left among Python's finders."""
    before = list(sys.meta_path)
    with put_off(f"{NAME}.light"):
        importlib.import_module(NAME)
    assert executed == [NAME, f"{NAME}.part"]
    assert sys.meta_path == before
    importlib.import_module(f"{NAME}.light")
    assert executed == [NAME, f"{NAME}.part", f"{NAME}.light"]
