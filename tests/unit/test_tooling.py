"""The small tools of `make check` and CI: each finds what it is there to find."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest
from helpers import ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.repository


def run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(a) for a in argv], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)


def test_sizes_finds_long_functions_and_modules(tmp_path: Path):
    body = "".join(f"    x = {number}\n" for number in range(40))
    (tmp_path / "long_function.py").write_text(f"def f():\n{body}")
    (tmp_path / "long_module.py").write_text("x = 1\n" * 401)
    done = run(sys.executable, ROOT / ".ci/sizes.py", tmp_path)
    assert done.returncode == 1
    assert "f() has 41 lines" in done.stdout
    assert "long_module.py: 401 lines" in done.stdout


def test_sizes_does_not_count_docstrings(tmp_path: Path):
    text = '    """' + "Explain.\n    " * 60 + '"""\n'
    (tmp_path / "explained.py").write_text(f"def f():\n{text}    return 1\n")
    done = run(sys.executable, ROOT / ".ci/sizes.py", tmp_path)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_python_that_is_not_there_is_a_clear_error():
    done = run(ROOT / ".ci/find-python", "3.1", "3.0")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "looked for: 3.1 3.0" in done.stderr
    assert "make PYTHON=" in done.stderr


def test_the_python_that_runs_this_is_found():
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    done = run(ROOT / ".ci/find-python", "3.1", version)
    assert done.returncode == 0, done.stderr
    told = run(done.stdout.strip(), "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    assert told.stdout.strip() == version


def test_wheel_contents_finds_what_is_missing_and_what_is_too_many(tmp_path: Path):
    source = tmp_path / "source"
    (source / "part").mkdir(parents=True)
    (source / "pyproject.toml").write_text('[tool.setuptools]\npackages = ["celeryscope", "celeryscope.part"]\n')
    for name in ("__init__.py", "part/__init__.py", "part/new.py"):
        (source / name).touch()
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as wheel:
        for name in ("__init__.py", "part/__init__.py", "part/old.py", "py.typed"):
            wheel.writestr(f"celeryscope/{name}", "")
        for name in ("tests/test_it.py", "x.dist-info/licenses/LICENSE", "x.dist-info/entry_points.txt"):
            wheel.writestr(name, "")
    done = run(sys.executable, ROOT / ".ci/wheel_contents.py", tmp_path / "some.whl", source)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "missing from the wheel: celeryscope/part/new.py",
        "not expected in the wheel: celeryscope/part/old.py",
        "not expected in the wheel: tests/test_it.py",
        "outside the package: tests/test_it.py",
    ]


IN_PACKAGE = {
    "dockerd": "docker.io",
    "docker": "docker.io",
    "ip": "iproute2",
    "mmdebstrap": "mmdebstrap",
    "iptables": "iptables",
}
ALWAYS_THERE = {"unshare", "setpriv", "docker-compose"}
"""Of util-linux, which is essential in Debian; and of the development pins."""


def test_what_the_compose_test_needs_is_installed_on_a_bare_machine():
    """.ci/run ends with it, on an engine of its own, and installs nothing but the Makefile's list."""
    assert "COMPOSE_TEST_ENGINE=own make" in (ROOT / ".ci/run").read_text()
    (loop,) = re.findall(r"^for command in (.+); do$", (ROOT / ".ci/compose-test").read_text(), re.MULTILINE)
    assert set(loop.split()) == {*IN_PACKAGE, *ALWAYS_THERE}
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (packages,) = re.findall(r"^DEBIAN_PACKAGES := (.+)$", makefile, re.MULTILINE)
    assert set(IN_PACKAGE.values()) <= set(packages.split())
