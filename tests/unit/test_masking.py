"""Passwords in URLs: hidden wherever they are shown, and known, so that logs can leave them out."""

from __future__ import annotations

import pytest
from celeryscope.monitor.masking import masked, secrets_in


@pytest.mark.parametrize(
    ("text", "shown", "secrets"),
    [
        ("redis://host:6379/0", "redis://host:6379/0", set()),
        ("redis://:pw@host/0", "redis://:***@host/0", {"pw"}),
        ("amqps://user:p%40ss@host//", "amqps://user:***@host//", {"p%40ss", "p@ss"}),
        ("redis://:un@quoted@host/0", "redis://:***@host/0", {"un@quoted"}),
        ("redis://host/0?password=pw&x=1", "redis://host/0?password=***&x=1", {"pw"}),
        ("see redis://:a@h and http://u:b@h, please", "see redis://:***@h and http://u:***@h, please", None),
        ("sentinel://:a@h1:1;sentinel://:b@h2:2", "sentinel://:***@h2:2", {"a", "b"}),
        ("redis://t0ken@host:6379/0", "redis://***@host:6379/0", set()),
        ("redis://un@quoted@host/0", "redis://***@host/0", set()),
        ("https://t%40ken@a, amqp://u:pw@b", "https://***@a, amqp://u:***@b", {"pw"}),
        ("redis://t0ken@a;redis://:pw@b", "redis://***@a;redis://:***@b", {"pw"}),
        ("https://host/@me and https://host?to=me@home", "https://host/@me and https://host?to=me@home", set()),
        ("old_redis://:pw@host, 2redis://t0ken@host", "old_redis://:***@host, 2redis://***@host", {"pw"}),
        ("mail me@home at 10:30", "mail me@home at 10:30", set()),
    ],
)
def test_passwords_are_hidden_and_known(text: str, shown: str, secrets: set[str] | None) -> None:
    assert masked(text) == shown
    if secrets is not None:
        assert secrets_in(text) == secrets
