"""Flower itself, with its API asking browsers for the password that its pages ask for (what `celeryscope flower` runs).

Flower 2.2 answers an API call without credentials with a 401 that lacks `WWW-Authenticate`. A browser sends a password
by itself only below the folder of the page that asked for it: whoever came straight to `/task/ID`, as from an alert,
presses *Revoke*, which calls `/api/task/revoke/ID`, and is refused. With the header the browser repeats the call with
the password it has.
"""

from __future__ import annotations

import functools
import sys
from contextlib import suppress
from typing import Any

REALM = 'Basic realm="flower"'
"""What Flower's pages say: for the same realm a browser has the password already."""


def ask_for_the_password(handler: type[Any]) -> None:
    """Let a handler's 401 carry the header, where there is a password to ask for."""
    write_error = handler.write_error

    @functools.wraps(write_error)
    def asking(self: Any, status_code: int, **options: Any) -> Any:
        if status_code == 401 and self.application.options.basic_auth:
            self.set_header("WWW-Authenticate", REALM)
        return write_error(self, status_code, **options)

    handler.write_error = asking


def main() -> None:
    """Run Celery's command line; its `flower` is then such a one."""
    from celery.__main__ import main as celery

    # Another Flower may look otherwise inside: it is then as it is.
    with suppress(ImportError, AttributeError):
        from flower.api import BaseApiHandler

        ask_for_the_password(BaseApiHandler)
    # As `python -m celery` finds it: the app is usually in the folder that one is in.
    sys.argv[0] = "celery"
    celery()


if __name__ == "__main__":
    main()
