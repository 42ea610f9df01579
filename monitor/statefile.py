"""The one file that survives a restart: written whole or not at all, checked when read, held by one monitor."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

logger = logging.getLogger("celeryscope.monitor.statefile")

VERSION = 1
MAGIC = b"celeryscope-state"
LONGEST_VERSION = 9
"""Digits; Python refuses to read some thousands of them."""
CLEAN = b"clean\n"
KEEP_DAMAGED = 3
_DIGEST = hashlib.blake2b


class StateError(Exception):
    """A state directory that cannot be used; the message is one line for people."""


class _DamagedError(Exception):
    """The file is torn, or is no state file."""


def encode(state: object) -> bytes:
    """Return the file's content: a line with version, length and checksum, then the state as MessagePack."""
    payload = msgspec.msgpack.encode(state)
    return b"%s %d %d %s\n" % (MAGIC, VERSION, len(payload), _DIGEST(payload).hexdigest().encode()) + payload


def decode(content: bytes) -> Any:
    """Return the state in a file's content.

    Raises:
        StateError: a newer celeryscope wrote it.
        _DamagedError: it is torn, or is no state file.
    """
    end = content.find(b"\n")
    header, payload = content[: max(end, 0)], memoryview(content)[end + 1 :]
    parts = header.split(b" ")
    if len(parts) != 4 or parts[0] != MAGIC or not parts[1].isdigit() or len(parts[1]) > LONGEST_VERSION:
        raise _DamagedError("it does not begin like a state file")
    version = int(parts[1])
    if version > VERSION:
        raise StateError(f"was written by a newer celeryscope (format {version}, this one reads up to {VERSION})")
    if parts[2] != b"%d" % len(payload) or parts[3] != _DIGEST(payload).hexdigest().encode():
        raise _DamagedError("its checksum does not match: it is torn or was changed")
    try:
        return msgspec.msgpack.decode(payload, strict=False)
    except (RecursionError, UnicodeDecodeError):
        raise _DamagedError("it is nested too deeply, or holds text that is none") from None


class StateFile:
    """The state of one monitor in a directory, locked from `open` to `close`.

    Files: `state`, `lock`, and `state.damaged-TIME` for the last few that could not be read. All are readable by
    their owner alone. The lock says `clean` from the last save on until somebody begins anew: `crashed` says, after
    `open`, that it does not, so that whoever wrote the state may have gone on counting after it. To take the word away
    takes no room on the disk.
    """

    def __init__(self, directory: Path, wall: Callable[[], float] = time.time) -> None:
        self.directory = directory
        self.path = directory / "state"
        self._wall = wall
        self.crashed = False
        self._lock: int | None = None
        self._failing = False

    def open(self) -> dict[str, Any]:
        """Lock the directory and return the saved state; empty where there is none or it was damaged.

        Raises:
            StateError: the directory is missing, read-only or held by another monitor, or the file is from a newer
                version.
        """
        try:
            self._make_directory()
            self._take_lock()
            return self._read()
        except OSError as error:
            self.close()
            raise StateError(f"{str(self.directory)!r} cannot be used: {os.strerror(error.errno or 0)}") from None
        except StateError:
            self.close()
            raise

    def begin(self) -> bool:
        """Note that from now on the saved state is out of date, until it is saved for the last time; as `save`."""
        try:
            self._mark(b"")
        except OSError as error:
            self._complain(error)
            return False
        return True

    def save(self, state: dict[str, Any], *, last: bool = False) -> bool:
        """Write the state; see `write`."""
        return self.write(encode(state), last=last)

    def write(self, content: bytes, *, last: bool = False) -> bool:
        """Write an encoded state; say whether that worked. A full disk is logged once, and never ends the monitor.

        `last` says that nothing comes after it: what is saved can be gone on from.
        """
        try:
            self._write(content)
            if last:
                self._mark(CLEAN)
        except OSError as error:
            self._complain(error)
            return False
        if self._failing:
            logger.warning("--state-dir: saving to %s works again", self.directory)
        self._failing = False
        return True

    def _complain(self, error: OSError) -> None:
        if not self._failing:
            logger.warning(
                "--state-dir: cannot save to %s: %s; going on with what was saved before",
                self.directory,
                os.strerror(error.errno or 0),
            )
        self._failing = True

    def close(self) -> None:
        """Let another monitor have the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _make_directory(self) -> None:
        try:
            self.directory.mkdir(mode=0o700, exist_ok=True)
        except FileNotFoundError:
            raise StateError(f"{str(self.directory)!r} cannot be made, because its parent does not exist") from None
        except FileExistsError:
            raise StateError(f"{str(self.directory)!r} is not a directory") from None

    def _take_lock(self) -> None:
        self._lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(
                f"{str(self.directory)!r} is held by another monitor; give each its own directory"
            ) from None
        self.crashed = os.pread(self._lock, len(CLEAN) + 1, 0) != CLEAN and self.path.exists()

    def _mark(self, word: bytes) -> None:
        assert self._lock is not None
        os.ftruncate(self._lock, 0)
        if word:
            os.pwrite(self._lock, word, 0)
        os.fsync(self._lock)

    def _read(self) -> dict[str, Any]:
        # Proves, before anything depends on it, that the directory can be written to.
        probe = self.directory / "state.new"
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT, 0o600))
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        try:
            state = decode(content)
            if not isinstance(state, dict):
                raise _DamagedError("it holds no table")
        except (_DamagedError, msgspec.MsgspecError) as error:
            self.set_aside(str(error))
            return {}
        except StateError as error:
            raise StateError(f"{str(self.path)!r} {error}; use that version or another directory") from None
        return state

    def set_aside(self, reason: str) -> None:
        """Rename the file, so that people can look at it and the next save does not lose it."""
        aside = self.path.with_name(f"state.damaged-{int(self._wall())}")
        self.path.replace(aside)
        logger.warning("--state-dir: %s cannot be used (%s); set aside as %s", self.path, reason, aside.name)
        for old in sorted(self.directory.glob("state.damaged-*"))[:-KEEP_DAMAGED]:
            with contextlib.suppress(OSError):
                old.unlink()

    def _write(self, content: bytes) -> None:
        new = self.directory / "state.new"
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - the descriptor carries the mode
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)
        self._sync_directory()

    def _sync_directory(self) -> None:
        # Without it a power cut may bring the old name back; some file systems do not know it.
        with contextlib.suppress(OSError):
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
