"""Modules of other people's packages that we do not need, loaded once somebody does rather than at the start.

redis-py loads its asyncio half with itself, which is a third of its 0.35 s. `importlib.util.LazyLoader` cannot put that
off: to it, the import of a submodule is a use of the package.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from importlib.abc import Loader  # which imports much by itself

_loading = threading.RLock()


@contextlib.contextmanager
def put_off(*names: str) -> Iterator[None]:
    """Let these modules, where they are imported within, stay unexecuted until something of them is asked for.

    `from NAME import thing` asks for something; `import NAME` and the import of a submodule do not.
    """
    finder = _Finder(frozenset(names))
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder:
    """Python's own finder, for these names; their modules get a loader that waits."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self._names:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = cast("Loader", _Later(spec.loader))
        return spec


class _Later:
    """A loader that lets another one do its work when the module is first asked for something."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._begun = False

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Leave it empty; Python calls a module's `__getattr__` for what it does not have."""
        namespace = vars(module)

        def load(name: str) -> Any:
            with _loading:  # other threads wait until it is whole; what asks while it is being loaded may not be
                if not self._begun:
                    self._begun = True
                    self._loader.exec_module(module)
                    if namespace.get("__getattr__") is load:
                        del namespace["__getattr__"]
            try:
                return namespace[name]
            except KeyError:
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}") from None

        namespace["__getattr__"] = load
