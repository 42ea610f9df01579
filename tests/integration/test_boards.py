"""The boards' queries through Debian's promtool: Prometheus understands each, and two monitors double nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from celeryscope.dashboards.boards import all_boards
from celeryscope.dashboards.panels import queries_of, substituted
from celeryscope.dashboards.rules_cli import outputs, write
from celeryscope.dashboards.thresholds import defaults
from helpers import system_command

pytestmark = pytest.mark.system

DURATIONS = {"__rate_interval": "2m", "__range": "30m", "__interval": "1m"}
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


def test_two_monitors_count_once_at_all_and_at_a_value(tmp_path: Path):
    write(tmp_path, outputs(defaults()))
    tests = [
        {
            "expr": substituted(EXPRESSIONS[which], {**ALL, "task": task}),
            "eval_time": "30m",
            "exp_samples": [{"labels": labels, "value": value} for labels, value in wanted.items()],
        }
        for which, task, wanted in EXPECTED
    ]
    play = {
        "rule_files": ["rules/celeryscope-recordings.yml"],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series(), "promql_expr_test": tests}],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(play, sort_keys=False))
    promtool("test", "rules", tmp_path / "test.yml")


@pytest.mark.parametrize("task", ["All", "shop.charge", "odd (task) + [name] | \\d"])
def test_prometheus_understands_every_query(tmp_path: Path, task: str):
    values = {**ALL, "task": task, "worker": "celery@host-1"}
    rules = [
        {"record": f"query:{number}", "expr": substituted(expression, values)}
        for number, expression in enumerate(EXPRESSIONS.values())
    ]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "queries.yml")
