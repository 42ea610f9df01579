"""`celeryscope` as people run it, but every library logs at DEBUG, and it crashes where asked: for the canary tests.

`python loudly.py COMMAND …`. CRASH_WITH holds a text: once the settings are read an error with this text, and with the
settings' repr, that nothing expects, ends a thread and then the process.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import Any

from celeryscope.__main__ import main
from celeryscope.monitor import logs, options

configure, from_options = logs.configure, options.from_options


def loud(*args: Any, **named: Any) -> None:
    configure(*args, **named)
    logging.getLogger().setLevel(logging.DEBUG)


def crashing(*args: Any, **named: Any) -> Any:
    settings = from_options(*args, **named)

    def fail() -> None:
        raise RuntimeError(f"{os.environ['CRASH_WITH']} of {settings!r}")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    fail()


logs.configure = loud
if "CRASH_WITH" in os.environ:
    options.from_options = crashing
sys.exit(main())
