"""Which brokers the settings name: by URL, or through a user's Celery app."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from .broker import BrokerConfig, BrokerError, from_app
from .masking import masked

if TYPE_CHECKING:
    from .settings import BrokerSettings


def broker_configs(settings: BrokerSettings) -> list[BrokerConfig]:
    """Return the brokers to watch, as `--broker` and `-A` name them.

    Raises:
        BrokerError: the app cannot be imported; one line that names the setting.
    """
    accept = frozenset({"json", *settings.accept_content})
    urls = [(target.name, target.url.get_secret_value()) for target in settings.broker_url]
    if not settings.app:
        return [BrokerConfig.from_url(url, name=name, accept=accept) for name, url in urls]
    (name, url) = urls[0] if urls else ("", None)
    from celery.app.utils import find_app  # with -A only: the start need not wait for Celery

    # `celery -A` does the same: a project is usually run from its own folder.
    if (here := os.getcwd()) not in sys.path:  # noqa: PTH109 - sys.path holds texts
        sys.path.insert(0, here)
    try:
        app = find_app(settings.app)
        return [from_app(app, url=url, name=name, accept=accept)]
    except Exception as error:  # a user's module may raise anything
        text = masked(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
        raise BrokerError(f"--app: cannot use {settings.app!r}: {text}") from error
