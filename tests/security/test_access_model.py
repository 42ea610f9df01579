"""SECURITY.md says by which test a border is held: those tests are there, and none of ours is left out."""

from __future__ import annotations

import re

import pytest
from helpers import ROOT

pytestmark = pytest.mark.repository

MODEL = (ROOT / "SECURITY.md").read_text()


def named() -> set[str]:
    return set(re.findall(r"`(tests/[\w/*]+\.py)`", MODEL))


def test_every_test_that_the_threat_model_names_is_there() -> None:
    assert len(named()) > 20
    assert [name for name in sorted(named()) if not list(ROOT.glob(name))] == []


def test_every_security_test_stands_for_a_border_of_the_model() -> None:
    covered = {path for name in named() for path in ROOT.glob(name)}
    others = set((ROOT / "tests" / "security").glob("test_*.py")) - covered
    assert {path.name for path in others} <= {"test_access_model.py"}


def test_the_model_has_what_a_threat_model_has() -> None:
    """Assets, actors, borders, and what is not held; and it says that events can be forged."""
    titles = re.findall(r"^## (.*)$", MODEL, re.MULTILINE)
    assert titles == ["What is worth protecting", "Who might do harm", "Where the borders are", "Forgery",
                      "What is not held"]  # fmt: skip
    assert "Whoever can publish to the broker can lie" in MODEL
