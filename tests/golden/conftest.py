"""Golden files: `golden("name.txt", text)` compares; UPDATE_GOLDEN=1 writes them anew, to be read before committing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.fixture(name="golden")
def _golden():
    """Compare a text with the file of that name beside this one."""

    def compare(name, text):
        file = FOLDER / name
        if os.environ.get("UPDATE_GOLDEN"):
            file.write_text(text, encoding="utf-8")
        assert file.exists(), f"{file} is missing: run UPDATE_GOLDEN=1 pytest tests/golden, and read what it wrote"
        assert text == file.read_text(encoding="utf-8"), f"differs from {file}: if that is meant, UPDATE_GOLDEN=1"

    return compare
