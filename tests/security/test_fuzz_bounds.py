"""Lies in great quantity cost a bounded amount of memory and of processor time, by the system's own limits."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "fuzz" / "bounds.py"
MEGABYTES = {"rows": 400, "starts": 200, "replies": 250}
KINDS = ("bindings", "dispatched_ids", "entries", "entry_fields", "entry_names", "old_schedules", "one_id", "outbox",
         "outbox_nested", "replies", "rows", "starts", "task_names", "workers")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_much_of_a_lie_ends_within_its_bounds(kind: str) -> None:
    """At most 150 MB (where more is kept, what MEGABYTES says) and two minutes of processor time."""
    given = str(MEGABYTES.get(kind, 150))
    done = subprocess.run(
        [sys.executable, SCRIPT, kind, given], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.stdout == "bounded\n", f"{done.returncode}: {done.stderr[-3000:]}"


def test_every_kind_of_lie_is_told() -> None:
    """One that is written and not tried proves nothing."""
    assert set(KINDS) == runpy.run_path(str(SCRIPT))["BOUNDS"].keys()
