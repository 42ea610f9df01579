"""Outlives the demo by a moment: when the demo is gone, however it went, ends its processes and removes its folder.

A process of its own, run by path: it must start quickly and may import nothing but the standard library. It reads
`group NUMBER` and `folder PATH` lines; the end of its input is the end of the demo.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time


def main() -> None:
    """Wait for the end of the input, then kill the groups and remove the folders."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: list[int] = []
    folders: list[str] = []
    for line in sys.stdin:
        kind, _, value = line.rstrip("\n").partition(" ")
        if kind == "group":
            groups.append(int(value))
        elif kind == "ended":
            groups.remove(int(value))
        elif kind == "folder":
            folders.append(value)
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    for folder in folders:
        for _ in range(20):  # the killed may need a moment to let go
            shutil.rmtree(folder, ignore_errors=True)
            if not os.path.exists(folder):  # noqa: PTH110 - nothing but what is needed
                break
            time.sleep(0.05)


if __name__ == "__main__":
    main()
