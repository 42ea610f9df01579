"""Beat where most are not yet or not any more: the oldest Celery that we support, and RabbitMQ."""

from __future__ import annotations

from pathlib import Path

import pytest
from beat_farm import SCHEDULERS, Farm, missed, run_script
from celery import Celery
from celeryscope.monitor.beat_runs import ENTRY_HEADER, RUN_HEADER, write
from celeryscope.monitor.stamp import HEADER
from helpers import RabbitServer, RedisServer, eventually, oldest_python

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def followed(farm: Farm, app: str) -> bool:
    """The ledger says exactly what the tasks wrote down, of each run up to its end."""
    sent = farm.truth(app, "two")
    counts = {name: farm.value(f"beat_{name}_total", app, "two") for name in ("dispatched", "missed", "duplicate")}
    assert counts["missed"] in missed(sent), (app, counts, sent)
    assert (counts["dispatched"], counts["duplicate"]) == (len(sent), 0), (app, counts, sent)
    assert farm.ended(app) == len(sent), app
    return True


def stopped_and_ended(farm: Farm, *schedulers: str) -> None:
    """Beats come, stand still for three slots, go on, and go."""
    beats = {name: farm.beat(name, name) for name in schedulers}
    for app in beats:
        eventually(lambda app=app: len(farm.truth(app, "two")) >= 2, 60)
        eventually(lambda app=app: followed(farm, app), 30)
        assert farm.value("beats", app) == 1
        assert farm.value("beat_entry_info", app, "two", "farm.tick", "interval", "2s") == 1.0
        assert farm.value("beat_entry_info", app, "cron", "farm.tick", "crontab", "* * * * *") == 1.0
    farm.freeze(beats, 6.2)
    for app in beats:
        eventually(lambda app=app: missed(farm.truth(app, "two"))[0] >= 2, 30)
        eventually(lambda app=app: followed(farm, app), 30)
    for app, beat in beats.items():
        beat.popen.terminate()
        assert beat.popen.wait(20) == 0
        eventually(lambda app=app: farm.value("beats", app) == 0, 30)
        eventually(lambda app=app: followed(farm, app), 30)
    for process in farm.processes:
        assert "failed and was skipped" not in process.output


def test_beat_of_the_oldest_celery(redis_server: RedisServer, tmp_path: Path) -> None:
    """Celery 5.4's three schedulers, watched by today's monitor."""
    farm = Farm(redis_server, tmp_path, 7, python=oldest_python())
    try:
        farm.env["DATABASE"] = str(tmp_path / "beat.sqlite3")
        run_script("beat_app.py", farm.python, **farm.env, SCHEDULER="django")
        farm.worker()
        stopped_and_ended(farm, *SCHEDULERS)
    finally:
        farm.close()


def test_beat_on_rabbitmq(rabbit: RabbitServer, valkey: RedisServer, tmp_path: Path) -> None:
    """Runs and beat's reports travel over AMQP; RedBeat keeps its schedule in a Redis beside it."""
    farm = Farm(valkey, tmp_path, 8, broker=rabbit.url)
    try:
        farm.worker()
        stopped_and_ended(farm, "persistent", "redbeat")
    finally:
        farm.close()


def send_run(app: Celery, number: int, entry: str = "two") -> None:
    """Publish a run as a beat does."""
    counts, times = (number, 0, 0), (float(number), None, None)
    headers = {ENTRY_HEADER: entry, RUN_HEADER: write("nobody", "b00t", counts, times), HEADER: float(number)}
    app.send_task("farm.tick", args=("nobody:two",), queue="farm", headers=headers)


def words(farm: Farm, name: str) -> list[int]:
    """Return the counts that one worker told."""
    heard = [e for e in list(farm.seen) if e.type == "beat-received" and e.hostname.startswith(f"{name}@")]
    return [e.dispatched for e in heard]


def tells_and_ends(farm: Farm, pool: str, python: str) -> None:
    """A worker tells what it received, a burst in few words, and ends when it is told to."""
    app = Celery("sender", broker=farm.broker, set_as_current=False)
    farm.python = python
    pool_options = ["-P", pool, "-c", "2", "-n", f"{pool}@%h", "--without-gossip", "--without-mingle"]
    worker = farm.worker(*pool_options, APP=f"{pool}-{Path(python).parents[1].name}")
    before = len(words(farm, pool))
    send_run(app, 1)
    eventually(lambda: words(farm, pool)[before:] == [1], 60)
    for number in range(2, 101):
        send_run(app, number)
    eventually(lambda: words(farm, pool)[-1] == 100, 60)
    assert len(words(farm, pool)) - before <= 50
    worker.popen.terminate()
    assert worker.popen.wait(30) == 0, worker.output
    assert "Traceback" not in worker.output
    app.close()


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_the_workers_word_in_every_pool(redis_server: RedisServer, tmp_path: Path, pool: str) -> None:
    """With today's Celery and with the oldest."""
    farm = Farm(redis_server, tmp_path, 9)
    try:
        for python in (farm.python, oldest_python()):
            tells_and_ends(farm, pool, python)
    finally:
        farm.close()


def test_the_workers_word_where_events_were_switched_on_later(redis_server: RedisServer, tmp_path: Path) -> None:
    """By `celery control enable_events`, after which a worker's own dispatcher drops all but `worker` and `task`."""
    farm = Farm(redis_server, tmp_path, 10)
    try:
        app = Celery("sender", broker=farm.broker, set_as_current=False)
        farm.worker("-n", "later@%h", APP="later", EVENTS="off")
        eventually(lambda: app.control.ping(timeout=1), 60)
        send_run(app, 1, "before")
        eventually(lambda: farm.client.llen("truth:nobody:two") == 1)
        (reply,) = app.control.enable_events(reply=True, timeout=30, limit=1)
        assert list(reply.values()) == [{"ok": "task events enabled"}]
        send_run(app, 2)
        eventually(lambda: words(farm, "later") == [2])
        app.close()
    finally:
        farm.close()
