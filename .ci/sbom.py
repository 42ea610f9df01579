"""Writes the bill of materials of the container image: CycloneDX JSON, the same for the same pins, without addresses.

Made by cyclonedx-bom from requirements/image.txt. What it leaves out is added: our version, and what depends on what
directly. Where a file lies is the business of whoever fetches it: the package's purl takes the place of an address.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import tomllib
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PINS = "requirements/image.txt"


def generated() -> dict[str, Any]:
    """Return what cyclonedx-bom makes of the pins."""
    command = [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", "requirements", "--output-reproducible",
               "--sv", "1.6", "--of", "JSON", "--no-validate", "-o", "-", PINS]  # fmt: skip
    made: dict[str, Any] = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    return made


def project() -> dict[str, Any]:
    """Return what pyproject.toml says of us."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        found: dict[str, Any] = tomllib.load(file)["project"]
    return found


def direct(table: dict[str, Any]) -> set[str]:
    """Return the names of what pyproject.toml asks for in the image: all extras, and what image.in adds."""
    extras = table["optional-dependencies"]
    lines = [
        *table["dependencies"],
        *(line for extra in ("monitor", "alerter", "dashboards") for line in extras[extra]),
    ]
    added = (ROOT / "requirements" / "image.in").read_text().splitlines()
    lines += [line for line in added if line and not line.startswith(("#", "-"))]
    return {canonicalize_name(Requirement(line.partition(" #")[0]).name) for line in lines} - {table["name"]}


def completed(bom: dict[str, Any]) -> dict[str, Any]:
    """Return it with ourselves as what it describes, and with purls instead of addresses and line numbers."""
    table = project()
    version = re.search(r'^__version__ = "(.+)"', (ROOT / "__init__.py").read_text(), re.MULTILINE)
    assert version is not None
    me = f"pkg:pypi/{table['name']}@{version[1]}"
    for component in bom["components"]:
        component["bom-ref"] = component["purl"]
        component.pop("description", None)
        for reference in component.get("externalReferences", ()):
            reference["url"] = component["purl"]
            reference["comment"] = "the files that may be installed"
    for tool in bom["metadata"]["tools"]["components"]:
        tool.pop("externalReferences", None)
    wanted = direct(table)
    names = {canonicalize_name(component["name"]): component["purl"] for component in bom["components"]}
    bom["metadata"]["component"] = {
        "type": "application", "bom-ref": me, "name": table["name"], "version": version[1], "purl": me,
        "description": table["description"], "licenses": [{"license": {"id": table["license"]}}],
    }  # fmt: skip
    reached = sorted(purl for name, purl in names.items() if name in wanted)
    bom["dependencies"] = [{"ref": me, "dependsOn": reached}, *({"ref": purl} for purl in sorted(names.values()))]
    return bom


def main() -> int:
    """Write it, once it is valid."""
    text = json.dumps(completed(generated()), indent=2, sort_keys=True) + "\n"
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error is not None:
        sys.stderr.write(f"the bill of materials is not valid CycloneDX: {error}\n")
        return 1
    out = Path(sys.argv[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    sys.stdout.write(f"{out}: {len(json.loads(text)['components'])} packages\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
