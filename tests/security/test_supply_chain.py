"""What we ship of others' work is known, pinned by hash and looked at: pins, the review of dependencies, the SBOM."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

pytestmark = pytest.mark.repository

REQUIREMENTS = ROOT / "requirements"
PINNED = ("dev.txt", "image.txt", "oldest.txt", "build.txt", "supply.txt")
_LICENCE = r"(Apache-2\.0|BSD-[23]-Clause|MIT|MPL-2\.0|LGPL-3\.0-only|PSF-2\.0)"
LICENCES = re.compile(rf"\(?{_LICENCE}\)?( (AND|OR) \(?{_LICENCE}\)?)*")
"""Those that Apache-2.0 software may be shipped with, or used beside."""
ADDRESSES = re.compile(r"https?://|file:|/(?:home|root|work|tmp|usr|opt|var|Users)/|\b\d+\.\d+\.\d+\.\d+:\d+|localhost")


def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        found: dict[str, Any] = tomllib.load(file)["project"]
    return found


def direct() -> set[str]:
    """Return the names of all that pyproject.toml asks for."""
    table = project()
    lines = [*table["dependencies"], *(line for lines in table["optional-dependencies"].values() for line in lines)]
    return {str(canonicalize_name(Requirement(line).name)) for line in lines} - {table["name"]}


def reviewed() -> Iterator[list[str]]:
    """Yield the rows of the review: package, licence, who keeps it, newest release, for what."""
    for line in (REQUIREMENTS / "REVIEW.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and cells[0] != "package":
            yield cells


def pins(name: str) -> dict[str, list[str]]:
    """Return the pinned versions of one file, with their hashes."""
    found = {}
    for block in re.split(r"\n(?=\S)", (REQUIREMENTS / name).read_text().strip()):
        first, *rest = block.split("\\\n")
        found[first.partition(";")[0].strip()] = [line.strip() for line in rest]
    return found


def test_every_direct_dependency_has_been_looked_at_and_nothing_else() -> None:
    """A new dependency needs a line in requirements/REVIEW.md, and one that is gone loses it."""
    names = [row[0] for row in reviewed()]
    assert len(names) == len(set(names))
    assert set(names) == direct()


def test_the_review_says_licence_keeper_age_and_purpose_of_each() -> None:
    for row in reviewed():
        assert len(row) == 5, row
        package, licence, keeper, released, purpose = row
        assert LICENCES.fullmatch(licence), f"{package}: is {licence} a licence that we may ship with?"
        assert keeper, package
        assert purpose, package
        assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])|not known", released), package


@pytest.mark.parametrize("name", PINNED)
def test_every_pin_is_exact_and_has_hashes_and_no_address(name: str) -> None:
    """A file that is not the one that was looked at is not installed, wherever it comes from."""
    found = pins(name)
    assert found
    for pin, hashes in found.items():
        assert re.fullmatch(r"[\w.-]+==[\w.!+]+", pin), pin
        assert hashes, f"{pin}: no hash"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashes), pin
    assert ADDRESSES.search((REQUIREMENTS / name).read_text()) is None


def test_the_image_is_a_part_of_what_is_tested() -> None:
    """What runs in containers is what the tests ran with, version by version."""
    assert set(pins("image.txt")) <= set(pins("dev.txt"))


def test_whatever_installs_pins_insists_on_their_hashes() -> None:
    for path in (ROOT / ".ci" / "venv", ROOT / "deploy" / "Dockerfile"):
        for line in re.sub(r"\\\n\s*", "", path.read_text()).splitlines():
            if "pip install" in line and "-r " in line and not line.lstrip().startswith("#"):
                assert "--require-hashes" in line, f"{path.name}: {line}"


@pytest.fixture(name="bom", scope="module")
def _bom(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The bill of materials, made as `make sbom` makes it; it validates it against CycloneDX' schema itself."""
    out = tmp_path_factory.mktemp("sbom") / "sbom.cdx.json"
    made = subprocess.run(
        [ROOT / ".ci" / "supply", "sbom", out], capture_output=True, text=True, timeout=280, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return out.read_text()


@pytest.mark.system
def test_the_bill_of_materials_lists_all_pins_of_the_image_with_their_hashes(bom: str) -> None:
    content = json.loads(bom)
    assert (content["bomFormat"], content["specVersion"]) == ("CycloneDX", "1.6")
    listed = {}
    for component in content["components"]:
        (reference,) = component["externalReferences"]
        hashes = sorted(f"--hash=sha256:{entry['content']}" for entry in reference["hashes"])
        listed[f"{component['name']}=={component['version']}"] = hashes
        assert component["purl"] == f"pkg:pypi/{component['name']}@{component['version']}"
    assert listed == {pin: sorted(hashes) for pin, hashes in pins("image.txt").items()}


@pytest.mark.system
def test_the_bill_of_materials_says_whose_it_is_and_what_is_asked_for(bom: str) -> None:
    content = json.loads(bom)
    described = content["metadata"]["component"]
    assert (described["name"], described["licenses"]) == ("celeryscope", [{"license": {"id": "Apache-2.0"}}])
    roots = next(entry["dependsOn"] for entry in content["dependencies"] if entry["ref"] == described["bom-ref"])
    names = {root.removeprefix("pkg:pypi/").partition("@")[0] for root in roots}
    assert {"celery", "cheroot", "msgspec", "slack-sdk", "sqlalchemy", "flower"} <= names
    assert names < direct()


@pytest.mark.system
def test_the_bill_of_materials_names_no_machine_no_registry_and_no_time(bom: str) -> None:
    """It is the same wherever it is made from the same pins."""
    without = bom.replace("http://cyclonedx.org/schema/bom-1.6.schema.json", "")
    assert ADDRESSES.search(without) is None
    assert "timestamp" not in bom
    assert "serialNumber" not in bom
