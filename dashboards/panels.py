"""Panels in today's Grafana terms: typed additions where grafanalib stopped, and the queries that panels hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import attr
from grafanalib import core

from .links import Link
from .palette import BLUE, PLAIN, Steps

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
LEGACY = frozenset({"cacheTimeout", "editable", "error", "height", "hideTimeOverride", "minSpan", "span"})
"""What grafanalib writes into panels and Grafana no longer reads."""


def _letters() -> Iterator[str]:
    return iter("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


@attr.s(auto_attribs=True, kw_only=True)
class Query(core.Target):  # type: ignore[misc]
    """A PromQL query of a panel; `instant` asks for the latest value alone, as tables do."""

    expr: str
    legend: str = ""
    instant: bool = False
    format: str = "time_series"
    ref: str = ""

    def to_json_data(self) -> dict[str, Any]:
        """Return Grafana's form."""
        return {
            "datasource": DATASOURCE,
            "editorMode": "code",
            "exemplar": False,
            "expr": self.expr,
            "format": self.format,
            "instant": self.instant,
            "legendFormat": self.legend or "__auto",
            "range": not self.instant,
            "refId": self.ref,
        }


@dataclass(frozen=True)
class Override:
    """What is different for one field: `field` is its name, or with `regexp` a pattern of names."""

    field: str
    properties: Mapping[str, Any]
    regexp: bool = False

    def to_json_data(self) -> dict[str, Any]:
        """Return Grafana's form."""
        matcher = {"id": "byRegexp" if self.regexp else "byName", "options": self.field}
        return {
            "matcher": matcher,
            "properties": [{"id": name, "value": value} for name, value in self.properties.items()],
        }


def colors(by_name: Mapping[str, str]) -> list[Override]:
    """Return overrides that give each named series its colour."""
    return [Override(name, {"color": {"mode": "fixed", "fixedColor": color}}) for name, color in by_name.items()]


@attr.s(auto_attribs=True, kw_only=True)
class Tile(core.Panel):  # type: ignore[misc]
    """What all panels have: a question it answers, what the answer means, what to do about it, and the queries.

    `width` and `height` are in Grafana's grid of 24 columns; the board places the tile.
    """

    title: str
    asks: str
    means: str
    do: str
    queries: Sequence[Query] = ()
    width: int = 12
    height: int = 8
    unit: str = "short"
    decimals: int | None = None
    minimum: float | None = None
    maximum: float | None = None
    steps: Steps = PLAIN
    mappings: list[dict[str, Any]] = attr.Factory(list)
    data_links: Sequence[Link] = ()
    overrides: Sequence[Override] = ()
    no_value: str | None = None
    gridPos: core.GridPos | None = None  # noqa: N815 - grafanalib's name
    id: int | None = None

    kind = ""

    def _defaults(self) -> dict[str, Any]:
        return {"color": {"mode": "thresholds"}, "custom": {}}

    def _options(self) -> dict[str, Any]:
        return {}

    def lettered(self) -> list[Query]:
        """Return the queries, each with the letter that Grafana knows it by."""
        return [attr.evolve(query, ref=letter) for query, letter in zip(self.queries, _letters(), strict=False)]

    def to_json_data(self) -> dict[str, Any]:
        """Return Grafana's panel model."""
        defaults = {
            "decimals": self.decimals,
            "links": list(self.data_links),
            "mappings": self.mappings,
            "max": self.maximum,
            "min": self.minimum,
            "noValue": self.no_value,
            "thresholds": {"mode": "absolute", "steps": self.steps},
            "unit": self.unit,
            **self._defaults(),
        }
        overrides = {
            "datasource": DATASOURCE,
            "description": f"**{self.asks}**\n\n{self.means}\n\n**What to do:** {self.do}",
            "fieldConfig": {"defaults": defaults, "overrides": list(self.overrides)},
            "maxDataPoints": None,
            "options": self._options(),
            "targets": self.lettered(),
            "type": self.kind,
        }
        return {key: value for key, value in self.panel_json(overrides).items() if key not in LEGACY}


@attr.s(auto_attribs=True, kw_only=True)
class Timeseries(Tile):
    """Values over time; thresholds are drawn as dashed lines where `lines`."""

    stacked: bool = False
    lines: bool = False
    logarithmic: bool = False
    bars: bool = False
    legend: str = "table"
    calcs: tuple[str, ...] = ("lastNotNull", "max")

    kind = "timeseries"

    def _defaults(self) -> dict[str, Any]:
        scale = {"type": "log", "log": 10} if self.logarithmic else {"type": "linear"}
        custom = {
            "axisPlacement": "auto",
            "axisSoftMin": None if self.logarithmic else 0,
            "drawStyle": "bars" if self.bars else "line",
            "fillOpacity": 40 if self.stacked or self.bars else 8,
            "lineInterpolation": "linear",
            "lineWidth": 1,
            "pointSize": 4,
            "scaleDistribution": scale,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if self.lines else "off"},
        }
        return {"color": {"mode": "palette-classic"}, "custom": custom}

    def _options(self) -> dict[str, Any]:
        return {
            "legend": {"calcs": list(self.calcs), "displayMode": self.legend, "placement": "bottom", "showLegend": True}
            | ({"sortBy": "Last *", "sortDesc": True} if self.legend == "table" else {}),
            "tooltip": {"mode": "multi", "sort": "desc"},
        }


@attr.s(auto_attribs=True, kw_only=True)
class Stat(Tile):
    """One big number, coloured by its thresholds."""

    graph: bool = True
    text_mode: str = "auto"

    kind = "stat"

    def _options(self) -> dict[str, Any]:
        return {
            "colorMode": "background_solid" if self.steps is not PLAIN else "value",
            "graphMode": "area" if self.graph else "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "percentChangeColorMode": "standard",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "showPercentChange": False,
            "textMode": self.text_mode,
            "wideLayout": True,
        }


@attr.s(auto_attribs=True, kw_only=True)
class BarGauge(Tile):
    """One bar a series: how full each is."""

    kind = "bargauge"

    def _options(self) -> dict[str, Any]:
        return {
            "displayMode": "basic",
            "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": False},
            "maxVizHeight": 32,
            "minVizHeight": 16,
            "minVizWidth": 8,
            "namePlacement": "left",
            "orientation": "horizontal",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "showUnfilled": True,
            "sizing": "auto",
            "valueMode": "color",
        }


@attr.s(auto_attribs=True, kw_only=True)
class Heatmap(Tile):
    """How the values of a histogram are spread over time; the unit is that of the vertical axis."""

    kind = "heatmap"

    def _defaults(self) -> dict[str, Any]:
        return {"custom": {"hideFrom": {"legend": False, "tooltip": False, "viz": False}}}

    def _options(self) -> dict[str, Any]:
        return {
            "calculate": False,
            "cellGap": 1,
            "cellValues": {"unit": "suffix: /s"},
            "color": {
                "exponent": 0.5,
                "fill": BLUE,
                "mode": "scheme",
                "reverse": False,
                "scale": "exponential",
                "scheme": "Viridis",
                "steps": 64,
            },
            "exemplars": {"color": "rgba(255,0,255,0.7)"},
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "showValue": "never",
            "tooltip": {"mode": "single", "showColorScale": False, "yHistogram": True},
            "yAxis": {"axisPlacement": "left", "reverse": False, "unit": self.unit},
        }


@attr.s(auto_attribs=True, kw_only=True)
class StateTimeline(Tile):
    """States over time, one lane a series; the mappings give each state a word and a colour."""

    kind = "state-timeline"

    def _defaults(self) -> dict[str, Any]:
        return {"color": {"mode": "thresholds"}, "custom": {"fillOpacity": 80, "lineWidth": 0}}

    def _options(self) -> dict[str, Any]:
        return {
            "alignValue": "left",
            "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True},
            "mergeValues": True,
            "perPage": 20,
            "rowHeight": 0.85,
            "showValue": "auto",
            "tooltip": {"mode": "single", "sort": "none"},
        }


@attr.s(auto_attribs=True, kw_only=True)
class Note(Tile):
    """Words on the board itself, in Markdown."""

    content: str = ""

    kind = "text"

    def _options(self) -> dict[str, Any]:
        return {"code": {"language": "plaintext", "showLineNumbers": False, "showMiniMap": False}} | {
            "content": self.content,
            "mode": "markdown",
        }


@dataclass(frozen=True)
class PanelQuery:
    """One query of a board: whose it is and what it asks, with Grafana's placeholders in it."""

    board: str
    panel: str
    ref: str
    expr: str
    instant: bool


def queries_of(board: core.Dashboard) -> Iterable[PanelQuery]:
    """Yield every query of a board's panels, then those of its annotations, in order."""
    for panel in board.panels:
        for query in panel.lettered() if isinstance(panel, Tile) else ():
            yield PanelQuery(board.uid, panel.title, query.ref, query.expr, query.instant)
    for annotation in board.annotations.list:
        if "expr" in annotation:
            yield PanelQuery(board.uid, f"annotation: {annotation['name']}", "A", annotation["expr"], False)


_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::\w+)?\})")
_SPECIAL = re.compile(r"[$^*{}\[\]'+?.()|\\]")


def escaped(value: str) -> str:
    """Return a label's value as it stands in a PromQL text of a regular expression: escaped for both."""
    return _SPECIAL.sub(lambda match: "\\" * 4 if match[0] == "\\" else "\\" * 2 + match[0], value)


def substituted(expr: str, values: Mapping[str, str | Sequence[str]]) -> str:
    """Return a query as Grafana sends it: `All` becomes `.*`, other values are escaped as regular expressions.

    Several values of one variable become `(one|other)`.

    Names that start with `__` (`__rate_interval`, `__interval`, `__range`) are durations and put in as they are.

    Raises:
        KeyError: the query uses a variable that has no value.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        given = values[name]
        chosen: Sequence[str] = (given,) if isinstance(given, str) else given
        if name.startswith("__"):
            return "".join(chosen)
        wanted = [".*" if one == "All" else escaped(one) for one in chosen]
        return wanted[0] if len(wanted) == 1 else f"({'|'.join(wanted)})"

    return _VARIABLE.sub(value, expr)
