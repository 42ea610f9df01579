"""Fail unless a wheel holds every module of the listed packages and nothing outside them: WHEEL SOURCE."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def expected(source: Path) -> set[str]:
    """Return the modules that the packages listed in pyproject.toml have in the source tree."""
    project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))
    modules = set()
    for package in project["tool"]["setuptools"]["packages"]:
        folder = source.joinpath(*package.split(".")[1:])
        modules |= {f"{package.replace('.', '/')}/{path.name}" for path in folder.glob("*.py")}
    return modules


def main(wheel: str, source: str) -> int:
    """Compare, and say what is missing or too many."""
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {name for name in names if ".dist-info/" not in name}
    modules = {name for name in ours if name.endswith(".py")}
    wanted = expected(Path(source))
    problems = [f"missing from the wheel: {name}" for name in sorted(wanted - modules)]
    problems += [f"not expected in the wheel: {name}" for name in sorted(modules - wanted)]
    problems += [f"outside the package: {name}" for name in sorted(ours) if not name.startswith("celeryscope/")]
    needed = ("celeryscope/py.typed", "licenses/LICENSE", "entry_points.txt")
    problems += [f"missing from the wheel: {end}" for end in needed if not any(n.endswith(end) for n in names)]
    sys.stdout.writelines(f"{line}\n" for line in problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
