"""How settings are read: file, environment and options in layers, every problem found and named in one go."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from .masking import HIDDEN, masked, secrets_in

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

PREFIX = "CELERYSCOPE_"
CONFIG_VARIABLE = PREFIX + "CONFIG"
DEFAULT_FILE = Path("celeryscope.toml")

S = TypeVar("S", bound="Settings")


@dataclass(frozen=True)
class Option:
    """How one setting looks to people; put it into the field's `Annotated[...]`.

    `parse` turns what a source holds (a text, a list of texts, a TOML value) into the field's value and raises
    ValueError; `many` says that the option may be repeated, and that an environment variable holds several values
    separated by blanks. Where `secret`, values are never shown whole, and `NAME_FILE` may name a file with the value.
    `table` is a second name in the TOML file.
    """

    metavar: str = ""
    flag: str = ""
    short: str = ""
    parse: Callable[[Any], Any] | None = None
    many: bool = False
    secret: bool = False
    table: str = ""


class SettingsError(Exception):
    """Settings that cannot be used; `problems` holds one line for each thing to mend."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class Settings(BaseSettings):
    """The base of each command's settings: frozen, and nothing is taken that was not declared."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, arbitrary_types_allowed=True, hide_input_in_errors=True
    )

    section: ClassVar[str] = ""
    """The table of the TOML file whose names win over the top level's for this command."""

    @classmethod
    def fallback(cls, environ: Mapping[str, str], given: Collection[str]) -> Layer:  # noqa: ARG003
        """Return what other programs' variables say, for fields that are not among the `given` ones."""
        return Layer()

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, what is wrong) for what only several settings together can tell."""
        yield from ()

    @property
    def secrets(self) -> set[str]:
        """What nothing that is printed may hold: the passwords in URLs, and the secrets that are no URLs."""
        found: set[str] = set()
        for name in type(self).model_fields:
            value = getattr(self, name)
            for item in value if isinstance(value, tuple) else (value,):
                secret = getattr(item, "url", item)
                text = secret.get_secret_value() if isinstance(secret, SecretStr) else str(secret)
                if "://" in text:
                    found |= secrets_in(text)
                elif isinstance(secret, SecretStr):
                    found |= {text, text.partition(":")[2]}  # USER:PASSWORD
        return found - {""}


def option_of(field_info: FieldInfo) -> Option:
    """Return how the field is presented; plain fields get a plain option."""
    return next((item for item in field_info.metadata if isinstance(item, Option)), Option())


def flag_of(name: str, field_info: FieldInfo) -> str:
    """Return the long command line option of a field."""
    return option_of(field_info).flag or "--" + name.replace("_", "-")


@dataclass
class Layer:
    """The values of one source, by field, and what that source calls each of them."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    """By field, or by the unknown name itself."""

    def take(self, name: str, origin: str, raw: object, option: Option) -> None:
        """Keep a value under the field's name, parsed."""
        if name in self.origins:
            self.problems[name] = f"{origin}: cannot be given together with {self.origins[name]}"
            return
        self.origins[name] = origin
        try:
            self.values[name] = option.parse(raw) if option.parse else raw
        except ValueError as error:
            self.problems[name] = _problem(origin, str(error), raw, option)

    def take_file(self, name: str, origin: str, path: object, option: Option) -> None:
        """Keep what the file at `path` holds, without the white space around it."""
        try:
            text = Path(str(path)).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:  # not UTF-8, or no path at all
            self.problems[name] = f"{origin}: cannot read {str(path)!r}: {_reason(error)}"
            return
        self.take(name, origin, text, option)


class _LayerSource(PydanticBaseSettingsSource):
    def __init__(self, settings: type[BaseSettings], layer: Layer) -> None:
        super().__init__(settings)
        self.layer = layer

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        return self.layer.values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self.layer.values


def load(
    settings: type[S],
    *,
    options: Mapping[str, object],
    environ: Mapping[str, str],
    config: Path | None = None,
    also_known: Collection[str] = (),
) -> S:
    """Read `settings` from the configuration file, then `environ`, then `options`; the later ones win.

    `options` maps field names to what the command line gave (None or () where it gave nothing). `also_known` names
    settings of other commands, and as `[table]` their tables, which this one skips. Tables are merged key by key,
    everything else is replaced.

    Raises:
        SettingsError: with all problems of all sources.
    """
    layers = [
        _option_layer(settings, options),
        _environment_layer(settings, environ, also_known),
        _file_layer(settings, environ, config, also_known),
    ]
    layers.append(settings.fallback(environ, {name for layer in layers for name in layer.origins}))
    faulty = {name: problem for layer in layers for name, problem in layer.problems.items()}
    problems = [problem for layer in reversed(layers) for problem in layer.problems.values()]
    result, invalid = _validated(settings, layers)
    # What only follows from a fault that is named already is left out.
    problems += [problem for name, problem in invalid if name not in faulty]
    if problems or result is None:
        raise SettingsError(problems)
    return result


def exposed(settings: type[Settings], options: Mapping[str, object]) -> list[str]:
    """Return the options that carry a secret on the command line, where every user of the machine can read it."""
    return [
        flag_of(name, info)
        for name, info in settings.model_fields.items()
        if option_of(info).secret and _has_secret(options.get(name))
    ]


def unknown_name(name: str, known: Collection[str]) -> str:
    """Return the message for a name that nobody declared, with the nearest one that somebody did."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"{name}: no such setting" + (f"; did you mean {near[0]}?" if near else "")


def _has_secret(value: object) -> bool:
    texts = value if isinstance(value, (tuple, list)) else [value]
    # A URL may be harmless; any other secret is one as a whole.
    return any("://" not in text or masked(text) != text for text in texts if isinstance(text, str))


def _option_layer(settings: type[Settings], options: Mapping[str, object]) -> Layer:
    layer = Layer()
    for name, info in settings.model_fields.items():
        raw = options.get(name)
        if raw is not None and raw != ():
            layer.take(name, flag_of(name, info), raw, option_of(info))
    return layer


def _environment_layer(settings: type[Settings], environ: Mapping[str, str], also_known: Collection[str]) -> Layer:
    layer = Layer()
    fields = {PREFIX + name.upper(): (name, option_of(info)) for name, info in settings.model_fields.items()}
    files = {variable + "_FILE": entry for variable, entry in fields.items() if entry[1].secret}
    known = {*fields, *files, CONFIG_VARIABLE, *(PREFIX + name.upper() for name in also_known if "[" not in name)}
    for variable, text in environ.items():
        if variable in fields:
            name, option = fields[variable]
            layer.take(name, variable, text, option)
        elif variable in files:
            name, option = files[variable]
            layer.take_file(name, variable, text, option)
        elif variable.startswith(PREFIX) and variable not in known:
            layer.problems[variable] = unknown_name(variable, known)
    return layer


def _file_layer(
    settings: type[Settings], environ: Mapping[str, str], config: Path | None, also_known: Collection[str]
) -> Layer:
    layer = Layer()
    named = config or (Path(environ[CONFIG_VARIABLE]) if environ.get(CONFIG_VARIABLE) else None)
    path = named or DEFAULT_FILE
    if named is None and not path.is_file():
        return layer
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # of broken TOML, and of numbers and nesting without end
        origin = "--config" if config else CONFIG_VARIABLE if named else "configuration file"
        layer.problems[str(path)] = f"{origin}: cannot read {str(path)!r}: {_reason(error)}"
        return layer
    own = content.pop(settings.section, {}) if settings.section else {}
    if not isinstance(own, dict):
        layer.problems[settings.section] = f"{settings.section} in {path}: must be a table: [{settings.section}]"
        return layer
    _take_table(layer, settings, {**content, **own}, path, also_known)
    return layer


def _take_table(
    layer: Layer, settings: type[Settings], table: Mapping[str, object], path: Path, also_known: Collection[str]
) -> None:
    fields = {name: (name, option_of(info)) for name, info in settings.model_fields.items()}
    fields.update({option.table: (name, option) for name, option in fields.values() if option.table})
    files = {name + "_file": entry for name, entry in fields.items() if entry[1].secret}
    for key, raw in table.items():
        origin = f"{key} in {path}"
        if key in fields:
            name, option = fields[key]
            layer.take(name, origin, raw, option)
        elif key in files:
            name, option = files[key]
            layer.take_file(name, origin, raw, option)
        elif (f"[{key}]" if isinstance(raw, dict) else key) not in also_known:
            layer.problems[origin] = f"{path}: " + unknown_name(key, {*fields, *files, *also_known})


def _validated(settings: type[S], layers: Sequence[Layer]) -> tuple[S | None, list[tuple[str, str]]]:
    """Return the settings that the layers add up to, the first layer winning, or (field, problem) for each fault."""

    def sources(_cls: type[Any], /, *_: object, **__: object) -> tuple[PydanticBaseSettingsSource, ...]:
        return tuple(_LayerSource(settings, layer) for layer in layers)

    # pydantic-settings asks the class for its sources: a class for this one call keeps the environment a parameter.
    customised: dict[str, Any] = {"settings_customise_sources": classmethod(sources)}
    layered = type(settings.__name__, (settings,), customised)
    try:
        result: S = layered()
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=True)
        return None, [_invalid(settings, layers, detail) for detail in details]
    return result, [(name, f"{_origin(settings, layers, name)}: {message}") for name, message in result.problems()]


def _invalid(settings: type[Settings], layers: Sequence[Layer], detail: ErrorDetails) -> tuple[str, str]:
    name = str(detail["loc"][0])
    inner = "".join(f" [{part}]" for part in detail["loc"][1:])
    origin = _origin(settings, layers, name) + inner
    return name, _problem(origin, _wording(detail), detail["input"], option_of(settings.model_fields[name]))


def _origin(settings: type[Settings], layers: Sequence[Layer], name: str) -> str:
    given = (layer.origins[name] for layer in layers if name in layer.origins)
    return next(given, flag_of(name, settings.model_fields[name]))


def _problem(origin: str, message: str, value: object, option: Option) -> str:
    shown = "" if value is None else f" (got {_shown(value, option)})"
    return f"{origin}: {message}{shown}"


def _shown(value: object, option: Option) -> str:
    if isinstance(value, (tuple, list)) and all(isinstance(item, str) for item in value):
        value = " ".join(value)
    text = repr(value)
    for secret in secrets_in(value) if isinstance(value, str) else ():
        text = text.replace(repr(secret)[1:-1], HIDDEN)
    if not option.secret:
        text = masked(text)
        return text if len(text) <= 200 else text[:200] + "…"
    # A secret that is no URL has no part that may be shown.
    return masked(text) if "://" in text else HIDDEN


_WORDINGS = {
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be a text",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
}


def _wording(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    if detail["type"] == "value_error":
        return str(context["error"])
    wording = _WORDINGS.get(detail["type"])
    return wording.format(**context) if wording else detail["msg"]


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
