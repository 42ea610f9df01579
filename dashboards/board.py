"""A board: sections of tiles placed on Grafana's grid, variables, links to its siblings, and JSON without leftovers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import attr
from grafanalib import core

from .links import UIDS
from .palette import BLUE
from .panels import DATASOURCE, Tile

COLUMNS = 24
TAG = "celeryscope"
SCHEMA_VERSION = 39
LEGACY = frozenset({"__inputs", "gnetId", "hideControls", "id", "rows", "sharedCrosshair", "style", "version"})
"""What grafanalib writes into a dashboard and Grafana no longer reads, and what only a stored dashboard has."""
TEMPLATE_LEGACY = frozenset({"auto", "auto_count", "auto_min", "tagValuesQuery", "tagsQuery", "useTags"})


class Variable(core.Template):  # type: ignore[misc]
    """A variable as today's Grafana writes it."""

    def to_json_data(self) -> dict[str, Any]:
        """Return Grafana's model."""
        model = super().to_json_data()
        model["current"].pop("tags", None)
        unset = {"current"} if model["current"].get("value") is None else set()
        return {key: value for key, value in model.items() if key not in TEMPLATE_LEGACY | unset}


class Annotations(core.Annotations):  # type: ignore[misc]
    """Annotations, Grafana's own first: those that people and deploy scripts make by hand or through its API."""

    def to_json_data(self) -> dict[str, Any]:
        """Return Grafana's model."""
        own = {
            "builtIn": 1,
            "datasource": {"type": "grafana", "uid": "-- Grafana --"},
            "enable": True,
            "hide": True,
            "iconColor": BLUE,
            "name": "Annotations & Alerts",
            "type": "dashboard",
        }
        return {"list": [own, *self.list]}


@dataclass(frozen=True)
class Section:
    """Tiles under one heading; without a title they stand at the top of the board."""

    title: str
    tiles: Sequence[Tile]


class Board(core.Dashboard):  # type: ignore[misc]
    """A dashboard of ours: fixed uid, no leftovers in its JSON, always the same text."""

    def to_json_data(self) -> dict[str, Any]:
        """Return Grafana's model."""
        return {key: value for key, value in super().to_json_data().items() if key not in LEGACY}


def query_variable(name: str, query: str, *, label: str, default_all: bool = True) -> Variable:
    """Return a variable whose values Prometheus knows; several may be chosen, and `All` is everything."""
    variable = Variable(
        name=name,
        query=query,
        label=label,
        dataSource=DATASOURCE,
        multi=True,
        includeAll=default_all,
        allValue=".*",
        refresh=core.REFRESH_ON_TIME_RANGE_CHANGE,
        sort=core.SORT_ALPHA_ASC,
    )
    variable._current = {"selected": True, "text": ["All"], "value": ["$__all"]}  # noqa: SLF001 - it has no other way
    return variable


def datasource_variable() -> Variable:
    """Return the variable that names the Prometheus to ask."""
    return Variable(name="datasource", query="prometheus", label="Data source", type="datasource")


def flower_variable(address: str) -> Variable:
    """Return the hidden variable that holds Flower's address, which links need."""
    variable = Variable(name="flower", query=address, type="constant", hide=core.HIDE_VARIABLE, default=address)
    variable.options = [{"selected": True, "text": address, "value": address}]
    return variable


def siblings() -> core.DashboardLink:
    """Return the links, at the top of a board, to all boards with our tag."""
    return core.DashboardLink(
        asDropdown=False, includeVars=True, keepTime=True, tags=[TAG], title="Celery", tooltip="The other boards"
    )


def board(
    name: str,
    title: str,
    description: str,
    sections: Sequence[Section],
    variables: Sequence[Variable],
    *,
    annotations: Sequence[dict[str, Any]] = (),
    since: str = "now-6h",
) -> Board:
    """Return a board; `name` is a key of `links.UIDS`.

    Raises:
        ValueError: a tile is wider than the grid.
    """
    return Board(
        title=title,
        uid=UIDS[name],
        description=description,
        tags=[TAG],
        panels=list(_placed(sections)),
        templating=core.Templating(list=list(variables)),
        annotations=Annotations(list=list(annotations)),
        links=[siblings()],
        time=core.Time(since, "now"),
        timePicker=TimePicker([], []),
        timezone="browser",
        refresh="30s",
        graphTooltip=core.GRAPH_TOOLTIP_MODE_SHARED_CROSSHAIR,
        schemaVersion=SCHEMA_VERSION,
    )


class TimePicker(core.TimePicker):  # type: ignore[misc]
    """Grafana's own choice of refresh intervals."""

    def to_json_data(self) -> dict[str, Any]:
        """Return Grafana's model."""
        return {}


def _placed(sections: Sequence[Section]) -> Iterator[core.Panel]:
    """Yield the tiles with their places and ids, row by row, each section under its heading."""
    y, number = 0, 0
    for section in sections:
        if section.title:
            number += 1
            yield _Row(title=section.title, gridPos=core.GridPos(h=1, w=COLUMNS, x=0, y=y), id=number)
            y += 1
        x = height = 0
        for tile in section.tiles:
            if tile.width > COLUMNS:
                raise ValueError(f"{tile.title!r} is {tile.width} columns wide, the grid has {COLUMNS}")
            if x + tile.width > COLUMNS:
                x, y, height = 0, y + height, 0
            number += 1
            yield attr.evolve(tile, gridPos=core.GridPos(h=tile.height, w=tile.width, x=x, y=y), id=number)
            x, height = x + tile.width, max(height, tile.height)
        y += height


class _Row(core.RowPanel):  # type: ignore[misc]
    """A heading; what stands below it is not inside it, so it is never collapsed by default."""

    def to_json_data(self) -> dict[str, Any]:
        model = super().to_json_data()
        return {key: model[key] for key in ("collapsed", "gridPos", "id", "panels", "title", "type")}


def rendered(dashboard: core.Dashboard) -> dict[str, Any]:
    """Return a board's JSON model as plain data, without nulls; only a threshold's lower end may be null."""
    model: dict[str, Any] = _plain(dashboard.to_json_data())
    return model


def as_text(model: dict[str, Any]) -> str:
    """Return a model as the text that is kept: the same for the same board, and easy to compare."""
    return json.dumps(model, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    if hasattr(value, "to_json_data"):
        value = value.to_json_data()
    if isinstance(value, dict):
        lower_end = {"color", "value"} == set(value)
        return {key: _plain(item) for key, item in value.items() if item is not None or lower_end}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
