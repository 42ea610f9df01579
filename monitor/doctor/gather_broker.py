"""Looks at a broker without changing anything: reads a server's settings, counts messages, never takes one (edge)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..broker import BrokerConfig, connect, reason
from ..queues import is_noise
from ..queues_redis_wire import BINDING, SEP
from .facts import Broker, Queue, Redis

if TYPE_CHECKING:
    from kombu import Connection

SCANNED = 20_000
"""Keys of Redis that are looked at by name: 20 short calls at most."""
SCAN_STEP = 1_000
BINDINGS = 200
QUEUES = 500
TLS_SCHEMES = ("rediss", "amqps", "rediss+sentinel")


def describe(config: BrokerConfig, **found: Any) -> Broker:
    """Return what the URLs alone say of a broker, and `found`."""
    urls = [urlsplit(url) for url in config.url.split(";")]
    scheme = urls[0].scheme
    driver = {"sentinel": "redis", "rediss": "redis", "amqps": "amqp", "pyamqp": "amqp", "valkey": "redis"}
    return Broker(
        label=config.label,
        transport=driver.get(scheme, scheme.partition("+")[0]),
        hosts=[url.hostname or "" for url in urls],
        tls=all(url.scheme in TLS_SCHEMES for url in urls) or bool(config.ssl),
        password=all(url.password for url in urls),
        **found,
    )


def broker(config: BrokerConfig, names: Iterable[str], deadline: float) -> Broker:
    """Return what the broker tells about itself and the queues `names`, within about `deadline` seconds."""
    until = time.monotonic() + deadline
    try:
        with config.connection() as connection:
            connect(connection)
            if connection.transport.driver_type == "redis":
                return _redis(config, connection, names, until)
            queues, overlooked = _queues(connection, sorted(names), until)
            return describe(config, queues=queues, overlooked=overlooked)
    except Exception as error:  # noqa: BLE001 - whatever a transport raises: the report says so
        text = reason(error)
        return describe(config, error=text.removeprefix(f"{config.label}: "))


# --- Redis and Valkey ---------------------------------------------------------------------------------------------


def _redis(config: BrokerConfig, connection: Connection, names: Iterable[str], until: float) -> Broker:
    channel: Any = connection.channel()
    client = channel.client
    # kombu's client puts a prefix, where there is one, before what it asks for, and leaves it on what SCAN gives.
    prefix = str(getattr(channel, "global_keyprefix", "") or "")
    replies, bound, overlooked = _searched(client, prefix, until)
    server = _server(client, replies, "" if replies is not None else overlooked)
    held = _number(client, "HLEN", str(channel.unacked_key))
    wanted = sorted({*names, *bound})
    queues = {}
    for name in wanted[:QUEUES]:
        if time.monotonic() > until:
            break
        queues[name] = Queue(ready=int(channel._size(name)))  # noqa: SLF001 - kombu has no public one, and sums priorities
    overlooked = overlooked or _left_out(wanted, len(queues))
    return describe(config, redis=Redis(**{**server, "held": held}), queues=queues, overlooked=overlooked)


def _left_out(wanted: Sequence[str], looked_at: int) -> str:
    return f"only {looked_at} of {len(wanted)} queues were looked at" if looked_at < len(wanted) else ""


def _server(client: Any, replies: int | None, unsearched: str) -> dict[str, Any]:
    found: dict[str, Any] = {"reply_keys": replies, "unsearched": unsearched}
    try:
        said = client.info("memory") | client.info("persistence")
        found["policy"] = said.get("maxmemory_policy")
        found["maxmemory"] = said.get("maxmemory")
        found["appendonly"] = bool(int(said.get("aof_enabled", 0)))
    except Exception as error:  # noqa: BLE001 - servers of cloud providers refuse what they like
        found["refused"] = f"INFO is refused: {reason(error)}"
    try:
        said = client.config_get("client-output-buffer-limit") | client.config_get("save")
        found["save"] = said.get("save")
        found["pubsub_limit"] = _pubsub(str(said.get("client-output-buffer-limit", "")))
    except Exception as error:  # noqa: BLE001 - as above
        found["refused"] = f"CONFIG GET is refused: {reason(error)}"
    return found


def _pubsub(text: str) -> tuple[int, int, int] | None:
    """Read "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60"."""
    words = text.split()
    if "pubsub" not in words:
        return None
    hard, soft, seconds = words[words.index("pubsub") + 1 :][:3]
    return int(hard), int(soft), int(seconds)


def _searched(client: Any, prefix: str, until: float) -> tuple[int | None, set[str], str]:
    """Return how many reply queues lie about, the queues that kombu has bound, and why either may not be all."""
    reply_keys: set[str] = set()
    tables: set[str] = set()
    cursor, seen, complete = 0, 0, False
    try:
        while seen < SCANNED and time.monotonic() < until and not complete:
            cursor, keys = client.execute_command("SCAN", cursor, "COUNT", SCAN_STEP)
            seen += max(len(keys), SCAN_STEP)
            complete = not int(cursor)
            texts = [_text(key).removeprefix(prefix) for key in keys]
            reply_keys |= {key for key in texts if key.endswith(".pidbox") and ".reply." in key and BINDING not in key}
            tables |= {key for key in texts if key.startswith(BINDING) and not is_noise(key[len(BINDING) :])}
        bound = _bound(client, sorted(tables)[:BINDINGS])
    except Exception as error:  # noqa: BLE001 - SCAN may be forbidden to this user
        return None, set(), f"SCAN is refused: {reason(error)}"
    overlooked = "" if complete else f"only some {seen} keys were looked at, there are more"
    if complete and len(tables) > BINDINGS:
        overlooked = f"only {BINDINGS} of {len(tables)} exchanges were looked at"
    return len(reply_keys) if complete or reply_keys else None, bound, overlooked


def _bound(client: Any, tables: Iterable[str]) -> set[str]:
    names = set()
    for table in tables:
        for member in client.execute_command("SMEMBERS", table):
            name = _text(member).rpartition(SEP)[2]
            if not is_noise(name):
                names.add(name)
    return names


def _text(raw: Any) -> str:
    return raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)


def _number(client: Any, command: str, key: str) -> int | None:
    try:
        return int(client.execute_command(command, key))
    except Exception:  # noqa: BLE001 - another type, or not allowed: not known
        return None


# --- all others ---------------------------------------------------------------------------------------------------


def _queues(connection: Connection, names: Sequence[str], until: float) -> tuple[Mapping[str, Queue], str]:
    """Return the queues that are there, and why some may be missing."""
    look: Callable[[str], Queue] = _declared if connection.transport.driver_type == "amqp" else _sized  # type: ignore[assignment]
    found = {}
    looked_at = 0
    for name in names[:QUEUES]:
        if time.monotonic() > until:
            break
        looked_at += 1
        try:
            found[name] = look(connection, name)  # type: ignore[call-arg,arg-type]
        except Exception:  # noqa: BLE001, S112 - a queue that is not there holds nothing
            continue
    return found, _left_out(names, looked_at)


def _declared(connection: Connection, name: str) -> Queue:
    # A passive declaration of what is not there closes its channel: each queue has its own.
    channel: Any = connection.channel()
    try:
        _, ready, consumers = channel.queue_declare(name, passive=True)
    finally:
        if channel.is_open:
            channel.close()
    return Queue(ready=int(ready), consumers=int(consumers))


def _sized(connection: Connection, name: str) -> Queue:
    channel: Any = connection.channel()
    try:
        return Queue(ready=int(channel._size(name)))  # noqa: SLF001 - kombu has no public one
    finally:
        channel.close()
