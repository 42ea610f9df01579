"""The documentation as a site: built strict, with every page reachable, and no Markdown left in it unread."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import ROOT

if TYPE_CHECKING:
    from types import ModuleType

pytestmark = pytest.mark.repository


@pytest.fixture(scope="module", name="hooks")
def _hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mkdocs_hooks", ROOT / "docs" / "mkdocs_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", name="site")
def _site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    binary = Path(sys.executable).with_name("mkdocs")
    assert binary.exists(), "mkdocs-material is among the development pins: run `make docs`"
    done = subprocess.run(
        [binary, "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": os.environ["PATH"], "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def article(page: Path) -> str:
    """Return what a built page says, without code."""
    body = page.read_text(encoding="utf-8").split("<article", 1)[1].split("</article", 1)[0]
    return re.sub(r"<(pre|code)\b.*?</\1>", "", body, flags=re.DOTALL)


def test_every_page_is_built_and_in_the_navigation(site: Path):
    home = (site / "index.html").read_text(encoding="utf-8")
    sidebar = home.split("md-nav--primary", 1)[1].split("<article", 1)[0]
    for page in ROOT.glob("docs/*.md"):
        if page.name != "index.md":
            assert (site / page.stem / "index.html").exists()
            assert f'href="{page.stem}/"' in sidebar, page.name
    for runbook in ROOT.glob("docs/runbooks/*.md"):
        assert (site / "runbooks" / runbook.stem / "index.html").exists()


def test_no_markdown_is_left_unread(site: Path):
    """Python's Markdown wants deeper indents and more empty lines than GitHub's: the hooks give it both."""
    for page in site.rglob("index.html"):
        for left in (r"```", r"<p>[^<]*\n- ", r"\n\|", r"<p>\|", r"\]\("):
            assert not re.search(left, article(page)), (page, left)


def test_nothing_is_fetched_from_elsewhere(site: Path):
    for page in site.rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img)\b[^>]*>", page.read_text(encoding="utf-8")):
            assert not re.search(r'(?:src|href)="(?:https?:)?//', tag) or "canonical" in tag, (page, tag)


def test_links_that_leave_the_docs_lead_to_files_of_the_repository(site: Path):
    source = "https://github.com/celeryscope/celeryscope/blob/main/"
    found = set()
    for page in site.rglob("index.html"):
        found |= set(re.findall(rf'href="{source}([^"#]+)', article(page)))
    assert {"README.md", "SECURITY.md"} <= found
    assert [path for path in found if not (ROOT / path).exists()] == []


def test_links_are_pointed_out_of_the_docs_alone(hooks: ModuleType):
    text = "[a](../README.md#x) [b](beat.md) [c](#d) [e](https://f) [g](examples) ![h](img/i.svg)"
    assert hooks.links_out(text, "index.md", "https://repo/blob/main") == (
        "[a](https://repo/blob/main/README.md#x) [b](beat.md) [c](#d) [e](https://f) "
        "[g](https://repo/blob/main/docs/examples) ![h](img/i.svg)"
    )
    assert hooks.links_out("[a](../beat.md) [b](../../LICENSE)", "runbooks/A.md", "https://r") == (
        "[a](../beat.md) [b](https://r/LICENSE)"
    )


def test_lists_get_the_indents_and_the_empty_lines_they_need(hooks: ModuleType):
    text = """\
A paragraph
- one
  goes on
- two

  ```sh
  make test
  ```
- three

1. first

   | a | b |
   |---|---|

Not in the list
| c |
|---|
```text
- no list
| no table
```"""
    assert (
        "\n".join(hooks.indented(text.split("\n")))
        == """\
A paragraph

- one
    goes on
- two

    ```sh
    make test
    ```

- three

1. first

    | a | b |
    |---|---|

Not in the list

| c |
|---|
```text
- no list
| no table
```"""
    )


def test_the_navigation_is_that_of_the_index(hooks: ModuleType):
    index = "# t\n\n- [no](section.md)\n\n## A\n\n- [One: more words](one.md)\n- [Two](two.md), too\n\n## B\n\ntext\n"
    assert hooks.navigation(index) == [{"A": [{"One": "one.md"}, {"Two": "two.md"}]}]
