"""The boards: what Slack, alerts and people rely on, and that they ask only for what is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
from celeryscope.dashboards import generate, rules
from celeryscope.dashboards.board import as_text, rendered
from celeryscope.dashboards.boards import all_boards
from celeryscope.dashboards.panels import PanelQuery, queries_of, substituted
from celeryscope.dashboards.queries import EVERY_PAGE, labels_of, metric_of
from celeryscope.dashboards.recordings import recordings
from celeryscope.dashboards.thresholds import RulesSettings
from celeryscope.monitor.catalog import METRICS
from helpers import ROOT

UIDS = [
    *("celery-overview", "celery-tasks", "celery-task", "celery-queues", "celery-workers", "celery-beat"),
    "celeryscope-monitor",
]
VARIABLES = {"datasource", "broker", "queue", "task", "worker", "app", "entry", "flower"}
# Of Grafana itself: what a link or a query may name besides our variables.
BUILT_IN = {"__value", "__data", "__field", "__url_time_range", "__rate_interval", "__range", "__range_s", "__interval"}
UNUSED: dict[str, str] = {}
"""Metrics that no board and no rule reads, and why."""

BOARDS = {board.uid: board for board in all_boards("https://flower.example/f")}
RECORDED = {recording.record: recording.labels for recording in recordings()}
MODELS: dict[str, dict[str, Any]] = {uid: rendered(board) for uid, board in BOARDS.items()}


def panels(uid: str) -> list[dict[str, Any]]:
    return [panel for panel in MODELS[uid]["panels"] if panel["type"] != "row"]


EVERY_PANEL = [pytest.param(panel, id=f"{uid}: {panel['title']}") for uid in MODELS for panel in panels(uid)]


def every_query() -> list[PanelQuery]:
    return [query for board in BOARDS.values() for query in queries_of(board)]


def links(value: Any) -> Iterator[str]:
    """Yield every address below a model."""
    if isinstance(value, dict):
        if isinstance(value.get("url"), str) and "title" in value and value["url"]:
            yield value["url"]
        for item in value.values():
            yield from links(item)
    elif isinstance(value, list):
        for item in value:
            yield from links(item)


def variables(text: str) -> set[str]:
    return {one or other for one, other in re.findall(r"\$(?:(\w+)|\{(\w+)[^}]*\})", text)} - BUILT_IN


def series_in(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Yield (name, labels that are matched) of each selector in an expression."""
    for inner in re.findall(r"(?<![\w:])\{([^}]*)\}", expression):
        pairs = re.findall(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"', inner)
        name = next(value for label, value in pairs if label == "__name__" and value.startswith("celery"))
        yield name, {label for label, _ in pairs} - {"__name__"}
    for name, inner in re.findall(r"(?<![\w:\"])(celery(?:scope)?[_:][\w:]+)(\{[^}]*\})?", expression):
        yield name, set(re.findall(r'(\w+)(?:=~|!~|!=|=)"', inner))


def test_the_uids_are_those_that_links_rely_on():
    assert list(MODELS) == UIDS


@pytest.mark.parametrize("uid", UIDS)
def test_a_board_has_the_variables_it_uses_and_no_others(uid: str):
    declared = {variable["name"]: variable for variable in MODELS[uid]["templating"]["list"]}
    assert set(declared) <= VARIABLES
    body = {key: value for key, value in MODELS[uid].items() if key != "templating"}
    assert variables(as_text(body)) | {"flower"} == set(declared)
    for variable in declared.values():
        assert variables(json.dumps(variable["query"])) <= set(declared)
        if variable["type"] == "query":
            assert (variable["multi"], variable["includeAll"], variable["allValue"]) == (True, True, ".*")
    assert (declared["flower"]["hide"], declared["flower"]["query"]) == (2, "https://flower.example/f")


@pytest.mark.parametrize("uid", UIDS)
def test_the_values_of_variables_are_asked_of_series_that_exist(uid: str):
    for variable in MODELS[uid]["templating"]["list"]:
        if variable["type"] != "query":
            continue
        selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]).groups()
        ((name, matched),) = series_in(selector)
        assert {label, *matched} <= set(labels_of(name))


@pytest.mark.parametrize("panel", EVERY_PANEL)
def test_a_panel_says_what_it_asks_what_it_means_and_what_to_do(panel: dict[str, Any]):
    asks, means, do = panel["description"].split("\n\n")
    assert re.fullmatch(r"\*\*.+\?\*\*", asks)
    assert means.endswith(".")
    assert do.startswith("**What to do:** ")
    assert do[-1] in ".?"
    assert panel["title"]


@pytest.mark.parametrize("panel", EVERY_PANEL)
def test_a_panel_has_a_unit_a_legend_and_its_data_source(panel: dict[str, Any]):
    if panel["type"] == "text":
        return
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    letters = [target["refId"] for target in panel["targets"]]
    assert letters == list("ABCDEFGHIJ"[: len(letters)])
    assert letters
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"]
        assert target["instant"] != target["range"]
        if panel["type"] == "table":
            assert target["format"] == "table"
        else:
            assert target["legendFormat"] != "__auto"


@pytest.mark.parametrize("uid", UIDS)
def test_legends_and_columns_name_labels_that_the_query_keeps(uid: str):
    """A legend of a label that was summed away is an empty word."""
    for panel in panels(uid):
        for target in panel.get("targets", []):
            kept = {label for by in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in by.split(", ")}
            kept |= {label for name, _ in series_in(target["expr"]) for label in known_labels(name)}
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept, panel["title"]


@pytest.mark.parametrize("uid", UIDS)
def test_panels_stand_on_the_grid_and_on_nothing_else(uid: str):
    places = [panel["gridPos"] for panel in MODELS[uid]["panels"]]
    for place in places:
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)
    assert len({panel["id"] for panel in MODELS[uid]["panels"]}) == len(places)


def test_the_overview_is_one_screen():
    """1 080 pixels, less Grafana's own bars, are 22 units of the grid."""
    assert max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels("celery-overview")) <= 22


@pytest.mark.parametrize("uid", UIDS)
def test_links_lead_to_boards_that_exist_and_set_variables_these_have(uid: str):
    found = list(links(MODELS[uid]["panels"]))
    assert found
    for url in found:
        if url.startswith("${flower}/"):
            assert re.fullmatch(r"\$\{flower\}/(tasks\?name=|worker/)\$\{[^}]+:percentencode\}", url), url
            continue
        target, query = re.fullmatch(r"/d/([\w-]+)\?(.*)", url).groups()
        declared = {variable["name"] for variable in MODELS[target]["templating"]["list"]}
        assert set(re.findall(r"(?:^|&)var-(\w+)=", query)) <= declared, url
        assert variables(query) <= {variable["name"] for variable in MODELS[uid]["templating"]["list"]}, url


def test_tasks_and_workers_lead_to_flower():
    for uid, page in (("celery-tasks", "tasks?name="), ("celery-task", "tasks?name="), ("celery-workers", "worker/")):
        assert any(url.startswith("${flower}/" + page) for url in links(MODELS[uid]["panels"]))


def test_every_board_links_to_its_siblings_and_keeps_what_was_chosen():
    for model in MODELS.values():
        (link,) = model["links"]
        assert (link["type"], link["includeVars"], link["keepTime"]) == ("dashboards", True, True)
        assert link["tags"] == model["tags"]


def nulls(value: Any, path: str = "") -> Iterator[str]:
    if value is None:
        yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from nulls(item, f"{path}/{key}")


@pytest.mark.parametrize("uid", UIDS)
def test_nothing_is_left_of_old_grafana(uid: str):
    model = MODELS[uid]
    assert model["schemaVersion"] == 39
    assert set(model).isdisjoint({"rows", "hideControls", "sharedCrosshair", "style", "__inputs", "id", "gnetId"})
    assert {re.sub(r"\d+", "#", path).rpartition("/steps/")[2] for path in nulls(model)} <= {"#/value"}
    kinds = {panel["type"] for panel in model["panels"]}
    assert kinds <= {"timeseries", "stat", "table", "heatmap", "state-timeline", "bargauge", "text", "row"}


def test_colours_are_those_that_colour_blind_people_can_tell_apart():
    safe = {"#0072B2", "#56B4E9", "#009E73", "#F0E442", "#E69F00", "#D55E00", "#CC79A7", "#8E8E8E"}
    for uid in UIDS:
        assert set(re.findall(r'"#[0-9A-Fa-f]{6}"', as_text(MODELS[uid]))) <= {f'"{color}"' for color in safe}


def known_labels(name: str) -> tuple[str, ...]:
    """Return a series' labels, recorded ones included.

    Raises:
        UnknownSeriesError: there is no such series.
    """
    return RECORDED[name] if name in RECORDED else labels_of(name)


@pytest.mark.parametrize("uid", UIDS)
def test_queries_name_only_series_and_labels_that_exist(uid: str):
    for query in queries_of(BOARDS[uid]):
        found = list(series_in(query.expr))
        assert found, query
        for name, matched in found:
            assert matched <= {*known_labels(name), "instance"}, query


@pytest.mark.parametrize("uid", UIDS)
def test_two_monitors_count_once_and_are_two_where_it_is_about_them(uid: str):
    """Raw facts about Celery stand inside a `max by` their own labels; facts about a monitor keep the instance."""
    raw = [(query.expr, name) for query in queries_of(BOARDS[uid]) for name, _ in series_in(query.expr)]
    for expression, name in raw:
        if ":" in name or name == EVERY_PAGE:  # the page itself is counted where a series on it is
            continue
        by = ", ".join(labels_of(name))
        own = "instance, " if metric_of(name).group in {"monitor", "alerter"} else ""
        less = r"(?:increase\(.*\) - )?"  # what is a part of another counter is taken from it
        named = rf"(?:rate\(|increase\()?(?:{name}\b|\{{__name__=\"{name}\")"
        assert re.search(rf"max by \({own}{by}\) \({less}{named}", expression), (name, expression)


def test_recordings_read_the_catalogue_and_earlier_recordings():
    seen: dict[str, tuple[str, ...]] = {}
    for recording in recordings():
        for name, matched in series_in(recording.expr):
            assert matched <= set(seen.get(name) or labels_of(name))
        assert recording.record not in seen
        seen[recording.record] = recording.labels


def test_every_metric_is_on_a_board_or_in_a_rule_or_it_is_said_why_not():
    texts = [query.expr for query in every_query()]
    texts += [alert.expr for alert in rules.alerts(RulesSettings())]
    read = {name for text in texts for name, _ in series_in(text)}
    behind = {name for recording in recordings() for name, _ in series_in(recording.expr) if recording.record in read}
    one_up = {recording.record for recording in recordings() if recording.record in behind}
    behind |= {
        name for recording in recordings() if recording.record in one_up for name, _ in series_in(recording.expr)
    }
    used = {metric_of(name).name for name in read | behind if ":" not in name}
    assert set(METRICS) - used == set(UNUSED)


def test_every_recording_is_read():
    texts = [query.expr for query in every_query()] + [alert.expr for alert in rules.alerts(RulesSettings())]
    texts += [recording.expr for recording in recordings()]
    read = {name for text in texts for name, _ in series_in(text)}
    assert {recording.record for recording in recordings()} <= read


def test_the_same_boards_are_the_same_text():
    assert generate.files(all_boards()) == generate.files(all_boards())


@pytest.mark.repository
def test_the_files_in_the_repository_are_those_that_the_code_makes():
    made = all_boards()
    for name, text in generate.files(made).items():
        assert (ROOT / "dashboards/generated" / name).read_text(encoding="utf-8") == text, (
            f"{name}: run `make generate`"
        )
    for name, text in generate.sketches(made).items():
        assert (ROOT / "docs/img/boards" / name).read_text(encoding="utf-8") == text, f"{name}: run `make generate`"


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ('x{task=~"$task"}', 'x{task=~"a\\\\.b\\\\+"}'),
        ('x{task=~"${task:regex}"}', 'x{task=~"a\\\\.b\\\\+"}'),
        ('x{entry=~"$entry"}', 'x{entry=~"\\\\\\\\d\\\\|1"}'),
        ('x{queue=~"$queue"}', 'x{queue=~".*"}'),
        ("rate(x[$__rate_interval])", "rate(x[1m])"),
        ("rate(x[${__range}])", "rate(x[6h])"),
    ],
)
def test_variables_are_put_in_as_grafana_does(expression: str, expected: str):
    values = {"task": "a.b+", "queue": "All", "entry": "\\d|1", "__rate_interval": "1m", "__range": "6h"}
    assert substituted(expression, values) == expected


def test_several_values_are_put_in_as_grafana_does():
    values = {"task": ["a.b", "c|d"], "queue": ["q"]}
    assert substituted('x{task=~"$task", queue=~"${queue}"}', values) == 'x{task=~"(a\\\\.b|c\\\\|d)", queue=~"q"}'


@pytest.mark.parametrize("uid", UIDS)
def test_no_panel_shows_a_zero_where_nothing_is_known(uid: str):
    """`vector(0)` is there without a monitor too."""
    assert not [query for query in queries_of(BOARDS[uid]) if "vector(" in query.expr]


def test_a_variable_without_a_value_is_an_error():
    with pytest.raises(KeyError, match="worker"):
        substituted("$worker", {})
