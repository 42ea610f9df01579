"""Beat where most are not yet or not any more: the oldest Celery that we support, and RabbitMQ."""

from __future__ import annotations

from pathlib import Path

import pytest
from beat_farm import SCHEDULERS, Farm, missed, run_script
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
