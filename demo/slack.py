"""The demo's Slack: the inbox in a process of its own, which says on its first line where it is."""

from __future__ import annotations

import argparse
import signal
import sys
import threading

from .inbox import Inbox

CHANNELS = ("alerts", "payments")
SAYS = "inbox at "


def main() -> None:
    """Serve until somebody ends it; on this machine alone, at any free port, unless told otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    inbox = Inbox(CHANNELS)
    inbox.start(arguments.host, arguments.port)
    sys.stdout.write(f"{SAYS}{inbox.url}\n")
    sys.stdout.flush()
    ended.wait()
    inbox.stop()


if __name__ == "__main__":
    main()
