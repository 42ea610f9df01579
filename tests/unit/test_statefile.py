"""The state file: whole or not at all, checked, locked, private."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from celeryscope.monitor import statefile
from celeryscope.monitor.statefile import StateError, StateFile, decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

STATE = {"main": {"tasks": [["a", 1.5, None]], "epoch": 3}, "": {}}


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[StateFile]:
    file = StateFile(directory, wall=lambda: 1000.0)
    try:
        yield file
    finally:
        file.close()


def saved(directory: Path) -> Path:
    with opened(directory) as file:
        file.open()
        assert file.save(STATE)
    return directory / "state"


@pytest.fixture(name="home")
def _home(tmp_path: Path) -> Path:
    return tmp_path / "state-dir"


def test_what_was_saved_is_there_at_the_next_start(home: Path) -> None:
    """The directory is made, and everything in it is for its owner alone."""
    saved(home)
    with opened(home) as file:
        assert file.open() == STATE
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    for path in home.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_who_began_and_did_not_save_for_the_last_time_has_crashed(home: Path) -> None:
    """However it ended: only a last save takes the mark back, and a start that came to nothing leaves none."""

    def crashed() -> bool:
        with opened(home) as file:
            file.open()
            return file.crashed

    assert not crashed()
    saved(home)
    assert crashed()
    for saves, expected in [([], True), ([False], True), ([False, True], False)]:
        with opened(home) as file:
            file.open()
            file.begin()
            for last in saves:
                assert file.save(STATE, last=last)
        assert crashed() == crashed() == expected


def test_a_crash_is_seen_though_the_disk_was_full_when_the_monitor_began(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be written then, and what was counted goes on from the state of the last clean stop."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    with opened(home) as file:
        file.open()
        assert file.save(STATE, last=True)
    with opened(home) as file, monkeypatch.context() as patch:
        file.open()
        assert not file.crashed
        patch.setattr(statefile.os, "pwrite", full)
        patch.setattr(StateFile, "_write", full)
        assert file.begin()
        assert not file.save(STATE)
        assert not file.save(STATE, last=True)
    with opened(home) as file:
        assert file.open() == STATE
        assert file.crashed


def test_a_new_directory_holds_no_state(home: Path) -> None:
    with opened(home) as file:
        assert file.open() == {}


@pytest.mark.parametrize("cut", [0, 5, 30, 90, -1])
def test_a_torn_file_is_set_aside_with_a_warning(home: Path, caplog: pytest.LogCaptureFixture, cut: int) -> None:
    """Wherever it was cut, the monitor starts empty, says so, and keeps the damaged file for people."""
    path = saved(home)
    path.write_bytes(path.read_bytes()[:cut])
    with opened(home) as file, caplog.at_level(logging.WARNING):
        assert file.open() == {}
        assert file.save(STATE)
    assert "set aside as state.damaged-1000" in caplog.text
    assert (home / "state.damaged-1000").exists()


def test_each_changed_byte_is_noticed(home: Path) -> None:
    content = encode(STATE)
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 0x10
        with contextlib.suppress(statefile._DamagedError, StateError):
            assert decode(bytes(changed)) == STATE, place


def test_only_the_last_damaged_files_are_kept(home: Path) -> None:
    path = saved(home)
    for second in range(6):
        path.write_bytes(b"rubbish")
        file = StateFile(home, wall=lambda second=second: 1000.0 + second)
        file.open()
        file.close()
    assert sorted(p.name for p in home.glob("state.damaged-*")) == [f"state.damaged-{1003 + n}" for n in range(3)]


def test_a_newer_version_is_refused_and_left_alone(home: Path) -> None:
    path = saved(home)
    content = path.read_bytes().replace(b"celeryscope-state 1 ", b"celeryscope-state 2 ", 1)
    path.write_bytes(content)
    with opened(home) as file, pytest.raises(StateError, match=r"newer celeryscope \(format 2"):
        file.open()
    assert path.read_bytes() == content


def test_a_directory_has_one_monitor_at_a_time(home: Path) -> None:
    with opened(home) as first:
        first.open()
        with opened(home) as second, pytest.raises(StateError, match="held by another monitor"):
            second.open()
    with opened(home) as third:
        third.open()


def test_directories_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, reason in [
        (tmp_path / "no" / "such", "its parent does not exist"),
        (tmp_path / "file", "is not a directory"),
        (tmp_path / "file" / "below", "Not a directory"),
    ]:
        with opened(path) as file, pytest.raises(StateError, match=reason) as caught:
            file.open()
        assert str(path) in str(caught.value)


def test_a_read_only_directory_is_refused() -> None:
    """As somebody who is not root: root may write everywhere."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o555)
        with opened(Path(name)) as file, _not_root(), pytest.raises(StateError, match="Permission denied"):
            file.open()


@contextlib.contextmanager
def _not_root() -> Iterator[None]:
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_full_disk_is_logged_once_each_way_and_keeps_the_old_file(
    home: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last good state stays whole, and saving goes on once there is room."""
    path = saved(home)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with opened(home) as file, caplog.at_level(logging.WARNING):
        file.open()
        with monkeypatch.context() as patch:
            patch.setattr(statefile.os, "fsync", full)
            assert [file.begin(), file.save({"x": 1}), file.save({"x": 2})] == [False, False, False]
        assert path.read_bytes() == before
        assert file.save({"x": 3})
    assert caplog.text.count("No space left on device") == 1
    assert caplog.text.count("works again") == 1
    assert decode(path.read_bytes()) == {"x": 3}
