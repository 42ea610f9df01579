"""Golden files: `golden("name.txt", text)` compares; `--update-golden` writes them anew, to be read before a commit."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.fixture(name="golden")
def _golden(request: pytest.FixtureRequest):
    """Compare a text with the file of that name beside this one."""

    def compare(name, text):
        file = FOLDER / name
        if request.config.getoption("--update-golden"):
            file.write_text(text, encoding="utf-8")
        assert file.exists(), f"{file} is missing: run pytest tests/golden --update-golden, and read what it wrote"
        assert text == file.read_text(encoding="utf-8"), f"differs from {file}: if that is meant, --update-golden"

    return compare
