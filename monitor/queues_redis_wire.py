"""How kombu lays tasks out in Redis, read without I/O: bindings, queue keys, message tails and the scripts for them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import msgspec

from .queues_unacked import Held, Route
from .stamp import HEADER

BINDING = "_kombu.binding."
SEP = "\x06\x16"

READY = """
local out, left, most = {}, tonumber(ARGV[1]), tonumber(ARGV[2])
for i, key in ipairs(KEYS) do
  local n = redis.pcall('LLEN', key)
  if type(n) == 'table' then
    out[i] = n.err
  elseif n == 0 or left <= 0 or string.sub(ARGV[3], i, i) == '0' then
    out[i] = n
  else
    local v = redis.pcall('LINDEX', key, -1)
    if type(v) == 'string' then
      left = left - #v
      local at = string.find(v, '"headers":', 1, true)
      local tail = at and #v - at < most and string.sub(v, at) or string.sub(v, -most)
      out[i] = {n, #v, tail}
    else
      out[i] = n
    end
  end
end
return out
"""
"""KEYS: lists. ARGV: bytes that may be copied, bytes of a tail that may be sent, a 1 per key whose tail is wanted.

A list comes back as its length, as (length, size of the oldest message, its tail from the headers on), or as the
text of an error. The server has to copy the oldest message whole to cut it, which is what the first limit bounds.
"""

UNACKED = """
local out, most = {}, tonumber(ARGV[1])
for i = 2, #ARGV do
  local size = redis.call('HSTRLEN', KEYS[1], ARGV[i])
  if size == 0 then
    out[i - 1] = false
  elseif size > most then
    out[i - 1] = ''
  else
    local v = redis.call('HGET', KEYS[1], ARGV[i])
    local at = string.find(v, '"headers":', 1, true)
    local eta = at and string.match(v, '"eta":%s*([^,}]*)', at) or ''
    local route = string.match(string.sub(v, -600), '^.*"([^"]*",%s*"[^"]*)"%]$') or ''
    out[i - 1] = eta .. '\\n' .. route
  end
end
return out
"""
"""KEYS: the hash of unacknowledged messages. ARGV: bytes above which a message is not looked into, then tags.

Each comes back as its raw ETA, a newline, and exchange and routing key; empty where it is too big; nil where gone.
The greedy `.*` makes Lua look for the route from the end, which costs 9 us a message instead of 21.
"""

_ROUTE = re.compile(r'^([^"]*)",\s*"([^"]*)$')
_SENT = re.compile(rf'(?<!\\)"{HEADER}":\s*([0-9.]+)')
_ETA = re.compile(r'(?<!\\)"eta":\s*(?:null|"([^"]*)")')
_ID = re.compile(r'(?<!\\)"id":\s*"([^"]*)"')
_TAG = re.compile(r'(?<!\\)"delivery_tag":\s*"([^"]*)"')


@dataclass(frozen=True, slots=True)
class Options:
    """The transport options that decide where kombu puts things; defaults are kombu's."""

    prefix: str = ""
    sep: str = SEP
    steps: tuple[int, ...] = (0, 3, 6, 9)
    unacked: str = "unacked"
    index: str = "unacked_index"
    acks: bool = True

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Options:
        """Read kombu's `transport_options`."""
        return cls(
            prefix=str(options.get("global_keyprefix") or ""),
            sep=str(options.get("sep") or SEP),
            steps=tuple(int(step) for step in options.get("priority_steps") or (0, 3, 6, 9)),
            unacked=str(options.get("unacked_key") or "unacked"),
            index=str(options.get("unacked_index_key") or "unacked_index"),
            acks=bool(options.get("ack_emulation", True)),
        )

    def key(self, queue: str, priority: int) -> str:
        """Return the list that holds a queue's messages of one priority step."""
        return f"{self.prefix}{queue}{self.sep}{priority}" if priority else f"{self.prefix}{queue}"


@dataclass(frozen=True, slots=True)
class Tail:
    """What the end of a message says: unix times, the task's id, and a mark by which to know the message again."""

    mark: str
    sent_at: float | None = None
    eta: float | None = None
    uuid: str | None = None


class _Headers(msgspec.Struct):
    id: Any = None
    eta: Any = None
    sent_at: Any = msgspec.field(name=HEADER, default=None)


class _Properties(msgspec.Struct):
    delivery_tag: Any = None
    correlation_id: Any = None


class _Message(msgspec.Struct):
    headers: _Headers
    properties: _Properties


_message = msgspec.json.Decoder(_Message)


def read_tail(data: bytes) -> Tail | None:
    """Read the end of a message, from its headers on where they fit; None where it is no kombu message."""
    if data.startswith(b'"headers":'):
        try:
            message = _message.decode(b"{" + data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        headers, properties = message.headers, message.properties
        return Tail(
            str(properties.delivery_tag or properties.correlation_id or ""),
            _number(headers.sent_at),
            _time(headers.eta),
            headers.id if isinstance(headers.id, str) else None,
        )
    text = data.decode("utf-8", "replace")
    mark = _TAG.search(text)
    if mark is None or not text.endswith("}"):
        return None
    # The headers are longer than what was sent: ETA and id, which come first in them, may be missing.
    sent = _SENT.findall(text)
    eta, uuid = _ETA.search(text), _ID.search(text)
    return Tail(mark[1], _number(sent[-1]) if sent else None, _time(eta[1]) if eta else None, uuid[1] if uuid else None)


def read_held(data: bytes) -> Held:
    """Read what UNACKED returns for one message; a route that cannot be read is ("", "")."""
    eta, _, raw = data.partition(b"\n")
    route = _routes.get(raw)
    if route is None:
        # 100 000 unacknowledged messages have a handful of routes between them: keep one copy of each.
        if len(_routes) > 10_000:
            _routes.clear()
        route = _routes[raw] = _read_route(raw)
    return Held(route, (_time(eta.decode("utf-8", "replace").strip('" ')) or 0.0) if eta.startswith(b'"') else 0.0)


_routes: dict[bytes, Route] = {}


def _read_route(raw: bytes) -> Route:
    match = _ROUTE.match(raw.decode("utf-8", "replace"))
    try:
        return (json.loads(f'"{match[1]}"'), json.loads(f'"{match[2]}"')) if match else ("", "")
    except ValueError:  # a quote within a name
        return ("", "")


def _number(value: object) -> float | None:
    try:
        number = float(value) if isinstance(value, int | float | str) and value is not True else 0.0
    except (ValueError, OverflowError):
        return None
    return number if 0 < number < 1e11 else None


def _time(value: object) -> float | None:
    if not isinstance(value, str) or not value or value == "null":
        return None
    try:
        moment = datetime.fromisoformat(value[:-1] + "+00:00" if value.endswith("Z") else value)
    except ValueError:
        return None
    # Celery writes an ETA without a zone only where enable_utc is on.
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


@dataclass(slots=True)
class Bindings:
    """kombu's binding tables: exchange → (routing key, pattern, queue)."""

    tables: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)
    _found: dict[Route, str | None] = field(default_factory=dict)

    def learn(self, exchange: str, members: Iterable[bytes], sep: str) -> frozenset[str]:
        """Take one exchange's table; return its queues."""
        table = []
        for member in members:
            parts = member.decode("utf-8", "replace").split(sep)
            if len(parts) == 3 and parts[2]:
                table.append((parts[0], parts[1], parts[2]))
        if self.tables.get(exchange) != table:
            self.tables[exchange] = table
            self._found.clear()
        return frozenset(queue for _, _, queue in table)

    def queue(self, route: Route) -> str | None:
        """Return the one queue to which a route leads; None where there is none, or several: it could be any."""
        exchange, key = route
        if not exchange:
            return key or None
        if route not in self._found:
            if len(self._found) > 10_000:
                self._found.clear()
            found = {
                queue
                for bound, pattern, queue in self.tables.get(exchange, ())
                if bound == key or (pattern and _matches(bound, key))
            }
            self._found[route] = found.pop() if len(found) == 1 else None
        return self._found[route]


def _matches(bound: str, key: str) -> bool:
    """Tell whether a topic binding takes a routing key, as kombu's own pattern would.

    That pattern lies in Redis beside the binding, where anybody may put one that a regular expression never ends on.
    To kombu `#` is any text, and `*` any that does not end with a dot.
    """
    ends = {0}
    for number, word in enumerate(bound.split(".")):
        if number:
            ends = {end + 1 for end in ends if key.startswith(".", end)}
        if not ends:
            return False
        if word == "#":
            ends = set(range(min(ends), len(key) + 1))
        elif word == "*":
            ends = {end for end in range(min(ends) + 1, len(key) + 1) if key[end - 1] != "."}
        else:
            ends = {end + len(word) for end in ends if key.startswith(word, end)}
    return len(key) in ends
