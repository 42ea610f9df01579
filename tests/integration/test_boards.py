"""The boards' queries through Debian's promtool: Prometheus understands each, and two monitors double nothing."""

from __future__ import annotations

import math
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from celeryscope.dashboards.boards import all_boards
from celeryscope.dashboards.panels import queries_of, substituted
from celeryscope.dashboards.rules_cli import outputs, write
from celeryscope.dashboards.thresholds import defaults
from helpers import system_command

pytestmark = pytest.mark.system

DURATIONS = {"__rate_interval": "2m", "__range": "30m", "__range_s": "1800", "__interval": "1m"}
ALL = dict.fromkeys(("broker", "queue", "task", "worker", "app", "entry"), "All") | DURATIONS
EXPRESSIONS = {
    (query.board, query.panel, query.ref): query.expr for board in all_boards() for query in queries_of(board)
}
CHARGE, MAIL = 'task="shop.charge", queue="payments"', 'task="shop.mail", queue="mails"'
KIND = 'exception="ValueError", outcome="failed"'
BUCKETS = {"1.0": 30, "2.5": 60, "+Inf": 60}


def series() -> list[dict[str, str]]:
    """One run a second of shop.charge, two of shop.mail, as two monitors tell them; the second one is a bit behind."""
    found = {}
    for instance, start in (("a", 0), ("b", -30)):
        for labels, speed in ((CHARGE, 60), (MAIL, 120)):
            where = f'{{instance="{instance}", {labels}}}'
            found[f"celery_task_succeeded_total{where}"] = f"{start}+{speed}x60"
            found[f"celery_task_failed_total{where}"] = "0x60"
            found[f"celery_tasks_running{where}"] = f"{speed // 60}x60"
            for le, growth in BUCKETS.items():
                bucket = f'{{instance="{instance}", {labels}, outcome="succeeded", le="{le}"}}'
                found[f"celery_task_runtime_seconds_bucket{bucket}"] = f"0+{growth}x60"
        found[f'celery_task_exceptions_total{{instance="{instance}", {CHARGE}, {KIND}}}'] = "0x10 1x50"
        found[f'celeryscope_connected{{instance="{instance}"}}'] = "1x60"
        found[f'celery_workers{{instance="{instance}", state="online"}}'] = "3x60"
    return [{"series": name, "values": values} for name, values in found.items()]


ONCE = '{task="shop.charge", exception="ValueError", outcome="failed"}'
RATES, QUANTILES = "Runs that ended, per second", "Runtime, quantiles"
EXPECTED = [
    (("celery-overview", RATES, "A"), "All", {"{}": 3}),
    (("celery-overview", "Workers online", "A"), "All", {"{}": 3}),
    (("celery-overview", "Failing now", "A"), "All", {"{}": 0}),
    (("celery-tasks", RATES, "A"), "All", {"{}": 3}),
    (("celery-task", RATES, "A"), "shop.charge", {"{}": 1}),
    (("celery-task", RATES, "A"), "shop.mail", {"{}": 2}),
    (("celery-tasks", "Waiting, running, orphaned", "B"), "All", {"{}": 3}),
    (("celery-task", "Waiting, running, orphaned", "B"), "shop.charge", {"{}": 1}),
    (("celery-tasks", QUANTILES, "A"), "All", {"{}": 1}),
    (("celery-task", QUANTILES, "A"), "shop.charge", {"{}": 1}),
    (("celery-tasks", "Exceptions in the time shown", "A"), "All", {ONCE: 1}),
    (
        ("celery-tasks", "Runtime, how it is spread", "A"),
        "All",
        {'{le="1.0"}': 1, '{le="2.5"}': 2, '{le="+Inf"}': 2},
    ),
    (("celeryscope-monitor", "Does it hear?", "A"), "All", {'{instance="a"}': 1, '{instance="b"}': 1}),
]


def promtool(*argv: str | Path) -> None:
    done = subprocess.run(
        [system_command("promtool"), *map(str, argv)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def shows(which: tuple[str, str, str], wanted: dict[str, float], *, task: str = "All") -> dict[str, Any]:
    """What a panel's query must find after half an hour."""
    return {
        "expr": substituted(EXPRESSIONS[which], {**ALL, "task": task}),
        "eval_time": "30m",
        "exp_samples": [{"labels": labels, "value": value} for labels, value in wanted.items()],
    }


def test_two_monitors_count_once_at_all_and_at_a_value(tmp_path: Path):
    write(tmp_path, outputs(defaults()))
    asked = [shows(which, wanted, task=task) for which, task, wanted in EXPECTED]
    play = {
        "rule_files": ["rules/celeryscope-recordings.yml"],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series(), "promql_expr_test": asked}],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(play, sort_keys=False))
    promtool("test", "rules", tmp_path / "test.yml")


WATCHED = {'celeryscope_connected{instance="a"}': "1x60"}
PAGE_A, BORN = (f'{name}{{instance="a", job="m"}}' for name in ("celeryscope_build_info", "process_start_time_seconds"))
PAGE = {PAGE_A: "1x60"}
READY = 'celery_queue_messages{queue="mails", state="ready"}'
STARTED = f"celery_task_started_total{{{MAIL}}}"
FAILED, EXHAUSTED = (
    f'celery_task_{name}_total{{instance="a", job="m", {MAIL}}}' for name in ("failed", "retries_exhausted")
)
THROWN = f'celery_task_exceptions_total{{instance="a", job="m", {MAIL}, {KIND}}}'
MISSED = 'celery_beat_missed_total{instance="a", job="m", app="shop", entry="nightly"}'
LOST = {f'celery_worker_starts_missed{part}_total{{instance="a", job="m", worker="w"}}' for part in ("", "_down")}
DRAIN, FAILING_NOW = ("celery-queues", "Slowest to drain", "A"), ("celery-overview", "Failing now", "A")
THROWN_SHOWN = ("celery-tasks", "Exceptions in the time shown", "A")
MAILS = '{task="shop.mail", exception="ValueError", outcome="failed"}'
ZEROS = [
    (which, expression)
    for which, expression in EXPRESSIONS.items()
    if re.search(r"\) or 0 \* max\(max by \(instance, broker\) \(celeryscope_connected", expression)
]
ONE_UP = {
    'celery_worker_up{instance="a", worker="w"}': "1x60", 'celery_worker_up{instance="b", worker="w"}': "0x60",
    'celery_worker_lost{instance="a", worker="w"}': "0x60", 'celery_worker_lost{instance="b", worker="w"}': "1x60",
}  # fmt: skip
NONE_UP = {
    'celery_worker_up{instance="a", worker="w"}': "0x60", 'celery_worker_lost{instance="a", worker="w"}': "1x60",
}  # fmt: skip
LIVES, TROUBLE = ("celery-workers", "Lives of the workers", "A"), ("celery-overview", "Workers in trouble", "A")


def other(series: str) -> str:
    """The same series of another monitor."""
    return series.replace('instance="a"', 'instance="b"')


PLAYS: dict[str, tuple[dict[str, str], list[dict[str, Any]]]] = {
    "nothing is scraped": (
        {"up": "0x60"},
        [shows(which, {}) for which in (*dict(ZEROS), DRAIN, FAILING_NOW, ("celery-task", "Failing", "A"))],
    ),
    "a monitor has seen nothing": (WATCHED, [shows(which, {"{}": 0}) for which, _ in ZEROS]),
    "tasks run well": (
        {f"celery_task_{name}_total{{{MAIL}}}": "0x60" for name in ("failed", "succeeded")},
        [shows(FAILING_NOW, {"{}": 0}), shows(("celery-task", "Failing", "A"), {"{}": 0})],
    ),
    "ready and nothing starts": ({READY: "500x60", STARTED: "60x60"}, [shows(DRAIN, {"{}": math.inf})]),
    "ready, and it is not known what starts": ({READY: "500x60"}, [shows(DRAIN, {})]),
    "ready and a start a second": ({READY: "500x60", STARTED: "0+60x60"}, [shows(DRAIN, {"{}": 500})]),
    "nothing is ready": ({READY: "0x60"}, [shows(DRAIN, {"{}": 0})]),
    "the first of each, a quarter of an hour ago": (
        WATCHED | PAGE | {BORN: "1x60"} | dict.fromkeys((FAILED, EXHAUSTED, THROWN, MISSED), "_x15 1x45"),
        [
            shows(THROWN_SHOWN, {MAILS: 1}),
            shows(("celery-task", "Exceptions in the time shown", "A"), {f'{{queue="mails", {KIND}}}': 1}),
            shows(("celery-overview", "Failing tasks, last hour", "A"), {'{task="shop.mail"}': 1}),
            shows(("celery-overview", "Retries exhausted", "A"), {"{}": 1}),
            shows(("celery-overview", "Slots missed today", "A"), {"{}": 1}),
        ],
    ),
    "what a monitor counted before Prometheus knew it is not new": (
        {one: f"_x15 {value}" for one, value in {**dict.fromkeys(PAGE, "1x45"), THROWN: "70x45"}.items()},
        [shows(THROWN_SHOWN, {})],
    ),
    "the first after a monitor was started, before Prometheus knew it": (
        {one: f"_x15 {value}" for one, value in {**PAGE, BORN: "840x45", THROWN: "1x45"}.items()},
        [shows(THROWN_SHOWN, {MAILS: 1})],
    ),
    "a monitor is replaced by another one, which reads what it counted": (
        {
            PAGE_A: "1x20 stale", THROWN: "70x20 stale", other(PAGE_A): "_x21 1x45", other(BORN): "_x21 1240x45",
            other(THROWN): "_x21 70x45",
        },
        [shows(THROWN_SHOWN, {})],
    ),
    "what was there before is not new": ({**PAGE, THROWN: "70x45"}, [shows(THROWN_SHOWN, {})]),
    "three starts lost, two of them while the monitor was down": (
        PAGE | dict(zip(sorted(LOST, reverse=True), ("0x27 3x33", "0x27 2x33"), strict=True)),
        [
            shows(("celery-workers", "Starts that were not seen", "A"), {"{}": 1}),
            shows(("celery-workers", "Starts that were not seen", "B"), {"{}": 2}),
        ],
    ),
    "one of two monitors says lost": (WATCHED | ONE_UP, [
        shows(LIVES, {'{worker="w"}': 1}), shows(TROUBLE, {}),
        shows(("celery-overview", "Workers lost", "A"), {"{}": 0}), shows(("celery-workers", "Lost", "A"), {"{}": 0}),
    ]),
    "every monitor says lost": (WATCHED | NONE_UP, [
        shows(LIVES, {'{worker="w"}': 2}), shows(TROUBLE, {'{worker="w"}': 1}),
        shows(("celery-overview", "Workers lost", "A"), {"{}": 1}), shows(("celery-workers", "Lost", "A"), {"{}": 1}),
    ]),
}  # fmt: skip


def test_what_panels_show_of_small_stories(tmp_path: Path):
    """No zero where nothing is known, the first of each is there, nothing is counted twice, one monitor may err."""
    write(tmp_path, outputs(defaults()))
    tests = [
        {
            "name": name,
            "interval": "1m",
            "input_series": [{"series": one, "values": values} for one, values in given.items()],
            "promql_expr_test": asked,
        }
        for name, (given, asked) in PLAYS.items()
    ]
    assert len(ZEROS) > 15
    play = {"rule_files": ["rules/celeryscope-recordings.yml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(play, sort_keys=False))
    promtool("test", "rules", tmp_path / "test.yml")


TWO = ["shop.charge", "odd (task) + [name] | \\d"]


@pytest.mark.parametrize("task", ["All", *TWO, TWO], ids=["all", "plain", "odd", "two"])
def test_prometheus_understands_every_query(tmp_path: Path, task: str | list[str]):
    values = {**ALL, "task": task, "worker": "celery@host-1"}
    rules = [
        {"record": f"query:{number}", "expr": substituted(expression, values)}
        for number, expression in enumerate(EXPRESSIONS.values())
    ]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "queries.yml")
