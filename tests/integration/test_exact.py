"""Every counter and histogram count equals what really happened, as the tasks themselves wrote it down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from celeryscope.monitor.broker import BrokerConfig
from celeryscope.monitor.catalog import METRICS
from celeryscope.monitor.pipeline import Pipeline
from celeryscope.monitor.sources import Source
from helpers import Process, RabbitServer, RedisServer, eventually, oldest_python, running, worker_argv

pytestmark = pytest.mark.timeout(420)  # its own deadlines add up to less

APPS = Path(__file__).resolve().parent.parent / "apps"

# What the monitor calls what the tasks call so: kind of truth → (metric, further labels).
FACTS = {
    "sent": ("celery_task_sent_total", ()),
    "started": ("celery_task_started_total", ()),
    "succeeded": ("celery_task_succeeded_total", ()),
    "failed": ("celery_task_failed_total", ()),
    "retried": ("celery_task_retried_total", ()),
    "exhausted": ("celery_task_retries_exhausted_total", ()),
    "rejected": ("celery_task_rejected_total", ("false",)),
    "requeued": ("celery_task_rejected_total", ("true",)),
    "silent": ("celery_task_silent_end_total", ()),
    "expired": ("celery_task_revoked_total", ("expired",)),
    "terminated": ("celery_task_revoked_total", ("terminated",)),
}
Numbers = dict[tuple[str, ...], int]


def truth(path: Path, produced: dict[str, int], *, mute: frozenset[str] = frozenset()) -> Numbers:
    """Return the expected samples: (metric, task, queue, further labels) → count; `mute` lines end without an event."""
    lines = Counter(
        "silent" + line[line.index(" ") :] if line in mute else line for line in path.read_text().splitlines()
    )
    lines += Counter(produced)
    expected: Counter[tuple[str, ...]] = Counter()
    for line, n in lines.items():
        kind, task, queue = line.split()
        kind, _, exception = kind.partition(":")
        metric, labels = FACTS[kind]
        expected[(metric, task, queue, *labels)] += n
        if exception:
            expected["celery_task_exceptions_total", task, queue, exception, kind] += n
        if kind == "rejected":
            expected["celery_task_exceptions_total", task, queue, "Reject", "rejected"] += n
        if kind in ("succeeded", "failed", "retried"):
            expected["celery_task_runtime_seconds", task, queue, kind] += n
        if kind in ("succeeded", "failed"):
            expected["celery_task_retries", task, queue] += n
            expected["celery_task_total_seconds", task, queue] += n
        if kind == "started":
            for name in ("celery_task_wait_seconds", "celery_task_prefetch_seconds"):
                expected[name, task, queue] += n
            expected["celery_task_received_total", task, queue] += n
    return dict(expected)


def measured(pipeline: Pipeline) -> Numbers:
    """Return what the monitor counted, without zeros and without what is a state and not a count."""
    found: Numbers = {}
    for metric, samples in pipeline.families():
        if metric.group == "tasks" and metric.kind != "gauge":
            for labels, value in samples:
                count = sum(value[:-1]) if isinstance(value, list) else value
                if count:
                    found[(metric.name, *labels)] = int(count)
    return found


def difference(expected: Numbers, found: Numbers) -> dict[tuple[str, ...], tuple[int, int]]:
    return {
        key: (expected.get(key, 0), found.get(key, 0))
        for key in expected.keys() | found.keys()
        if expected.get(key, 0) != found.get(key, 0)
    }


# Celery before 5.7 says nothing of a Reject when the message was acknowledged early.
MUTE_BEFORE_5_7 = frozenset({"rejected exactly.reject default"})


def compare(
    broker: str,
    folder: Path,
    *,
    pool: str,
    n: int,
    python: str = sys.executable,
    mute: frozenset[str] = frozenset(),
    lossy: bool = False,
) -> None:
    """Run real workers through about `n` tasks and hold the monitor's numbers to the truth."""
    env = {"BROKER": broker, "TRUTH": str(folder / "truth"), "PYTHONPATH": str(APPS)}
    (folder / "truth").touch()
    pipeline = Pipeline(METRICS)
    source = Source(BrokerConfig.from_url(broker), pipeline)
    source.start()
    try:
        eventually(lambda: source.connected, 30)
        argv = worker_argv("exactly", "-P", pool, "-c", "4", "-Q", "default,email", "-n", "w@exact", python=python)
        with running(Process(argv, log=folder / "worker.log", cwd=folder, env=env)) as worker:
            worker.wait_for("ready.", 60)
            done = subprocess.run(
                [python, "-m", "exactly", "produce", str(n), pool],
                env={**os.environ, **env},
                cwd=folder,
                capture_output=True,
                check=True,
                timeout=100,
            )
            produced = json.loads(done.stdout)

            def starts_accounted() -> bool:
                begun = sum(line.startswith("started ") for line in (folder / "truth").read_text().splitlines())
                seen = sum(n for key, n in measured(pipeline).items() if key[0] == "celery_task_started_total")
                account = pipeline.workers.hosts["w@exact"].trust
                assert seen + account.untracked == begun, f"{seen} + {account.untracked} of {begun}"
                return account.missed == 0

            def equal() -> bool:
                gap = difference(truth(folder / "truth", produced, mute=mute), measured(pipeline))
                assert not gap, gap
                return not pipeline.tasks.live

            eventually(starts_accounted if lossy else equal, 100, 1.0)
        if lossy:
            return
        assert len(truth(folder / "truth", produced, mute=mute)) > 80
        assert pipeline.workers.hosts["w@exact"].trust.missed == 0
        assert pipeline.workers.hosts["w@exact"].trust.untracked == 0
        assert not source.decoder.malformed
    finally:
        source.stop()


@pytest.mark.parametrize(("pool", "n"), [("prefork", 800), ("threads", 500)])
def test_every_number_equals_the_truth_on_redis(valkey: RedisServer, tmp_path: Path, pool: str, n: int) -> None:
    compare(valkey.url, tmp_path, pool=pool, n=n)


@pytest.mark.system
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_every_number_equals_the_truth_on_rabbitmq(rabbit: RabbitServer, tmp_path: Path, pool: str) -> None:
    compare(rabbit.url, tmp_path, pool=pool, n=1_500)


@pytest.mark.system
def test_every_number_equals_the_truth_on_debians_redis(redis_server: RedisServer, tmp_path: Path) -> None:
    compare(redis_server.url, tmp_path, pool="prefork", n=3_000)


@pytest.mark.system
def test_every_number_equals_the_truth_with_the_oldest_celery(valkey: RedisServer, tmp_path: Path) -> None:
    compare(valkey.url, tmp_path, pool="prefork", n=1_000, python=oldest_python(), mute=MUTE_BEFORE_5_7)


@pytest.mark.system
def test_starts_that_the_oldest_celery_loses_in_its_threads_pool_are_reported(
    valkey: RedisServer, tmp_path: Path
) -> None:
    """Its dispatcher clears a buffer that other threads append to: those events are lost inside the worker."""
    compare(valkey.url, tmp_path, pool="threads", n=500, python=oldest_python(), lossy=True)
