"""Secrets that can be found again: planted into everything that starts, and looked for in everything that comes out."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis

MARK = "c4n4ry"
"""Is part of every planted secret, and of nothing else."""

SHAPES = {
    "password": "login failed, password={}",
    "json": '{{"api_key": "{}", "user": "bob"}}',
    "repr": "{{'client_secret': '{}'}}",
    "url": "cannot reach redis://worker:{}@cache.example:6379/2",
    "url token": "cannot clone https://{}@git.example/repo.git",
    "query": "GET https://api.example/v1?access_token={}&page=2",
    "bearer": "sent Authorization: Bearer {}",
    "slack": "posting with xoxb-1234-{} failed",
    "hook": "https://hooks.slack.com/services/T000/B000/{}",
    "github": "ghp_0123456789abcdef{}",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJ{0}.sig-{0}",
    "aws": "AKIAC4N4RYINTHEMINE0 is not allowed",
    "key": "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----",
    "dsn": "DSN='postgres://{}'",
    "cookie": "Set-Cookie: sessionid={}; Path=/",
}
"""Texts as exceptions hold them, each with a secret in one of the shapes that redaction promises to know."""


class Canaries:
    """Makes secrets, and finds them: as they are, percent-encoded, escaped, or in base64."""

    def __init__(self) -> None:
        self.made: set[str] = set()

    def plant(self, name: str, more: str = "") -> str:
        """Return a new secret; `more` is appended to it, characters that are special somewhere perhaps."""
        secret = f"{MARK}{name}{more}"
        self.made.add(secret)
        return secret

    def in_url(self, name: str, more: str = "/@'\"\\%") -> str:
        """Return a new secret as it stands in a URL."""
        return quote(self.plant(name, more), safe="")

    def found(self, content: str | bytes) -> list[str]:
        """Return what is around each secret in `content`; empty where there is none."""
        text = content.decode("latin-1") if isinstance(content, bytes) else content
        patterns = [re.escape(MARK), *(re.escape(part) for secret in self.made for part in _in_base64(secret))]
        hits = re.finditer("|".join(patterns), text, re.IGNORECASE)
        return [text[max(0, hit.start() - 120) : hit.end() + 60] for hit in hits]


def _in_base64(secret: str) -> Iterator[str]:
    """Yield what base64 makes of the secret at each of its three alignments, without what depends on the neighbours."""
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + secret.encode()).decode().rstrip("=")
        yield encoded[4 if shift else 0 : -1]


def of_processes(*roots: int) -> str:
    """Return the command lines of these processes and of all that they started: what `ps` shows to everybody."""
    parents = {}
    lines = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            lines[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            parents[int(folder.name)] = int(stat[1])
        except OSError:  # it has just ended
            continue
    family = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    assert os.getpid() not in family
    return "\n".join(lines[pid] for pid in sorted(family) if pid in lines)


def of_redis(url: str, pattern: str) -> str:
    """Return all keys of these names, with what is in them; base64 within is decoded."""
    found: list[Any] = []
    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter(pattern):
            read = {
                b"string": client.get,
                b"list": lambda key: client.lrange(key, 0, -1),
                b"hash": client.hgetall,
                b"zset": lambda key: client.zrange(key, 0, -1),
                b"set": client.smembers,
            }[client.type(key)]
            found.append((key, read(key)))
    text = repr(found)
    bodies = re.findall(r'"body": "([A-Za-z0-9+/=]+)"', text)
    return text + "".join(base64.b64decode(body).decode(errors="replace") for body in bodies)


def of_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every file below a folder, with its bytes."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder)), path.read_bytes()


def of_slack(messages: list[Any]) -> str:
    """Return all that messages say, and said before they were changed."""
    return json.dumps([[message.body, message.history] for message in messages], ensure_ascii=False)
