"""The demo's Slack: the inbox in a process of its own, which says on its first line where it is."""

from __future__ import annotations

import signal
import sys
import threading

from .inbox import Inbox

CHANNELS = ("alerts", "payments")
SAYS = "inbox at "


def main() -> None:
    """Serve until somebody ends it."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with Inbox(CHANNELS).serving() as inbox:
        sys.stdout.write(f"{SAYS}{inbox.url}\n")
        sys.stdout.flush()
        ended.wait()


if __name__ == "__main__":
    main()
