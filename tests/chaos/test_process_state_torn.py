"""The state file: the monitor killed while it writes it, and started from one that is torn or changed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from chaos_process_tools import Scraped, accounted, monitor, site
from helpers import RedisServer, eventually, running

HELD = 1_500


def kill_while_it_saves(process: Scraped, folder: Path) -> None:
    """Kill it at a moment when a part of the next state, or all of it, is written and is not yet the state."""

    def caught() -> bool:
        process.send(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        if size(folder / "state.new"):
            return True
        process.send(signal.SIGCONT)
        return False

    eventually(lambda: size(folder / "state.new") and caught(), 60, interval=0.0005)
    process.kill()
    assert size(folder / "state.new")


def size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.soak)])
def test_killed_while_it_saves_it_goes_on_from_the_save_before(kills: int, valkey: RedisServer, tmp_path: Path) -> None:
    """Always whole: what waits in a queue is known after each of the kills, all of it, and once."""
    state = tmp_path / "state"
    with site(tmp_path, valkey.url) as ours:
        for life in range(kills + 1):
            with running(monitor(tmp_path, valkey.url, "--state-dir", state)) as process:
                if life == 0:
                    ours.send("ok", HELD, "nobody")
                eventually(
                    lambda process=process: process.page().total("celery_tasks_waiting", queue="nobody") == HELD, 60
                )
                page = process.page()
                assert page.total("celery_tasks_waiting") == page.total("celeryscope_task_table_size") == HELD
                assert page.total("celeryscope_task_outcomes_missed_total") == 0
                if life == kills:
                    break
                saves = page.total("celeryscope_sample_timestamp_seconds", collector="state")
                eventually(
                    lambda process=process, saves=saves: (
                        process.page().total("celeryscope_sample_timestamp_seconds", collector="state") > saves + 0.5
                    )  # with all of them in it
                )
                kill_while_it_saves(process, state)
            assert "set aside" not in process.output
            assert "Traceback" not in process.output
    assert not list(state.glob("state.damaged-*"))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda _: b"",
    "cut in its first line": lambda content: content[:30],
    "cut after its first line": lambda content: content[: content.index(b"\n") + 1],
    "cut in the middle": lambda content: content[: len(content) // 2],
    "its end never reached the disk": lambda content: content[:-512] + bytes(512),
    "a bit has fallen over": lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:],
}


def test_torn_in_any_way_it_starts_says_so_and_counts_what_it_sees(valkey: RedisServer, tmp_path: Path) -> None:
    """From 0, as a new one: what came before is in the damaged file, and nothing is claimed about it."""
    state = tmp_path / "state"
    keeping = ("--state-dir", state)
    with site(tmp_path, valkey.url) as ours, running(ours.worker("default")):
        with running(monitor(tmp_path, valkey.url, *keeping)) as process:
            ours.send("ok", 10, "default")
            eventually(lambda: accounted(process.page(), "default", ok=10), 60)
            assert "set aside" not in process.ended()
        for number, (what, damage) in enumerate(DAMAGE.items(), 1):
            whole = (state / "state").read_bytes()
            (state / "state").write_bytes(damage(whole))
            with running(monitor(tmp_path, valkey.url, *keeping)) as process:
                assert "celery_task_started_total" not in process.page(), what
                ours.send("ok", 10, "default")

                def told(process: Scraped = process, number: int = number) -> bool:
                    page = process.page()
                    assert page.total("celery_task_started_total") == page.total("celery_task_succeeded_total") == 10
                    assert page.total("celery_worker_processed_total") == 10 * (number + 1)
                    assert page.total("celery_worker_starts_missed_total") == 0
                    assert page.total("celery_worker_starts_untracked_total") == 0
                    return True

                eventually(told, 40)
                said = process.ended()
                assert said.count("set aside as state.damaged-") == 1, what
    assert len(list(state.glob("state.damaged-*"))) == 3
