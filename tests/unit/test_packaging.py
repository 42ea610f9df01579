"""The repository as a package: what is listed is what is there, and what is pinned is what is asked for."""

from __future__ import annotations

import ast
import re
import sys
from typing import Any

import celeryscope
import pytest
from helpers import ROOT
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.repository

# Folders that hold Python code and are not part of the package.
OUTSIDE = {"tests", "build", "dist", "docs"}
ENVIRONMENT = {"python_version": "3.11", "python_full_version": "3.11.7", "sys_platform": "linux", "extra": ""}


@pytest.fixture(scope="module", name="project")
def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages_on_disk() -> set[str]:
    found = {"celeryscope"}
    for init in ROOT.glob("*/**/__init__.py"):
        parts = init.parent.relative_to(ROOT).parts
        if parts[0] not in OUTSIDE and not any(part.startswith((".", "_")) for part in parts):
            found.add(".".join(("celeryscope", *parts)))
    return found


def test_the_listed_packages_are_those_on_disk(project):
    """A folder that is not listed works in a clone and is missing from the wheel."""
    assert set(project["tool"]["setuptools"]["packages"]) == packages_on_disk()


def test_every_folder_with_code_in_it_is_a_package():
    """Without __init__.py a folder would be found in the clone (as a namespace) and be missing from the wheel."""
    folders = {
        path.parent
        for path in ROOT.glob("*/**/*.py")
        if path.relative_to(ROOT).parts[0] not in OUTSIDE and not path.relative_to(ROOT).parts[0].startswith(".")
    }
    packages = {ROOT.joinpath(*name.split(".")[1:]) for name in packages_on_disk()}
    generated_or_examples = {folder for folder in folders if "deploy" in folder.parts}
    assert folders - generated_or_examples <= packages


def test_the_root_holds_no_other_modules():
    """They would be importable as celeryscope.X, and a user's project beside a clone could import them as X."""
    assert {path.name for path in ROOT.glob("*.py")} <= {"__init__.py", "__main__.py", "cli.py"}


EDGES = {"amqp", "celery", "cheroot", "hiredis", "httpx", "kombu", "prometheus_client", "redis", "slack_sdk", "socket"}


def test_modules_that_call_themselves_pure_are():
    """The first line of a module that decides and touches nothing says "(pure)"; it may know schedules of Celery."""
    impure, pure = [], 0
    for path in ROOT.glob("*/*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        first = (ast.get_docstring(tree) or "").partition("\n\n")[0]
        if "(pure)" not in first:
            continue
        pure += 1
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            impure += [
                f"{path.relative_to(ROOT)} imports {name}"
                for name in names
                if name.partition(".")[0] in EDGES and name != "celery.schedules"
            ]
    assert impure == []
    assert pure


def test_the_version_is_a_release_and_has_a_line_in_the_changelog():
    assert Version(celeryscope.__version__)
    assert re.search(
        rf"^## \[({re.escape(celeryscope.__version__)}|Unreleased)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )


def pins(name: str) -> list[Requirement]:
    lines = (ROOT / "requirements" / name).read_text().replace("\\\n", " ").splitlines()
    bare = (line.split(" --hash=")[0].strip() for line in lines if line and not line.startswith("#"))
    return [Requirement(line) for line in bare if line]


def asked_for(project: dict[str, Any], extras: set[str]) -> list[Requirement]:
    optional = project["project"]["optional-dependencies"]
    lines = list(project["project"]["dependencies"])
    for extra in extras:
        lines += optional[extra]
    wanted = [Requirement(line) for line in lines]
    return [r for r in wanted if r.name != "celeryscope" and applies(r.marker)]


def applies(marker: Marker | None) -> bool:
    return marker is None or marker.evaluate(ENVIRONMENT)


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("dev.txt", set()),
        ("oldest.txt", {"demo", "dev", "docs"}),
        ("image.txt", {"demo", "dev", "docs", "test"}),
    ],
)
def test_the_pins_satisfy_what_is_asked_for(project, name, left_out):
    """Whoever adds a dependency runs `make lock`; the pins would go without it otherwise."""
    extras = set(project["project"]["optional-dependencies"]) - left_out
    pinned = {canonicalize_name(r.name): r for r in pins(name) if applies(r.marker)}
    unmet = []
    for requirement in asked_for(project, extras):
        pin = pinned.get(canonicalize_name(requirement.name))
        version = next(iter(pin.specifier)).version if pin else None
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            unmet.append(f"{requirement} (pinned: {version})")
    assert unmet == []


@pytest.mark.parametrize("name", ["dev.txt", "oldest.txt", "image.txt", "build.txt"])
def test_every_pin_is_exact_and_hashed_and_names_no_address(name):
    text = (ROOT / "requirements" / name).read_text()
    assert "://" not in text
    assert "index-url" not in text
    for block in re.split(r"\n(?=\S)", text.strip()):
        if not block.startswith("#"):
            assert re.match(r"[a-zA-Z0-9._-]+(\[[a-z,]+\])?==", block), block
            assert "--hash=sha256:" in block, block


def test_the_image_has_the_versions_that_are_tested():
    tested = {str(pin).partition(";")[0] for pin in pins("dev.txt")}
    assert {str(pin).partition(";")[0] for pin in pins("image.txt")} <= tested


def test_every_extra_is_in_all_but_the_ones_for_developers(project):
    optional = project["project"]["optional-dependencies"]
    everything = {extra for line in optional["all"] for extra in Requirement(line).extras}
    assert everything == set(optional) - {"all", "demo", "dev", "docs", "test"}


def test_installing_without_extras_asks_for_celery_alone(project):
    assert [Requirement(line).name for line in project["project"]["dependencies"]] == ["celery"]


def test_our_type_hints_are_shipped(project):
    assert (ROOT / "py.typed").exists()
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["celeryscope"]
