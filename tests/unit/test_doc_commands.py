"""Every command that README and docs show is one that exists, with options that exist.

Those of ours are read by our own command line, as far as running them; tests/integration/test_quick_start.py runs them,
tests/deploy and `make compose-test` what deploys. What belongs to others is named here, with the reason.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Any

import click
import pytest
from celeryscope import cli
from celeryscope.monitor.configuration import SettingsError, load
from documented import PAGES, Command, commands, inline
from helpers import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.repository

OTHERS = {
    "cp": "the system's",
    "curl": "needs a server; those of the quick start are run",
    "docker": "needs an engine: make compose-test runs the stack",
    "eval": "the shell's own: completion is tested below",
    "export": "the shell's own: its variables are looked at below",
    "gcloud": "needs a project at Google",
    "grep": "the system's",
    "helm": "tests/deploy/test_chart.py renders what these install",
    "install": "the system's",
    "kubectl": "needs a cluster",
    "printf": "the shell's own",
    "python3": "the system's",
    "rabbitmqctl": "needs a node: tests/integration/test_queues_rabbitmq.py runs it",
    "source": "the shell's own",
    "systemctl": "needs systemd as the first process",
}

ALL = [command for page in PAGES for command in commands(page)]


def name_of(command: Command) -> str:
    return command.argv[0] if command.argv else ""


def ids(command: Command) -> str:
    return f"{command.page}: {' '.join(command.argv)[:60]}"


def read(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> click.Context:
    """Have our command line read this one and stop before it runs; return the context of the command at its end."""
    reached: list[click.Context] = []
    monkeypatch.setattr(click.Command, "invoke", lambda _self, ctx: reached.append(ctx))
    try:
        cli.cli.main(argv, prog_name="celeryscope", standalone_mode=False)
    except click.exceptions.Exit:  # --help and --version have nothing more to read
        return click.Context(cli.cli)
    return reached[-1]


OURS = [command for command in ALL if name_of(command) == "celeryscope"]


@pytest.mark.parametrize("command", OURS, ids=ids)
def test_our_command_line_understands_it(command: Command, monkeypatch: pytest.MonkeyPatch):
    """All of it: the command, each option, each argument; and each value, where it is a setting's."""
    reached = read(command.argv[1:], monkeypatch)
    section = command.argv[1] if len(command.argv) > 1 else ""
    for where in cli.SETTINGS:
        settings = cli._resolve(where)
        if settings.section == section and set(reached.params) & set(settings.model_fields):
            options = {name: value for name, value in reached.params.items() if name in settings.model_fields}
            assert faults(settings, options, {"CELERYSCOPE_CONFIG": os.devnull, **command.env}) == []


ELSEWHERE = re.compile(r"No such file or directory|nor the directory")
"""What is wrong with a file or a folder that is on the reader's machine and not on this one."""


def faults(settings: Any, options: dict[str, Any], environ: dict[str, str]) -> list[str]:
    try:
        load(settings, options=options, environ=environ, also_known=cli.known_settings())
    except SettingsError as error:
        return [problem for problem in error.problems if not ELSEWHERE.search(problem)]
    return []


@pytest.mark.parametrize("command", [c for c in ALL if name_of(c) != "celeryscope"], ids=ids)
def test_what_is_not_ours_is_known(command: Command):
    name = name_of(command)
    if name in {"pip", "/opt/celeryscope/bin/pip"}:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extra in re.findall(r"celeryscope\[([\w,]+)\]", command.line):
            assert set(extra.split(",")) <= set(project["optional-dependencies"])
    elif name == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(command.argv[1:]) <= set(targets)
    elif name.startswith(("deploy/", "tests/")):
        assert os.access(ROOT / name, os.X_OK)
    elif name == "python":
        assert (ROOT / command.argv[1]).exists()
    elif name:
        assert name in OTHERS, f"{command.page}: {command.line}: run it in a test, or say in OTHERS why not"


@pytest.mark.parametrize("command", [c for c in ALL if c.env], ids=ids)
def test_variables_are_settings(command: Command):
    known = {"CELERYSCOPE_CONFIG", "_CELERYSCOPE_COMPLETE"}
    for name in cli.known_settings():
        known |= {f"CELERYSCOPE_{name.upper()}", f"CELERYSCOPE_{name.upper()}_FILE"}
    given = {name for name in command.env if "CELERYSCOPE" in name}
    assert given <= known


INLINE = sorted({text for page in PAGES for text in inline(page)})


@pytest.mark.parametrize("text", INLINE)
def test_commands_within_the_text_exist(text: str):
    group: Any = cli.cli
    _, *words = text.split()
    while isinstance(group, click.Group) and words and re.fullmatch(r"[a-z][a-z-]*", words[0]):
        found = group.get_command(click.Context(group), words[0])
        assert found is not None, f"there is no {words[0]}"
        group, words = found, words[1:]
    options = {flag for param in group.params for flag in param.opts} | {"--help", "--version"}
    for word in words:
        flag = word.strip("[]().,;").partition("=")[0]
        if re.fullmatch(r"--?[a-z][\w.-]*", flag):
            assert flag in options, f"{flag} is no option of {group.name}"


def test_reasons_are_given_for_what_is_there_and_for_nothing_else():
    assert set(OTHERS) <= {name_of(command) for command in ALL}


def test_the_pages_have_commands():
    """The reading itself: were nothing found, nothing above would fail."""
    pages = {command.page for command in OURS}
    assert {"README.md", "docs/quickstart.md", "docs/slack.md", "docs/dashboards.md"} <= pages
    assert len(OURS) > 15
    assert len(INLINE) > 15


@pytest.mark.parametrize(
    ("words", "offers"),
    [
        (["celeryscope", "mon"], ["monitor"]),
        (["celeryscope", "monitor", "--state-d"], ["--state-dir"]),
        (["celeryscope", "incidents", "res"], ["resolve"]),
        (["celeryscope", "--vers"], ["--version"]),
    ],
)
def test_shells_complete_commands_and_options(words: list[str], offers: list[str], monkeypatch: pytest.MonkeyPatch):
    from click.shell_completion import BashComplete

    completer = BashComplete(cli.cli, {}, "celeryscope", "_CELERYSCOPE_COMPLETE")
    assert [item.value for item in completer.get_completions(words[1:-1], words[-1])] == offers
    # Names of commands are offered even where what a command needs is not installed.
    monkeypatch.setattr(cli, "_resolve", lambda where: pytest.fail(f"{where} was imported"))
    assert {"monitor", "demo"} <= {item.value for item in completer.get_completions([], "")}
