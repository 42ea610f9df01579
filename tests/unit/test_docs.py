"""The pages that people read: their links lead somewhere, and what is generated is complete."""

from __future__ import annotations

import importlib.util
import re
from typing import TYPE_CHECKING

import pytest
from celeryscope import cli
from celeryscope.monitor.catalog import METRICS
from helpers import ROOT

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

pytestmark = pytest.mark.repository

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.fixture(scope="module", name="generate")
def _generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_inside_the_repository_lead_somewhere(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_every_page_is_in_the_index():
    linked = re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    assert {page.name for page in ROOT.glob("docs/*.md")} - {"index.md"} <= set(linked)


def test_every_metric_is_in_the_reference(generate: ModuleType):
    rows = re.findall(r"^\| `(\w+)` \| (?:counter|gauge|histogram) \|", generate.metrics_page(), re.MULTILINE)
    assert rows == list(METRICS)


def test_every_setting_of_every_command_is_in_the_reference(generate: ModuleType):
    page = generate.configuration_page()
    for where in cli.SETTINGS:
        settings = cli._resolve(where)
        section = page.split(f"## celeryscope {settings.section}\n", 1)[1].split("\n## ", 1)[0]
        rows = re.findall(r"^\|[^|]*\|[^|]*\| `(\w+)`", section, re.MULTILINE)
        assert rows == list(settings.model_fields)


def test_a_stale_page_fails_the_check_and_is_written_anew(generate: ModuleType, tmp_path: Path, capsys):
    assert generate.main(["--check"], tmp_path) == 1
    assert not list(tmp_path.iterdir())
    assert generate.main([], tmp_path) == 0
    assert {path.name for path in tmp_path.iterdir()} == set(generate.PAGES)
    assert generate.main(["--check"], tmp_path) == 0
    (tmp_path / "metrics.md").write_text("an edit by hand")
    capsys.readouterr()
    assert generate.main(["--check"], tmp_path) == 1
    assert "docs/metrics.md is out of date" in capsys.readouterr().out
