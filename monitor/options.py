"""Settings as command line options: every command gets its options, and their help, from its settings class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .configuration import PREFIX, Settings, SettingsError, exposed, flag_of, load, option_of
from .logs import hide

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pydantic.fields import FieldInfo

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S", bound=Settings)


KNOWN = "celeryscope.known_settings"
"""Key of click's `Context.meta`: a function that returns the names of every command's settings."""


class SettingsFault(click.ClickException):
    """Settings that cannot be used, for click to show: a line for each problem, exit code 2."""

    exit_code = 2

    def __init__(self, error: SettingsError) -> None:
        super().__init__("\n".join(error.problems))


def settings_options(settings: type[Settings]) -> Callable[[F], F]:
    """Give a click command an option for each field of `settings`, and `--config`.

    Values arrive as the texts that were typed: `from_options` reads them, so that all problems come out together.
    """

    def decorate(command: F) -> F:
        for name, info in reversed(settings.model_fields.items()):
            command = _option(name, info)(command)
        return click.option(
            "--config",
            type=click.Path(path_type=Path),
            help="Configuration file (default: celeryscope.toml, if present).",
        )(command)

    return decorate


def from_options(
    settings: type[S],
    options: Mapping[str, Any],
    environ: Mapping[str, str],
) -> S:
    """Return the settings of a command from its click parameters and the environment, warning of exposed secrets.

    What the root command left under `KNOWN` names the settings of other commands, which are no mistakes for this one.

    Raises:
        SettingsFault: with all problems of all sources.
    """
    given = {name: value for name, value in options.items() if name != "config"}
    config = options.get("config")
    try:
        try:
            result = load(settings, options=given, environ=environ, config=config)
        except SettingsError:
            # Only now, since looking at the other commands' settings means importing them.
            result = load(settings, options=given, environ=environ, config=config, also_known=_known())
    except SettingsError as error:
        raise SettingsFault(error) from None
    hide(result.secrets)
    for flag in exposed(settings, given):
        click.echo(
            f"celeryscope: warning: {flag}: a password on the command line can be read by everybody on this machine; "
            f"use {_variable(settings, flag)} or {_variable(settings, flag)}_FILE",
            err=True,
        )
    return result


def _known() -> Collection[str]:
    context = click.get_current_context(silent=True)
    names: Callable[[], Collection[str]] = context.meta.get(KNOWN, tuple) if context else tuple
    return names()


def _variable(settings: type[Settings], flag: str) -> str:
    name = next(name for name, info in settings.model_fields.items() if flag_of(name, info) == flag)
    return PREFIX + name.upper()


def _option(name: str, info: FieldInfo) -> Callable[[F], F]:
    option = option_of(info)
    flag = flag_of(name, info)
    if info.annotation is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=_help(info))
    names = [short for short in (option.short,) if short]
    return click.option(
        *names, flag, name, metavar=option.metavar, multiple=option.many, default=None, help=_help(info)
    )


def _help(info: FieldInfo) -> str:
    default = default_text(info)
    return (info.description or "") + (f"  [default: {default}]" if default else "")


def default_text(info: FieldInfo) -> str:
    """Return a setting's default as one would type it; nothing where it has none."""
    default = info.get_default(call_default_factory=True, validated_data={})
    if default is None or default in ((), {}, "", False):
        return ""
    # An Address is a tuple with a text of its own.
    if type(default) is tuple:
        return " ".join(str(item) for item in default)
    return f"{default:g}" if isinstance(default, float) else str(default)
