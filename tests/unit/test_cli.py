"""The `celeryscope` command: quick help, and one line for whatever is wrong."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import celeryscope
import pytest
from celeryscope import cli
from celeryscope.monitor.settings import MonitorSettings

if TYPE_CHECKING:
    from pathlib import Path


def error(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line on stderr."""
    streams = capsys.readouterr()
    assert streams.err.endswith("\n")
    assert streams.err.count("\n") == 1
    return streams.err.removeprefix("celeryscope: error: ").rstrip("\n")


def test_version_and_help_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert celeryscope.__version__ in capsys.readouterr().out
    for arguments in ([], ["--help"]):
        assert cli.run(arguments) == 0
        page = capsys.readouterr().out
        for name in cli.COMMANDS:
            assert name in page


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_is_there_and_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([name, "--help"]) == 0
    assert f"celeryscope {name}" in capsys.readouterr().out


def test_to_look_a_command_up_takes_nothing_from_the_garbage_collector() -> None:
    """Whoever asks for its help, in a process of their own, must get what they use freed."""
    before = gc.get_freeze_count()
    cli.run(["monitor", "--help"])
    assert gc.get_freeze_count() == before


def test_every_setting_of_the_monitor_is_an_option_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    """The options follow from the settings, descriptions and defaults included."""
    from celeryscope.monitor.configuration import flag_of

    cli.run(["monitor", "--help"])
    page = " ".join(capsys.readouterr().out.split())
    for name, info in MonitorSettings.model_fields.items():
        assert flag_of(name, info) in page
        assert info.description
        assert " ".join(info.description.split())[:40].split(" ")[0] in page
    assert "[default: 127.0.0.1:9808]" in page


def test_an_unknown_command_or_option_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["monitr"]) == 2
    assert error(capsys) == "no such command 'monitr'; did you mean monitor?"
    assert cli.run(["monitor", "--brokr", "x"]) == 2
    assert "--brokr" in error(capsys)


def test_a_missing_extra_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever installed the probes alone is told what to install for this command."""
    missing = cli.Entry("no_such_package.commands:x", "alerter", "help")
    monkeypatch.setitem(cli.COMMANDS, "alerter", missing)
    assert cli.run(["alerter"]) == 2
    assert (
        error(capsys) == "`celeryscope alerter` needs the package no_such_package: pip install 'celeryscope[alerter]'"
    )


def test_a_monitor_without_the_alerters_packages_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--with-alerter` needs more than `celeryscope[monitor]`."""

    class NoSqlalchemy:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "sqlalchemy":
                raise ModuleNotFoundError("no sqlalchemy", name=name)

    for name in [name for name in sys.modules if name.startswith(("celeryscope.alerts.", "sqlalchemy"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NoSqlalchemy(), *sys.meta_path])
    assert cli.run(["monitor", "--with-alerter", "--broker", "redis://h"]) == 2
    assert error(capsys).endswith("needs the package sqlalchemy: pip install 'celeryscope[alerter]'")


def test_settings_of_other_commands_are_no_mistake(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One environment serves all commands; a name that none of them knows is refused."""
    monkeypatch.setenv("CELERYSCOPE_MAX_LIVE_TASKS", "7")
    monkeypatch.setenv("CELERYSCOPE_LISTN", "x")
    assert cli.run(["status", "--url", "http://127.0.0.1:1"]) == 2
    assert error(capsys) == "CELERYSCOPE_LISTN: no such setting; did you mean CELERYSCOPE_LISTEN?"


def test_a_password_on_the_command_line_earns_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["status", "--url", "http://127.0.0.1:1", "--user", "me", "--password", "geheim"]) == 2
    warning, problem = capsys.readouterr().err.splitlines()
    assert warning.startswith("celeryscope: warning: --password: a password on the command line")
    assert "CELERYSCOPE_STATUS_PASSWORD_FILE" in warning
    assert "cannot be read" in problem
    assert "geheim" not in warning + problem


def test_help_imports_no_heavy_package() -> None:
    """`celeryscope --help` answers at once: click and our own three modules."""
    program = (
        "import sys; from celeryscope.cli import run; run(['--help']); print(*sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"pydantic", "celery", "kombu", "redis", "rich", "prometheus_client", "httpx", "cheroot"}
    assert not heavy & set(done.stderr.split())


def test_without_click_the_script_says_what_to_install(tmp_path: Path) -> None:
    """`pip install celeryscope` alone (for a worker) brings the script but not its packages."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nclass No:\n    def find_spec(self, name, *_):\n"
        "        if name == 'click': raise ModuleNotFoundError('no click', name='click')\n"
        "sys.meta_path.insert(0, No())\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "celeryscope"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 2
    assert done.stderr == (
        "celeryscope: error: the command line needs the package click: pip install 'celeryscope[monitor]'\n"
    )


def test_a_reader_that_leaves_early_is_no_error() -> None:
    """`celeryscope --help | head -1` ends without a complaint."""
    done = subprocess.run(
        f"{sys.executable} -u -m celeryscope --help | head -c 1", shell=True, capture_output=True, text=True
    )
    assert done.stderr == ""
