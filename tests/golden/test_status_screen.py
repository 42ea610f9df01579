"""What `celeryscope status` shows, word for word: 80 columns, fewer, many rows, nothing wrong and much wrong."""

from __future__ import annotations

import io

from celeryscope.exporters.reading import Page
from celeryscope.exporters.report import report
from celeryscope.exporters.status_screen import fitting, render
from rich.console import Console

NOW = 1_000_000.0
WELL = f"""
celeryscope_connected 1
celeryscope_event_lag_seconds 0.012
celeryscope_collector_success{{collector="queues"}} 1
celeryscope_sample_timestamp_seconds{{collector="queues"}} {NOW - 4}
celeryscope_sample_timestamp_seconds{{collector="state"}} {NOW - 4000}
celeryscope_reconnects_total 1
celery_worker_up{{worker="celery@shop-worker-7f9c4d-xkz2p"}} 1
celery_worker_active_tasks{{worker="celery@shop-worker-7f9c4d-xkz2p"}} 3
celery_worker_concurrency{{worker="celery@shop-worker-7f9c4d-xkz2p"}} 8
celery_worker_processed_total{{worker="celery@shop-worker-7f9c4d-xkz2p"}} 1234567
celery_worker_starts_missed_total{{worker="celery@shop-worker-7f9c4d-xkz2p"}} 20
celery_worker_starts_missed_down_total{{worker="celery@shop-worker-7f9c4d-xkz2p"}} 15
celery_worker_last_heartbeat_timestamp_seconds{{worker="celery@shop-worker-7f9c4d-xkz2p"}} {NOW - 1}
celery_queue_messages{{queue="default",state="ready"}} 1200
celery_queue_messages{{queue="default",state="unacked"}} 3
celery_queue_messages{{queue="default",state="scheduled"}} 40
celery_queue_oldest_message_age_seconds{{queue="default"}} 95
celery_queue_consumers{{queue="default"}} 1
celery_queue_busy_slots{{queue="default"}} 3
celery_queue_slots{{queue="default"}} 8
celery_beats{{app="shop"}} 1
celery_beat_entry_info{{app="shop",entry="sync-stock",task="shop.sync",kind="interval",spec="5.0s"}} 1
celery_beat_last_dispatch_timestamp_seconds{{app="shop",entry="sync-stock"}} {NOW - 2}
celery_beat_next_due_timestamp_seconds{{app="shop",entry="sync-stock"}} {NOW + 3}
celery_beat_overdue_seconds{{app="shop",entry="sync-stock"}} 0
celery_beat_lateness_seconds_sum{{app="shop",entry="sync-stock"}} 0.7
celery_beat_lateness_seconds_count{{app="shop",entry="sync-stock"}} 70
celery_task_succeeded_total{{task="shop.pay",queue="default"}} 95
celery_task_failed_total{{task="shop.pay",queue="default"}} 5
celery_task_exceptions_total{{task="shop.pay",queue="default",exception="TimeoutError",outcome="failed"}} 4
celery_task_exceptions_total{{task="shop.pay",queue="default",exception="CardDeclinedError",outcome="failed"}} 1
celery_task_exceptions_total{{task="shop.pay",queue="default",exception="BankAwayError",outcome="retried"}} 9
celery_task_retried_total{{task="shop.pay",queue="default"}} 9
celery_task_runtime_seconds_sum{{task="shop.pay",queue="default",outcome="succeeded"}} 25
celery_task_runtime_seconds_count{{task="shop.pay",queue="default",outcome="succeeded"}} 100
celery_tasks_running{{task="shop.pay",queue="default"}} 3
celery_tasks_waiting{{task="shop.pay",queue="default"}} 1200
celery_task_sent_coverage_ratio{{task="shop.pay"}} 0.99
"""
ILL = (
    WELL.replace("celeryscope_connected 1", "celeryscope_connected 0")
    + f"""\
celery_worker_up{{worker="celery@gone"}} 0
celery_worker_lost{{worker="celery@gone"}} 1
celery_worker_last_heartbeat_timestamp_seconds{{worker="celery@gone"}} {NOW - 700}
celery_worker_wedged{{worker="celery@stuck"}} 1
celery_tasks_orphaned{{task="shop.pay",queue="default"}} 2
celery_queue_messages{{queue="forgotten",state="ready"}} 7
celery_queue_consumers{{queue="forgotten"}} 0
celery_beat_entry_info{{app="shop",entry="nightly",task="shop.report",kind="crontab",spec="30 3 * * *"}} 1
celery_beat_last_dispatch_timestamp_seconds{{app="shop",entry="nightly"}} {NOW - 90_000}
celery_beat_next_due_timestamp_seconds{{app="shop",entry="nightly"}} {NOW - 3600}
celery_beat_overdue_seconds{{app="shop",entry="nightly"}} 3600
celery_beat_missed_total{{app="shop",entry="nightly"}} 1
"""
)
MANY = WELL + "".join(f'celery_worker_up{{worker="w{number:03}"}} 1\n' for number in range(200))


def console(width):
    return Console(file=io.StringIO(), width=width, highlight=False)


def shown(text, width=80, limit=15):
    out = console(width)
    out.print(render(report(Page(text), NOW), limit))
    # What a terminal does not show is not worth a byte in a file that people read.
    return "\n".join(line.rstrip() for line in out.file.getvalue().splitlines()) + "\n"


def test_nothing_is_wrong(golden):
    golden("status/well.txt", shown(WELL))


def test_much_is_wrong(golden):
    golden("status/ill.txt", shown(ILL))


def test_long_names_give_way_and_numbers_do_not(golden):
    text = ILL.replace("shop.pay", "customers.billing.subscriptions.tasks.charge_again").replace("default", "d" * 60)
    golden("status/long.txt", shown(text.replace("nightly", "customers.billing.nightly_subscriptions")))


def test_more_rows_than_wanted_are_counted(golden):
    golden("status/many.txt", shown(MANY, limit=3))


def test_no_line_is_wider_than_the_window():
    for text in (WELL, ILL, MANY):
        for width in (60, 80, 132):
            assert max(map(len, shown(text, width).splitlines())) <= width


def test_a_live_screen_has_as_many_rows_as_the_terminal_has_lines():
    """And where there is room, all of them."""
    result = report(Page(MANY), NOW)
    heights = {}
    for lines in (24, 40, 400):
        out = console(80)
        heights[lines] = len(out.render_lines(fitting(result, 300, out, lines), pad=False))
        assert heights[lines] <= lines
    assert heights[24] > 20
    assert heights[400] > 200
