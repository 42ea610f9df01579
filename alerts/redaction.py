"""Takes secrets out of text and values before they leave the process, and makes any value printable at bounded cost.

Pure, standard library only: it runs in users' workers, and again in the alerter before anything is shown. It never
calls a `__repr__` or `__str__` of the user's classes. Redaction by pattern is a safety net and not a proof: what must
never be seen belongs neither into exception messages nor into `include_args`.
"""

from __future__ import annotations

import reprlib
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import count, islice
from re import DOTALL, IGNORECASE, Match, compile, error  # noqa: A004 - `compile` of patterns
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from re import Pattern

MASK = "***"

SECRET_KEYS = {
    r"pass(?:word|wd|phrase|code)": ("passw", "passp", "passc"),
    r"pwd": ("pwd",),
    r"secret": ("secret",),
    r"token": ("token",),
    r"(?:api|access|private|signing|encryption|account|master|shared)[-_. ]?key": ("key",),
    r"credential": ("credential",),
    r"authorization": ("authorization",),
    r"cookie": ("cookie",),
    r"session[-_]?(?:id|key)": ("session",),
    r"csrf": ("csrf",),
    r"signature": ("signature",),
    r"dsn": ("dsn",),
    r"webhook[-_]?url": ("webhook",),
    r"(?:card|account)[-_]?(?:number|no)": ("card", "account"),
    r"cvv|cvc": ("cvv", "cvc"),
    r"iban": ("iban",),
    r"ssn": ("ssn",),
}
"""Patterns of key names whose values are secrets, searched anywhere in a key, whatever the case. With each goes what a
text must hold, in lower case, for the pattern to match: looking for that first makes it twenty times as fast."""

_SHAPES = (
    # A password, or a long token in place of the user name, in a URL. A password may hold "@" but no "/".
    (("://",), r"(://[^\s:/?#@\"'<>]*:)[^\s/?#\"'<>]*@", rf"\1{MASK}@"),
    (("://",), r"(://)[^\s:/?#@\"'<>]{16,}@", rf"\1{MASK}@"),
    (("bearer",), r"\b(bearer)\s+(?!tokens?\b|auth)[\w.~+/=-]{6,}", rf"\1 {MASK}"),
    (("basic",), r"\b(basic)\s+(?=[\w+/-]*[\d=+/])[\w+/=-]{6,}", rf"\1 {MASK}"),
    (("hooks.slack",), r"(hooks\.slack(?:-gov)?\.com/(?:services|workflows|triggers)/)[\w/-]+", rf"\1{MASK}"),
    (("xox", "xapp-"), r"\bxox[a-z]-[\w-]+|\bxapp-[\w-]+", MASK),
    (("gh", "github_pat", "glpat"), r"\bgh[oprsu]_\w{16,}|\bgithub_pat_\w+|\bglpat-[\w-]+", MASK),
    (("akia", "asia"), r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", MASK),
    (("sk_", "rk_", "sk-", "aiza"), r"\b[sr]k_(?:live|test)_\w+|\bsk-[\w-]{20,}|\bAIza[\w-]{30,}", MASK),
    (("eyj",), r"\beyJ[\w-]{5,}\.[\w-]+\.[\w-]*", MASK),
    (("private key",), r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", MASK),
)
# A quoted value may have lost its end where the text was cut, but it does not swallow the lines that follow.
_VALUE = (
    r"""(?P<value>"(?:[^"\\\n]|\\.)*(?:"|(?=\n)|\Z)|'(?:[^'\\\n]|\\.)*(?:'|(?=\n)|\Z)"""
    r"""|\\+["'][^\n\\]*(?:\\+["'])?"""  # JSON within JSON
    r"""|(?:(?:bearer|basic|digest|token)\s+)?[^\s,;&"')}\]]+)"""
)
_SEPARATOR = r"""(?P<sep>\s*(?:=>|:=|==|=|:)\s*(?:[bru]{1,2}(?=["']))?)"""
_HARMLESS = frozenset({"None", "True", "False", "null", "true", "false", MASK, f"'{MASK}'", f'"{MASK}"'})


class Redactor:
    """Replaces secrets by `***`.

    `keys` are further patterns of secret key names (regular expressions, searched, case ignored). `replace` is the
    user's own function from text to text; it runs last, and where it raises, the whole text is withheld.
    """

    def __init__(self, keys: Iterable[str] = (), replace: Callable[[str], str] | None = None) -> None:
        extra = tuple(keys)
        for key in extra:
            _check(key)
        self._secret_key = compile("|".join((*SECRET_KEYS, *extra)), IGNORECASE)
        rules: list[tuple[tuple[str, ...], Pattern[str], str | Callable[[Match[str]], str]]] = [
            (needed, compile(pattern, IGNORECASE | DOTALL), to) for needed, pattern, to in _SHAPES
        ]
        for key in (*SECRET_KEYS, *extra):
            # The key must not go on into "Error": `TokenError: no such user` is a class and its message.
            pair = rf"""(?P<key>(?:{key})(?:s|[-_.]\w{{0,64}})?\\{{0,3}}["']?){_SEPARATOR}{_VALUE}"""
            rules.append((SECRET_KEYS.get(key, ("",)), compile(pair, IGNORECASE | DOTALL), _mask_value))
        self._rules = rules
        self._replace = replace

    def text(self, text: str) -> str:
        """Return `text` without its secrets. Cost grows with its length: cut it first (`head`, `tail`)."""
        lowered = text.lower()
        for needed, pattern, to in self._rules:
            if any(word in lowered for word in needed):
                text = pattern.sub(to, text)
        if self._replace is None:
            return text
        try:
            replaced = self._replace(text)
        except Exception:  # noqa: BLE001 - the user's own function
            return f"{MASK} (withheld: the function given as `redact` raised)"
        return replaced if isinstance(replaced, str) else MASK

    def secret(self, key: object) -> bool:
        """Tell whether a value under this key is a secret."""
        return isinstance(key, str) and self._secret_key.search(key) is not None

    def show(self, name: object, value: object) -> str:
        """Return `value`, which is called `name`, as text: bounded, redacted, without running the user's code."""
        if self.secret(name):
            return MASK
        shown = _printable(self._masked(value, count(1)))
        return cut(self.text(head(shown, 2 * SHOWN_LENGTH)), SHOWN_LENGTH)

    def _masked(self, value: object, seen: Iterator[int], depth: int = 3) -> object:
        """Return a copy without secrets, of the first items only: in all, for 20 in each of 20 in 20 cost a second."""
        if next(seen) > MAX_VALUES:
            return _Placeholder("…")
        if depth == 0:
            return value if isinstance(value, _PLAIN) else _Placeholder("…")
        if type(value) is dict:
            items = list(_first(value.items(), MAX_ITEMS + 1))
            return {
                key: MASK if self.secret(key) else self._masked(item, seen, depth - 1)
                for key, item in items
                if _plain(key)
            }
        if type(value) in (list, tuple):
            kept: list[object] = [self._masked(item, seen, depth - 1) for item in value[: MAX_ITEMS + 1]]  # type: ignore[index]
            return tuple(kept) if type(value) is tuple else kept
        return _few(value) if type(value) in (set, frozenset) else value


MAX_ITEMS = 20
"""Items shown of one container."""
MAX_VALUES = 200
"""Values shown of one argument, however they are nested."""
SHOWN_LENGTH = 2_000
"""Characters shown of one argument."""
_PLAIN = (str, bytes, int, float, complex, bool, type(None), Decimal, UUID, date, datetime, time, timedelta)
_EXACT = frozenset(_PLAIN)


def _plain(value: object) -> bool:
    return type(value) in _EXACT


def _few(values: Any) -> object:
    """Return a small set: `reprlib` would sort all of a large one, and by the user's `__lt__`."""
    few = list(islice(values, MAX_ITEMS + 1))
    return type(values)(few) if all(map(_plain, few)) else _Placeholder(f"<{type(values).__name__}>")


class _Placeholder:
    def __init__(self, text: str) -> None:
        self.text = text


class _Printer(reprlib.Repr):
    """`reprlib` with our limits, and with the type instead of the repr of whatever is not built in."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdeque = MAX_ITEMS
        self.maxstring = self.maxother = 300
        self.maxlong = 60

    def repr1(self, x: Any, level: int) -> str:
        if type(x) is _Placeholder:
            return x.text
        if type(x) is int and x.bit_length() > 2_000:  # its decimal digits would cost, or raise
            return f"<int of {x.bit_length()} bits>"
        if type(x) is bytes:
            return repr(x[:150]) if len(x) <= 150 else f"{x[:150]!r}… ({len(x)} bytes)"
        if type(x) in _EXACT or type(x) in _CONTAINERS:
            return super().repr1(x, level)
        return f"<{type(x).__module__}.{type(x).__qualname__}>"


_CONTAINERS = (dict, list, tuple, set, frozenset)
_printer = _Printer()


def _printable(value: object) -> str:
    try:
        return clean(_printer.repr(value))
    except Exception:  # noqa: BLE001 - a container that changes while it is read, a key that cannot be compared
        return f"<{type(value).__name__}>"


def _first(items: Iterable[tuple[Any, Any]], count: int) -> Iterable[tuple[Any, Any]]:
    return (pair for pair, _ in zip(items, range(count)))  # noqa: B905 - the shorter one ends it


def _mask_value(match: Match[str]) -> str:
    key, value = match["key"], match["value"]
    if value in _HARMLESS:
        return match[0]
    quote = value[0] if value[0] in "\"'" else ""
    return f"{key}{match['sep']}{quote}{MASK}{quote}"


def _check(key: str) -> None:
    try:
        pattern: Pattern[str] = compile(key)
    except (error, TypeError) as problem:
        raise ValueError(f"redact: {key!r} is not a regular expression: {problem}") from None
    if pattern.search(""):
        raise ValueError(f"redact: the pattern {key!r} matches every key")


def clean(text: str) -> str:
    """Return `text` as valid Unicode without control characters other than newline and tab."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if text.isprintable() else _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


_CONTROL = compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def head(text: str, length: int) -> str:
    """Return the start of `text`, ending before the word that the cut would split: half a secret is not recognised.

    Of an endless word the start is kept, unless it might be an address with a password.
    """
    if len(text) <= length:
        return text
    start = text[:length]
    end = max(start.rfind(" "), start.rfind("\n"), -1) + 1
    word = start[end:]
    if len(word) > _ENDLESS and "://" not in word:
        end += _ENDLESS
    return start[:end].rstrip()


_ENDLESS = 200


def tail(text: str, length: int) -> str:
    """Return the end of `text`, whole lines only: a value cut off from its key would not be known for a secret."""
    if len(text) <= length:
        return text
    return text[-length:].partition("\n")[2]


def cut(text: str, length: int) -> str:
    """Return `text` in at most `length` characters, saying so where something is missing."""
    return text if len(text) <= length else text[: length - 1] + "…"
