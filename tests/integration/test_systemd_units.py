"""The systemd units, as systemd itself reads and judges them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from deploying import SERVICES, UNITS
from helpers import system_command

pytestmark = [pytest.mark.system, pytest.mark.repository]


@pytest.mark.parametrize("name", SERVICES)
def test_systemd_accepts_the_unit_and_finds_little_exposed(name: str, tmp_path: Path):
    analyze = system_command("systemd-analyze")
    here = str(Path(sys.executable).with_name("celeryscope"))
    unit = tmp_path / f"celeryscope-{name}.service"
    text = (UNITS / unit.name).read_text()
    unit.write_text(text.replace("/opt/celeryscope/bin/celeryscope", here))
    verified = subprocess.run([analyze, "verify", "--man=no", unit], capture_output=True, text=True, timeout=60)
    assert (verified.returncode, verified.stderr) == (0, "")
    judged = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=20", "--no-pager", unit],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert judged.returncode == 0, judged.stdout
