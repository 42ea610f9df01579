"""Tables: one row a label set, one column a label or a query, in an order and with names that people can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import attr

from .links import Link
from .palette import Steps
from .panels import Override, Query, Tile


@dataclass(frozen=True)
class Column:
    """A column of a table: the label it shows, or the letter of the query whose values it shows."""

    of: str
    title: str
    unit: str = ""
    steps: Steps | None = None
    links: tuple[Link, ...] = ()
    width: int = 0
    mappings: tuple[dict[str, Any], ...] = ()
    decimals: int | None = None

    def override(self) -> Override:
        """Return what is different for this column's field."""
        properties: dict[str, Any] = {}
        if self.unit:
            properties["unit"] = self.unit
        if self.decimals is not None:
            properties["decimals"] = self.decimals
        if self.width:
            properties["custom.width"] = self.width
        if self.steps:
            properties["thresholds"] = {"mode": "absolute", "steps": self.steps}
            properties["custom.cellOptions"] = {"type": "color-background", "mode": "basic"}
        if self.mappings:
            properties["mappings"] = list(self.mappings)
            if not self.steps:
                properties["custom.cellOptions"] = {"type": "color-text"}
        if self.links:
            properties["links"] = list(self.links)
        return Override(self.title, properties)


@attr.s(auto_attribs=True, kw_only=True)
class Table(Tile):
    """One row a label set, one column a query: `columns` says which, in which order; everything else is hidden."""

    columns: Sequence[Column] = ()
    sort_by: str = ""
    descending: bool = True

    kind = "table"

    def _defaults(self) -> dict[str, Any]:
        return {
            "color": {"mode": "thresholds"},
            "custom": {"align": "auto", "cellOptions": {"type": "auto"}, "filterable": False, "inspect": False},
        }

    def _field(self, column: Column) -> str:
        if len(column.of) > 1:
            return column.of
        return f"Value #{column.of}" if len(self.queries) > 1 else "Value"

    def _options(self) -> dict[str, Any]:
        return {
            "cellHeight": "sm",
            "frameIndex": 0,
            "showHeader": True,
            "sortBy": [{"displayName": self.sort_by, "desc": self.descending}] if self.sort_by else [],
        }

    def to_json_data(self) -> dict[str, Any]:
        """Return Grafana's panel model, with the transformations that make one table of all queries."""
        fields = {self._field(column): column for column in self.columns}
        organize = {
            "excludeByName": {},
            "indexByName": {name: index for index, name in enumerate(fields)},
            "renameByName": {name: column.title for name, column in fields.items()},
        }
        model = super().to_json_data()
        model["fieldConfig"]["overrides"] = [
            *(column.override() for column in self.columns),
            *model["fieldConfig"]["overrides"],
        ]
        model["transformations"] = [
            {"id": "merge", "options": {}},
            {"id": "filterFieldsByName", "options": {"include": {"names": list(fields)}}},
            {"id": "organize", "options": organize},
        ]
        return model

    def lettered(self) -> list[Query]:
        """Return the queries as a table asks them: one value each, as rows."""
        return [attr.evolve(query, instant=True, format="table") for query in super().lettered()]
