"""Fail where a module has more than 400 lines or a function more than 40 (its docstring not counted)."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

MODULE, FUNCTION = 400, 40


def modules(names: list[str]) -> Iterator[Path]:
    """Yield the modules below the folders and the files named."""
    for name in names:
        path = Path(name)
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count a function's lines from `def` on, without its docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def problems(path: Path) -> Iterator[str]:
    """Yield a line for everything in the module that is too long."""
    text = path.read_text(encoding="utf-8")
    lines = len(text.splitlines())
    if lines > MODULE:
        yield f"{path}: {lines} lines, at most {MODULE}: split it by responsibility"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and length(node) > FUNCTION:
            yield f"{path}:{node.lineno}: {node.name}() has {length(node)} lines, at most {FUNCTION}"


def main() -> int:
    """Check the folders and files named on the command line."""
    found = [line for path in modules(sys.argv[1:]) for line in problems(path)]
    sys.stdout.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
