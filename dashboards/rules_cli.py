"""`celeryscope rules`: writes the rules and Alertmanager's configuration, or says that they are out of date."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..monitor.options import from_options, settings_options
from .thresholds import RulesSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

F = TypeVar("F", bound="Callable[..., Any]")
DEFAULT_OUT = Path("celeryscope-rules")


def outputs(settings: RulesSettings) -> dict[str, str]:
    """Return the text of every file, by path below the output folder."""
    from . import alertmanager, rules

    return {**rules.files(settings), **alertmanager.files(settings)}


def stale(folder: Path, wanted: Mapping[str, str]) -> list[str]:
    """Return the paths of the files that are missing or say something else."""
    return [name for name, text in wanted.items() if _text(folder / name) != text]


def write(folder: Path, wanted: Mapping[str, str]) -> None:
    """Write all files.

    Raises:
        OSError: one of them cannot be written.
    """
    for name, text in wanted.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")


def settled(folder: Path, wanted: Mapping[str, str], option: str, *, check: bool) -> bool:
    """Write the files, or check them; tell what was not as it should be, and return whether something was not.

    Raises:
        ClickException: a file cannot be written; `option` named the folder.
    """
    different = stale(folder, wanted)
    if not check:
        try:
            write(folder, wanted)
        except OSError as error:
            raise click.ClickException(f"{option} {folder}: cannot write {error.filename}: {error.strerror}") from None
    for name in different:
        click.echo(f"{folder / name} {'is out of date' if check else 'written'}")
    if not different:
        click.echo(f"{folder}: all {len(wanted)} files are up to date")
    return bool(different)


def output_options(default: Path) -> Callable[[F], F]:
    """Return a decorator that adds `--out` and `--check`, as every command has that writes files."""

    def decorate(command: F) -> F:
        help_of_check = "Write nothing; exit code 1 where a file is missing or out of date."
        command = click.option("--check", is_flag=True, help=help_of_check)(command)
        folder = click.Path(path_type=Path, file_okay=False)
        return click.option("--out", type=folder, default=default, show_default=True, help="The folder to write into.")(
            command
        )

    return decorate


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None


@click.group("rules")
def rules_command() -> None:
    """Prometheus rules and an Alertmanager configuration, with your thresholds."""


@rules_command.command("build")
@output_options(DEFAULT_OUT)
@settings_options(RulesSettings)
@click.pass_context
def build(context: click.Context, /, out: Path, check: bool, **options: object) -> None:
    """Write rules/*.yml for Prometheus, alertmanager/ for Alertmanager, kubernetes/ for the Prometheus operator.

    Thresholds come from the table [rules] of celeryscope.toml, from CELERYSCOPE_* variables, and from options.
    """
    wanted = outputs(from_options(RulesSettings, options, os.environ))
    if settled(out, wanted, "--out", check=check) and check:
        context.exit(1)
