"""Basic authentication against bcrypt hashes: who may pass, at the price of one bcrypt a client and not a request."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

import bcrypt

_HASH = re.compile(r"\$2[aby]\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53}\Z")
_LONGEST = 72
"""bcrypt looks at this many bytes of a password; Go's implementation and htpasswd cut there too."""

REMEMBERED = 100
"""Outcomes kept, right and wrong ones apart so that guessing cannot push out the clients that pass."""


def is_bcrypt(text: str) -> bool:
    """Whether the text is a bcrypt hash."""
    return _HASH.match(text) is not None


class _Asked(NamedTuple):
    password: bytes
    hashed: str
    known: bool
    digest: bytes


class Authenticator:
    """Checks `Authorization` headers. Outcomes are kept under a keyed digest of user, hash and password.

    A changed hash is therefore a new question, and neither passwords nor plain digests of them stay in memory.
    Unknown users cost a bcrypt as well, so that the time taken does not tell which users exist. Only one bcrypt is
    computed at a time: guessing can take one core, not all. Clients whose outcome is kept do not wait for it.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._passed: OrderedDict[bytes, None] = OrderedDict()
        self._refused: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()
        self._bcrypt = threading.Lock()

    def allows(self, users: Mapping[str, str], authorization: str | None) -> bool:
        """Whether the header carries the name of one of `users` (bcrypt hashes by name) and that user's password."""
        asked = self._asked(users, authorization)
        if asked is None:
            return False
        outcome = self._remembered(asked.digest)
        if outcome is None:
            with self._bcrypt:
                outcome = self._remembered(asked.digest)  # somebody else may have asked the same meanwhile
                if outcome is None:
                    outcome = _matches(asked.password, asked.hashed) and asked.known
                    self._remember(asked.digest, passed=outcome)
        return outcome

    def settled(self, users: Mapping[str, str], authorization: str | None) -> bool | None:
        """Return what `allows` would, where that takes no bcrypt; None where it does, and may have to wait for one."""
        asked = self._asked(users, authorization)
        return False if asked is None else self._remembered(asked.digest)

    def _asked(self, users: Mapping[str, str], authorization: str | None) -> _Asked | None:
        given = _credentials(authorization)
        if given is None:
            return None
        user, password = given
        known = user in users
        hashed = users[user] if known else _dummy(users)
        return _Asked(password, hashed, known, self._digest(user, hashed, password))

    def _digest(self, user: str, hashed: str, password: bytes) -> bytes:
        digest = hashlib.blake2b(key=self._key)
        for part in (user.encode("utf-8", "surrogatepass"), hashed.encode(), password):
            digest.update(len(part).to_bytes(8, "big") + part)
        return digest.digest()

    def _remembered(self, digest: bytes) -> bool | None:
        with self._lock:
            if digest in self._passed:
                self._passed.move_to_end(digest)
                return True
            return False if digest in self._refused else None

    def _remember(self, digest: bytes, *, passed: bool) -> None:
        with self._lock:
            kept = self._passed if passed else self._refused
            kept[digest] = None
            if len(kept) > REMEMBERED:
                kept.popitem(last=False)


def _credentials(authorization: str | None) -> tuple[str, bytes] | None:
    scheme, _, encoded = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        return (user.decode("utf-8"), password) if colon else None
    except (binascii.Error, ValueError):
        return None


def _matches(password: bytes, hashed: str) -> bool:
    try:
        return bcrypt.checkpw(password[:_LONGEST], hashed.encode())
    except ValueError:  # a NUL byte in the password
        return False


def _dummy(users: Mapping[str, str]) -> str:
    """Return a hash that nobody has a password for and that takes as long to check as the dearest real one."""
    cost = max((hashed[4:6] for hashed in users.values()), default="10")
    return f"$2b${cost}$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi"
