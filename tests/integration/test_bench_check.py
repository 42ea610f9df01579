"""The check that CI makes of our speed: it can fail, and it has something to compare with."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture(name="check")
def _check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """The check with one figure of 100 and a baseline that says 90."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(BENCH)
    import check

    monkeypatch.setattr(check, "BASELINE", tmp_path / "baseline.json")
    monkeypatch.setattr(check, "figures", lambda: iter([("instructions", 100.0, 1.1)]))
    monkeypatch.setattr(sys, "argv", ["check.py"])
    check.BASELINE.write_text(json.dumps({check.PYTHON: {"instructions": 95.0}, "2.7": {"instructions": 1.0}}))
    yield check
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCH)):
            del sys.modules[name]


def test_a_figure_within_its_tolerance_passes(check: ModuleType) -> None:
    """Noise is no finding."""
    assert check.main() == 0


def test_a_figure_beyond_its_tolerance_fails_and_is_named(
    check: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slower is said, with what was stored and what is allowed."""
    check.BASELINE.write_text(json.dumps({check.PYTHON: {"instructions": 90.0}}))
    assert check.main() == 1
    out = capsys.readouterr().out
    assert "instructions" in out
    assert "90.000" in out
    assert "SLOWER" in out


def test_a_python_without_a_baseline_fails(check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """A check that compares with nothing does not pass."""
    check.BASELINE.write_text("{}")
    assert check.main() == 1
    assert "no baseline" in capsys.readouterr().out


def test_update_writes_this_pythons_figures_and_keeps_the_others(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next check passes."""
    monkeypatch.setattr(sys, "argv", ["check.py", "--update"])
    check.BASELINE.write_text(json.dumps({"2.7": {"instructions": 1.0}}))
    assert check.main() == 0
    assert json.loads(check.BASELINE.read_text()) == {
        "2.7": {"instructions": 1.0},
        check.PYTHON: {"instructions": 100.0},
    }


def test_instructions_are_counted_alike_each_time(check: ModuleType) -> None:
    """The count is of what Python executes, and not of time; but for what it executes the first time alone."""

    def work() -> int:
        return sum(number % 7 for number in range(1_000))

    check.instructions(work)
    count = check.instructions(work)
    assert count > 1_000
    assert check.instructions(work) == count


def test_ci_has_something_to_compare_with() -> None:
    """CI runs the check on the newest Python."""
    stored = json.loads((BENCH / "baseline.json").read_text())
    assert {"3.11", "3.12", "3.13"} <= stored.keys()
    assert stored["3.11"].keys() == stored["3.12"].keys() == stored["3.13"].keys()
