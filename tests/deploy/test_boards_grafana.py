"""The boards as Grafana reads them: its own types as JSON Schemas, and a round trip through its Python models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from celeryscope.dashboards.board import rendered
from celeryscope.dashboards.boards import all_boards
from helpers import ROOT

if TYPE_CHECKING:
    from jsonschema import Draft7Validator

# What checks is not installed where the wheel is tested, so it is imported where it is used.
pytestmark = pytest.mark.repository

SCHEMAS = ROOT / "tests" / "golden" / "grafana-schemas"
MODELS: dict[str, dict[str, Any]] = {board.uid: rendered(board) for board in all_boards()}
LOST = {"step", "tagKeys", "textFormat", "titleFormat"}
"""Of an annotation's query: Prometheus' own fields, which the dashboard's model does not know."""
ADDED = {
    *("allowCustomValue", "auto", "auto_count", "auto_min", "skipUrlSync", "fiscalYearStartMonth", "repeatDirection"),
    *("footer", "showTypeIcons", "selectionMode", "builtIn", "hidden", "refresh_intervals", "current"),
    *("asDropdown", "icon", "includeVars", "keepTime", "tags", "tooltip", "type"),
}
"""Defaults that Grafana writes where nothing was said."""


@cache
def validator(name: str, definition: str = "") -> Draft7Validator:
    from jsonschema import Draft7Validator

    schema = json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    return Draft7Validator({**schema, "$ref": f"#/definitions/{definition}"} if definition else schema)


def problems(check: Draft7Validator, value: Any) -> list[str]:
    return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in check.iter_errors(value)]


def every_panel() -> Iterator[Any]:
    for uid, model in MODELS.items():
        yield from (pytest.param(panel, id=f"{uid}: {panel['title']}") for panel in model["panels"])


@pytest.mark.parametrize("panel", list(every_panel()))
def test_a_panel_is_what_grafanas_types_say(panel: dict[str, Any]):
    if panel["type"] == "row":
        assert problems(validator("row", "RowPanel"), panel) == []
        return
    assert problems(validator("row", "Panel"), panel) == []
    kind = panel["type"].replace("-", "")
    own = {"options": panel["options"]}
    if kind in {"timeseries", "heatmap", "statetimeline", "table"}:
        own["custom"] = panel["fieldConfig"]["defaults"]["custom"]
    else:
        assert panel["fieldConfig"]["defaults"]["custom"] == {}
    assert problems(validator(kind), own) == []


@pytest.mark.parametrize("uid", list(MODELS))
def test_the_variables_links_and_annotations_are_what_grafanas_types_say(uid: str):
    model = MODELS[uid]
    for variable in model["templating"]["list"]:
        assert problems(validator("settings", "VariableModel"), variable) == []
    for link in model["links"]:
        assert problems(validator("settings", "DashboardLink"), link) == []
    for annotation in model["annotations"]["list"]:
        known = {key: value for key, value in annotation.items() if key not in {*LOST, "expr"}}
        assert problems(validator("settings", "AnnotationQuery"), known) == []


def test_a_panel_that_grafana_does_not_know_is_found():
    """The schemas do catch what is wrong: an option that is not there, a value that is not taken."""
    panel = next(panel for panel in MODELS["celery-tasks"]["panels"] if panel["type"] == "heatmap")
    assert problems(validator("heatmap"), {"options": {**panel["options"], "color": {"mode": "spectrum"}}})
    wrong = {**panel["options"], "hideZeroBuckets": True}
    assert problems(validator("heatmap"), {"options": wrong, "custom": {}})


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield (what happened, where) for all that is not the same."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in ours.keys() | theirs.keys():
            where = f"{path}/{key}"
            if key not in theirs:
                yield "lost", where
            elif key not in ours:
                yield "added", where
            else:
                yield from differences(ours[key], theirs[key], where)
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for one, other in zip(ours, theirs, strict=True):
            yield from differences(one, other, f"{path}/#")
    elif ours != theirs:
        yield "changed", path


@pytest.mark.parametrize("uid", list(MODELS))
def test_grafanas_own_models_keep_all_that_we_write(uid: str):
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    copy = json.loads(json.dumps(MODELS[uid]))
    theirs = json.loads(JSONEncoder().encode(Dashboard.from_json(copy)))
    found = set(differences(MODELS[uid], theirs))
    assert {path for what, path in found if what == "changed"} == set()
    lost = {re.sub(r".*/", "", path) for what, path in found if what == "lost" and path.startswith("/annotations/")}
    assert lost <= LOST
    assert {path for what, path in found if what == "lost" and not path.startswith("/annotations/")} == set()
    assert {re.sub(r".*/", "", path) for what, path in found if what == "added"} <= ADDED
