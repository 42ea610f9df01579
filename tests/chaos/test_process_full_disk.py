"""A disk that is really full (a small tmpfs) where the monitor keeps its state and the alerter its incidents."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from celeryscope.demo.inbox import Inbox
from chaos_process_tools import Scraped, Stream, accounted, alerter, monitor, seen, site, stored
from helpers import RedisServer, eventually, running
from ordeal import empty

pytestmark = pytest.mark.system


class Disk:
    """A file system of its own that can be filled up."""

    def __init__(self, folder: Path, size: str) -> None:
        self.folder = folder
        self.filler = folder / "filler"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"run this as root: no file system can be mounted ({done.stderr.strip()})")

    def fill(self) -> bool:
        """Leave not a byte, as others' files do; what is given up meanwhile is for the next call to take."""
        with self.filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"x" * 4096):
                pass
        return True

    def free(self) -> None:
        self.filler.unlink()

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)


@pytest.fixture(name="disk")
def _disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk", "2m")
    yield disk
    disk.close()


def saving(process: Scraped) -> float | None:
    return process.page().largest("celeryscope_collector_success", collector="state")


def saved_at(process: Scraped) -> float:
    return process.page().total("celeryscope_sample_timestamp_seconds", collector="state")


def test_the_monitor_goes_on_serving_and_saves_again_when_there_is_room(
    valkey: RedisServer, disk: Disk, tmp_path: Path
) -> None:
    """It says once that it cannot save, and on its page; killed meanwhile, it starts from the last whole save."""
    keeping = ("--state-dir", disk.folder / "state", "--log-level", "warning")
    with site(tmp_path, valkey.url) as ours, running(ours.worker("default")):
        with running(monitor(tmp_path, valkey.url, *keeping)) as first:
            ours.send("ok", 20, "default")
            eventually(lambda: accounted(first.page(), "default", ok=20), 60)
            ours.send("ok", 10, "nobody")
            eventually(lambda: first.page().total("celery_tasks_waiting", queue="nobody") == 10)
            before = saved_at(first)
            eventually(lambda: saved_at(first) > before and saving(first) == 1)
            eventually(lambda: disk.fill() and saving(first) == 0)
            ours.send("ok", 20, "default")
            eventually(lambda: accounted(first.page(), "default", ok=40), 60)
            assert first.ready()
            first.kill()
        with running(monitor(tmp_path, valkey.url, *keeping)) as second:
            assert second.page().total("celery_tasks_waiting", queue="nobody") == 10
            eventually(lambda: saving(second) == 0)
            disk.free()
            eventually(lambda: saving(second) == 1)
            ours.send("ok", 5, "default")
            eventually(lambda: seen(second.page(), "succeeded", "ok") == 5, 60)
            second.ended()
        for said in (first.output, second.output):
            assert said.count("cannot save to") == 1
            assert "No space left on device" in said
            assert "set aside" not in said
            assert "Traceback" not in said
        assert second.output.count("works again") == 1
        with running(monitor(tmp_path, valkey.url, *keeping)) as third:
            assert seen(third.page(), "succeeded", "ok") == 5
            third.ended()


def test_the_alerter_leaves_failures_on_the_broker_until_there_is_room(
    valkey: RedisServer, disk: Disk, tmp_path: Path
) -> None:
    """None is lost, none counted or told twice; the page tells how long they have been waiting."""
    store = f"sqlite:///{disk.folder}/incidents.db"
    stream = Stream(valkey.url)
    with (
        Inbox(["general"]).serving() as inbox,
        running(alerter(tmp_path, valkey.url, inbox, "--store", store)) as process,
    ):
        with stream.flowing():
            eventually(lambda: len(inbox.top()) == stream.kinds)
            eventually(lambda: disk.fill() and "the incident store cannot be used" in process.output)
            eventually(lambda: process.page().total("celeryscope_alerter_oldest_failure_seconds") > 2, 40)
            assert process.get("/-/healthy")[0] == 200
            disk.free()
        eventually(lambda: empty(valkey.url), 60)
        eventually(lambda: stream.told_once(inbox), 60)
        assert process.output.count("failures cannot be fetched: the incident store cannot be used") == 1
        process.ended()
    assert stored(store) == stream.made
