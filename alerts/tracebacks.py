"""Reads a traceback's text: which exception ended it, what it said, and where in the user's code it came from.

A worker's main process has nothing but this text of what happened in a pool child. Pure, standard library only, and
bounded: of a text too long, the start and the end are read. It never raises, whatever the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

READ_LENGTH = 64 * 1024
CACHED_PATHS = 5_000

# These begin with a newline and not with "^": a literal is searched for ten times as fast.
_FRAME = re.compile(r'\n  File "(.+)", line \d+, in (.+)')
_CHAIN = re.compile(
    r"\n(?:The above exception was the direct cause of the following exception:"
    r"|During handling of the above exception, another exception occurred:)\n\n"
    r"(?=Traceback \(most recent call last\):\n|  \+ Exception Group Traceback|[\w.<>]+(?::|\n|\Z))"
)
_HEADER = re.compile(r"Traceback \(most recent call last\):(?=\n)")
_UNINDENTED = re.compile(r"\n(?=\S)")
_GROUP = re.compile(r"^  \+ Exception Group Traceback[^\n]*$", re.MULTILINE)
_LAST = re.compile(r"^(?P<kind>[^\W\d][\w.<>]*)(?:: (?P<message>.*))?\Z", re.DOTALL)
_UNPICKLEABLE = "celery.utils.serialization.UnpickleableExceptionWrapper"
_REPR = re.compile(r"^(?P<kind>\w+)\((?P<message>.*)\)\Z", re.DOTALL)

_LIBRARY = re.compile(r"/(?:site|dist)-packages/")
_OURS = ("celery", "kombu", "billiard", "vine", "celeryscope")


@dataclass(frozen=True, slots=True)
class Trace:
    """What a traceback says. `frames` are (path, function) pairs of the exception that ended it, outermost first;
    `causes` those of the exceptions before it in the chain."""

    exception: str
    message: str
    frames: Sequence[tuple[str, str]] = ()
    causes: Sequence[tuple[str, str]] = ()


def parse(text: str, hint: str | None = None, *, skip: frozenset[str] = frozenset()) -> Trace:
    """Read `text`; `hint` is the exception's class as a traceback prints it, where that is known from elsewhere.

    Of a chain, the exception raised last counts, unless its class is in `skip` and there is one before it.
    """
    blocks = _CHAIN.split(bounded(text))
    parsed = [_block(block, hint) for block in blocks]
    which = len(parsed) - 1
    if hint is not None:  # a message may itself hold a chain of tracebacks: go back to the class that is known
        which = next((i for i in range(len(parsed) - 1, -1, -1) if parsed[i].exception == hint), which)
    while which > 0 and parsed[which].exception in skip:
        which -= 1
    chosen = parsed[which]
    if chosen.exception == _UNPICKLEABLE:
        chosen = _unwrapped(chosen)
    causes = [frame for block in parsed[:which] for frame in block.frames]
    return Trace(chosen.exception or hint or "unknown", chosen.message, chosen.frames, causes)


def bounded(text: str) -> str:
    """Return what of a traceback is read: all of it, or its start and its end."""
    if len(text) <= READ_LENGTH:
        return text
    half = READ_LENGTH // 2
    # The mark is indented: it must not look like the line of an exception.
    return text[:half] + "\n    […]\n" + text[-half:].partition("\n")[2]


def _block(text: str, hint: str | None) -> Trace:
    group = _GROUP.search(text) if "Exception Group" in text else None
    if group is not None:
        text = _ungrouped(text[group.start() :])
    header = _HEADER.search(text)
    if header is None:
        text = "\n" + text
    # What follows the frames starts at the first line that is not indented; a message may hold frames of its own.
    end = _UNINDENTED.search(text, header.end() if header is not None else 0)
    if end is None:
        return Trace(hint or "", "", _FRAME.findall(text))
    said = text[end.end() :].rstrip("\n")
    match = _LAST.match(said)
    kind, message = (match["kind"], match["message"] or "") if match is not None else (hint or "", said)
    return Trace(kind, message, _FRAME.findall(text, 0, end.end()))


def _ungrouped(text: str) -> str:
    """Return the outermost exception of a group as an ordinary traceback."""
    kept = ["Traceback (most recent call last):"]
    for line in text.split("\n")[1:]:
        if line.startswith("  +-"):
            break
        kept.append(line[4:] if line.startswith("  | ") else line.removeprefix("  |"))
    return "\n".join(kept)


def _unwrapped(trace: Trace) -> Trace:
    """Celery replaces an exception that cannot be pickled by a wrapper, whose message is the repr of the original."""
    match = _REPR.match(trace.message)
    if match is None:
        return trace
    return Trace(match["kind"], match["message"], trace.frames, trace.causes)


class UserCode:
    """Tells the user's code from libraries, by path.

    `roots` are the folders that modules are imported from (`sys.path`, absolute), `library` those of the standard
    library, `packages` installed packages that count as the user's own all the same.
    """

    def __init__(self, roots: Iterable[str], library: Iterable[str], packages: Iterable[str] = ()) -> None:
        # The longest root first: a virtual environment may lie inside the project's folder.
        self._roots = sorted({_folder(root) for root in roots if root}, key=len, reverse=True)
        self._library = tuple({_folder(folder) for folder in library if folder})
        self._packages = tuple(packages)
        self._modules: dict[str, str | None] = {}

    def module(self, path: str) -> str | None:
        """Return the module of the user's file `path`; None where it is not the user's."""
        try:
            return self._modules[path]
        except KeyError:
            if len(self._modules) >= CACHED_PATHS:
                self._modules.clear()
            module = self._modules[path] = self._find(path.replace("\\", "/"))
            return module

    def innermost(self, trace: Trace) -> str | None:
        """Return `module:function` of the innermost frame in user code: first of the exception itself, then of what
        caused it."""
        for frames in (trace.frames, trace.causes):
            for path, function in reversed(frames):
                module = self.module(path)
                if module is not None:
                    return f"{module[-200:]}:{function[:200]}"
        return None

    def _find(self, path: str) -> str | None:
        if path.startswith("<"):
            return None
        installed = _LIBRARY.split(path)
        if len(installed) > 1:
            module = _dotted(installed[-1])
            return module if _within(module, self._packages) else None
        if path.startswith(self._library):
            return None
        root = next((root for root in self._roots if path.startswith(root)), None)
        module = _dotted(path[len(root) :]) if root else _dotted("/".join(path.rsplit("/", 2)[-2:]))
        return module if _within(module, self._packages) or not _within(module, _OURS) else None


def _folder(path: str) -> str:
    return path.replace("\\", "/").rstrip("/") + "/"


def _dotted(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").strip("/").replace("/", ".")


def _within(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)
