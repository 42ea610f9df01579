"""Yardsticks: the least that a monitor can do, in steps.  Each counts task events.

receiver   B1  celery.events.EventReceiver, a handler that only counts
state      B2  the same, feeding celery.events.state.State
kombu      B3  a kombu Consumer on any broker, the body decoded and counted as in raw
pubsub     L1  redis-py pub/sub (hiredis), messages counted, nothing decoded
aio        L1  the same with redis.asyncio
decode     L2  L1, then orjson -> base64 -> orjson
raw        L4  own socket, hiredis parser, msgspec typed decode, task names remembered,
               counters and histograms in plain arrays, rendered at the scrape
raw-aio    L4  the same behind an asyncio Protocol
"""

import argparse
import asyncio
import base64
import socket
import threading
from binascii import a2b_base64
from bisect import bisect_left
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

seen = [0]


def plain():
    return f"bench_events_total {seen[0]}\n"


def serve(port, render):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = render().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def receiver(url, state=False):
    from celery import Celery

    app = Celery(broker=url)
    memory = app.events.State() if state else None

    def on_event(event):
        if event["type"].startswith("task-"):
            seen[0] += 1
        if state:
            memory.event(event)

    with app.connection() as connection:
        app.events.Receiver(connection, handlers={"*": on_event}).capture(limit=None, timeout=None)


def kombu(url, fast):
    from kombu import Connection, Exchange, Queue

    with Connection(url) as connection:
        queue = Queue(
            "celeryev.bench", Exchange("celeryev", type="fanout"), routing_key="#", auto_delete=True, durable=False
        )

        def on_message(message):
            fast.body(message.delivery_info["routing_key"].endswith(".multi"), message.body)

        with connection.Consumer([queue], no_ack=True, on_message=on_message):
            while True:
                connection.drain_events()


async def aio(url):
    import redis.asyncio as redis

    p = redis.Redis.from_url(url).pubsub()
    await p.psubscribe("/0.celeryev/*")
    async for m in p.listen():
        seen[0] += m["type"] == "pmessage"


def pubsub(url, decode=False):
    import orjson
    import redis

    p = redis.Redis.from_url(url).pubsub()
    p.psubscribe("/0.celeryev/*")
    for m in p.listen():
        if m["type"] != "pmessage":
            continue
        if decode:
            body = orjson.loads(base64.b64decode(orjson.loads(m["data"])["body"]))
            for event in body if isinstance(body, list) else (body,):
                seen[0] += event["type"].startswith("task-")
        else:
            seen[0] += 1


BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, float("inf"))


class Fast:
    """What a monitor needs of each event, and no more."""

    def __init__(self, remember=200_000):
        from msgspec import Struct
        from msgspec.json import Decoder

        class Envelope(Struct):
            body: str

        class Event(Struct, gc=False):
            type: str
            hostname: str
            timestamp: float
            uuid: str | None = None
            name: str | None = None
            runtime: float | None = None
            queue: str | None = None

        self.envelope = Decoder(Envelope).decode
        self.one, self.many = Decoder(Event).decode, Decoder(list[Event]).decode
        self.tasks, self.old, self.remember = {}, {}, remember
        self.series, self.runtimes = {}, {}

    def message(self, channel, payload):
        self.body(channel.endswith(b".multi"), a2b_base64(self.envelope(payload).body))

    def body(self, many, body):
        if many:
            for e in self.many(body):
                self.event(e)
        else:
            self.event(self.one(body))

    def event(self, e):
        uuid = e.uuid
        if uuid is None:
            return
        seen[0] += 1
        name = e.name
        if name is None:
            name = self.tasks.get(uuid) or self.old.get(uuid, "")
        else:
            self.tasks[uuid] = name
            if len(self.tasks) > self.remember:
                self.old, self.tasks = self.tasks, {}
        key = (e.type, name, e.hostname)
        series = self.series
        try:
            series[key] += 1
        except KeyError:
            series[key] = 1
        if e.runtime is not None:
            key = (name, e.hostname)
            h = self.runtimes.get(key)
            if h is None:
                h = self.runtimes[key] = [0] * len(BUCKETS) + [0.0]
            h[bisect_left(BUCKETS, e.runtime)] += 1
            h[-1] += e.runtime

    def render(self):
        out = [plain()]
        for (kind, name, host), n in list(self.series.items()):
            out.append(f'fast_events_total{{type="{kind}",task="{name}",worker="{host}"}} {n}\n')
        for (name, host), h in list(self.runtimes.items()):
            labels, total = f'task="{name}",worker="{host}"', 0
            for le, n in zip(BUCKETS, h, strict=False):
                total += n
                out.append(f'fast_runtime_seconds_bucket{{{labels},le="{le}"}} {total}\n')
            out.append(
                f"fast_runtime_seconds_count{{{labels}}} {total}\nfast_runtime_seconds_sum{{{labels}}} {h[-1]}\n"
            )
        return "".join(out)


class Wire(asyncio.Protocol):
    """Bytes in, messages out."""

    def __init__(self, fast):
        import hiredis

        self.reader, self.message = hiredis.Reader(), fast.message

    def data_received(self, data):
        reader, message = self.reader, self.message
        reader.feed(data)
        while (reply := reader.gets()) is not False:
            if reply[0] == b"pmessage":
                message(reply[2], reply[3])

    def connection_made(self, transport):
        transport.write(b"PSUBSCRIBE /0.celeryev/*\r\n")


def raw(url, fast):
    parts, wire = urlsplit(url), Wire(fast)
    sock = socket.create_connection((parts.hostname, parts.port or 6379))
    sock.sendall(b"PSUBSCRIBE /0.celeryev/*\r\n")
    while data := sock.recv(1 << 18):
        wire.data_received(data)


async def raw_aio(url, fast):
    parts = urlsplit(url)
    await asyncio.get_running_loop().create_connection(lambda: Wire(fast), parts.hostname, parts.port or 6379)
    await asyncio.Event().wait()


def main():
    modes = {
        "receiver": receiver,
        "state": lambda url: receiver(url, state=True),
        "kombu": lambda url: kombu(url, fast),
        "pubsub": pubsub,
        "aio": lambda url: asyncio.run(aio(url)),
        "decode": lambda url: pubsub(url, decode=True),
        "raw": lambda url: raw(url, fast),
        "raw-aio": lambda url: asyncio.run(raw_aio(url, fast)),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=modes)
    parser.add_argument("--redis", default="redis://127.0.0.1:6379/0")
    parser.add_argument("--port", type=int, default=9808)
    args = parser.parse_args()
    fast = Fast() if args.mode in ("raw", "raw-aio", "kombu") else None
    serve(args.port, fast.render if fast else plain)
    modes[args.mode](args.redis)


if __name__ == "__main__":
    main()
