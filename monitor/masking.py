"""Hiding the secrets inside texts that people will read: URLs in logs, in error messages, on the command line."""

from __future__ import annotations

import json
import re
from urllib.parse import quote, unquote

HIDDEN = "***"

# Greedy up to the last @ of a word: a password that was not percent-encoded may hold one. Of the scheme its last letter
# is enough: to look for its beginning costs seconds in a long line of "a-a-a-".
_USERINFO = re.compile(r"(?P<start>[a-z0-9+.-]://[^:/?#@\s]*:)(?P<secret>[^\s'\"]*)@", re.IGNORECASE)
# A lone userinfo is a user's name or a token: who reads it cannot know, so it is hidden as well.
_TOKEN = re.compile(r"(?P<start>[a-z0-9+.-]://)(?P<secret>[^:/?#\s'\"]+)@", re.IGNORECASE)
_PARAMETER = re.compile(
    r"(?P<start>[?&][\w.-]*(?:password|passwd|passphrase|secret|token|credential|key_id|(?:access|api|account)[-_]?key|"
    r"signature|sig)=)(?P<secret>[^&\s'\"]*)",
    re.IGNORECASE,
)
# Of a text that is a URL and nothing else: a password that was not percent-encoded may hold quotes and blanks as well.
_WHOLE = re.compile(r"\s*[a-z][a-z0-9+.-]*://[^:/?#@\s]*:(?P<secret>[^/?#]*)@", re.IGNORECASE)


def masked(text: str) -> str:
    """Return `text` with the passwords of all URLs in it replaced by `***`; what holds none comes back as it was.

    What stands alone before the @ (`redis://token@host`) is taken for a secret.
    """
    text = _TOKEN.sub(rf"\g<start>{HIDDEN}@", text)
    text = _USERINFO.sub(rf"\g<start>{HIDDEN}@", text)
    return _PARAMETER.sub(rf"\g<start>{HIDDEN}", text)


def secrets_in(url: str) -> set[str]:
    """Return the passwords in a URL (or in several, split by `;`), as they stand there and decoded.

    A lone userinfo is hidden in URLs only: it may be a user called celery, and that word is in every other line.
    """
    found = {
        match["secret"]
        for part in url.split(";")
        for pattern in (_USERINFO, _PARAMETER)
        for match in pattern.finditer(part)
    }
    whole = _WHOLE.match(url)
    if whole:
        found.add(whole["secret"])
    return {text for secret in found if secret for text in (secret, unquote(secret))}


def spellings(secret: str) -> set[str]:
    """Return a secret in the ways in which a text may hold it: as it is, percent-encoded, escaped by Python or JSON."""
    plain = {secret, unquote(secret), quote(secret, safe="")}
    python = {repr(text)[1:-1] for text in plain} | plain
    return python | {json.dumps(text, ensure_ascii=ascii_only)[1:-1] for text in python for ascii_only in (True, False)}
