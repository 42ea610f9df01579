"""What each step of taking in an event costs, in microseconds per event, on one core.

Runs in process over a prebuilt stream: no broker, no second core.  Every row is
the median of --rounds passes; rows of a section are alternatives.
"""

import argparse
import base64
import binascii
import gc
import json
import os
import statistics
import time
from bisect import bisect_left
from collections import OrderedDict

import hiredis
import msgspec
import orjson
import replay
import wire
from baseline import BUCKETS as LIMITS
from baseline import Fast
from celeryscope.monitor.events import Decoder
from celeryscope.monitor.redis_source import SLICE
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from publish import spec_arguments, spec_from

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)


class Envelope(msgspec.Struct):
    body: str


class Event(msgspec.Struct, gc=False):
    type: str
    hostname: str
    timestamp: float
    uuid: str | None = None
    name: str | None = None
    runtime: float | None = None
    queue: str | None = None


class Full(Event, gc=False):
    clock: int = 0
    utcoffset: float = 0
    pid: int = 0
    retries: int | None = None
    args: str | None = None
    kwargs: str | None = None
    eta: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    exception: str | None = None
    traceback: str | None = None
    result: str | None = None


class Frames:
    """The stream as Redis pushes it to a PSUBSCRIBE of /0.celeryev/*."""

    def __init__(self, spec):
        self.raw, self.payloads, self.pieces = [], [], replay.Stream(spec)
        for channel, payload, _ in wire.stream(spec):
            if "/worker." in channel:
                continue
            c, p = channel.encode(), payload.encode()
            self.raw.append(
                b"*4\r\n$8\r\npmessage\r\n$13\r\n/0.celeryev/*\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(c), c, len(p), p)
            )
            self.payloads.append((c, p))
        joined = b"".join(self.raw)
        self.chunks = [joined[i : i + 65536] for i in range(0, len(joined), 65536)]
        self.bodies = [(c.endswith(b".multi"), base64.b64decode(json.loads(p)["body"])) for c, p in self.payloads]
        typed, many = msgspec.json.Decoder(Event).decode, msgspec.json.Decoder(list[Event]).decode
        self.events = [e for m, b in self.bodies for e in (many(b) if m else [typed(b)])]


def steps(f):
    """(section, name, function) for every row."""
    payloads, bodies, events = f.payloads, f.bodies, f.events

    def parse():
        reader = hiredis.Reader()
        for chunk in f.chunks:
            reader.feed(chunk)
            while reader.gets() is not False:
                pass

    yield "parse", "hiredis.Reader over 64 KiB reads", parse

    def each(function, values):  # results dropped at once, as a monitor does
        def run():
            for v in values:
                function(v)

        return run

    texts = [p for _, p in payloads]
    strings = [json.loads(p)["body"] for p in texts]
    env = msgspec.json.Decoder(Envelope).decode
    yield "envelope", "json.loads", each(lambda p: json.loads(p)["body"], texts)
    yield "envelope", "orjson.loads", each(lambda p: orjson.loads(p)["body"], texts)
    yield "envelope", "msgspec Struct(body)", each(lambda p: env(p).body, texts)
    yield "envelope", "slice between quotes", each(lambda p: p[10 : p.index(b'"', 10)], texts)

    yield "base64", "base64.b64decode", each(base64.b64decode, strings)
    yield "base64", "binascii.a2b_base64", each(binascii.a2b_base64, strings)
    try:
        import pybase64

        yield "base64", "pybase64.b64decode", each(pybase64.b64decode, strings)
    except ImportError:
        pass

    raw = [b for _, b in bodies]
    yield "body", "json.loads", each(json.loads, raw)
    yield "body", "orjson.loads", each(orjson.loads, raw)
    yield "body", "msgspec, untyped", each(msgspec.json.Decoder().decode, raw)
    for label, kind in (("7 fields", Event), ("19 fields", Full)):
        one, many = msgspec.json.Decoder(kind).decode, msgspec.json.Decoder(list[kind]).decode

        def typed(b, one=one, many=many):
            return many(b) if b[:1] == b"[" else one(b)

        yield "body", f"msgspec Struct, {label}", each(typed, raw)

    def two_dicts():
        new, old = {}, {}
        for e in events:
            if e.name is None:
                new.get(e.uuid) or old.get(e.uuid)
            else:
                new[e.uuid] = e.name
                if len(new) > 20000:
                    old, new = new, {}

    def lru():
        seen = OrderedDict()
        for e in events:
            if e.name is None:
                if e.uuid in seen:
                    seen.move_to_end(e.uuid)
            else:
                seen[e.uuid] = e.name
                if len(seen) > 20000:
                    seen.popitem(last=False)

    yield "remember", "uuid -> name, two dicts in turn", two_dicts
    yield "remember", "uuid -> name, OrderedDict LRU", lru

    rows = [(e.type, e.name or "shop.orders.tasks.job", e.hostname, e.runtime) for e in events]

    def prom(labels_kw):
        reg = CollectorRegistry()
        c = Counter("e", "e", ["type", "task", "worker"], registry=reg)
        h = Histogram("r", "r", ["task", "worker"], registry=reg, buckets=BUCKETS)

        def keyword():
            for kind, name, host, runtime in rows:
                c.labels(type=kind, task=name, worker=host).inc()
                if runtime is not None:
                    h.labels(task=name, worker=host).observe(runtime)

        def positional():
            for kind, name, host, runtime in rows:
                c.labels(kind, name, host).inc()
                if runtime is not None:
                    h.labels(name, host).observe(runtime)

        return keyword if labels_kw else positional

    yield "count", "prometheus_client labels(k=v).inc/observe", prom(True)
    yield "count", "prometheus_client labels(v).inc/observe", prom(False)

    def resolved():
        reg = CollectorRegistry()
        c = Counter("e", "e", ["type", "task", "worker"], registry=reg)
        h = Histogram("r", "r", ["task", "worker"], registry=reg, buckets=BUCKETS)
        incs, observes = {}, {}
        for kind, name, host, runtime in rows:
            key = (kind, name, host)
            inc = incs.get(key)
            if inc is None:
                inc = incs[key] = c.labels(*key).inc
            inc()
            if runtime is not None:
                key = (name, host)
                observe = observes.get(key)
                if observe is None:
                    observe = observes[key] = h.labels(*key).observe
                observe(runtime)

    yield "count", "prometheus_client, children kept in a dict", resolved

    def arrays():
        counts, runtimes = {}, {}
        for kind, name, host, runtime in rows:
            key = (kind, name, host)
            try:
                counts[key] += 1
            except KeyError:
                counts[key] = 1
            if runtime is not None:
                key = (name, host)
                h = runtimes.get(key)
                if h is None:
                    h = runtimes[key] = [0] * 16
                h[bisect_left(BUCKETS, runtime)] += 1
                h[15] += runtime

    yield "count", "own dict of ints and lists", arrays

    def whole():
        fast, reader = Fast(), hiredis.Reader()
        for chunk in f.chunks:
            reader.feed(chunk)
            while (r := reader.gets()) is not False:
                fast.message(r[2], r[3])

    yield "whole", "baseline.Fast: parse to count", whole

    def tight():
        """The same with every shortcut: no envelope decode, faster base64, one function."""
        try:
            from pybase64 import b64decode as decode
        except ImportError:
            decode = binascii.a2b_base64
        reader = hiredis.Reader()
        one, many = msgspec.json.Decoder(Event).decode, msgspec.json.Decoder(list[Event]).decode
        tasks, counts, runtimes, gets = {}, {}, {}, reader.gets
        for chunk in f.chunks:
            reader.feed(chunk)
            while (r := gets()) is not False:
                p = r[3]
                body = decode(p[10 : p.index(b'"', 10)])
                for e in many(body) if body[:1] == b"[" else (one(body),):
                    name = e.name
                    if name is None:
                        name = tasks.get(e.uuid, "")
                    else:
                        tasks[e.uuid] = name
                    key = (e.type, name, e.hostname)
                    try:
                        counts[key] += 1
                    except KeyError:
                        counts[key] = 1
                    runtime = e.runtime
                    if runtime is not None:
                        key = (name, e.hostname)
                        h = runtimes.get(key)
                        if h is None:
                            h = runtimes[key] = [0] * 16
                        h[bisect_left(BUCKETS, runtime)] += 1
                        h[15] += runtime

    yield "whole", "the same, tight: slice, pybase64, inlined", tight

    def ours():
        reader, decode = hiredis.Reader(), Decoder().redis
        for chunk in f.chunks:
            for offset in range(0, len(chunk), SLICE):
                reader.feed(chunk, offset, min(SLICE, len(chunk) - offset))
                while (r := reader.gets()) is not False:
                    decode(r[2], r[3])

    yield "whole", "ours: parse and decode, nothing counted", ours

    def taken_in():
        system = replay.Ours(f.pieces.start)
        system.take_in(f.pieces.pieces)
        system.close()

    yield "whole", "ours: socket to counters, as the monitor does it", taken_in
    try:
        from celery import Celery
    except ImportError:
        return
    app = Celery(broker="memory://")
    dicts = [orjson.loads(b) for _, b in bodies]
    dicts = [e for d in dicts for e in (d if isinstance(d, list) else [d])]
    receiver = app.events.Receiver(app.connection())

    def from_message():
        for e in dicts:
            receiver.event_from_message(dict(e))

    yield "celery", "EventReceiver.event_from_message", from_message

    def state():
        s = app.events.State()
        for e in dicts:
            s.event({**e, "local_received": e["timestamp"]})

    yield "celery", "State.event", state


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu", type=int, default=0)
    spec_arguments(parser)
    parser.set_defaults(events=60_000)
    args = parser.parse_args()
    os.sched_setaffinity(0, {args.cpu})
    frames = Frames(spec_from(args))
    n, rows = len(frames.events), list(steps(frames))
    times = [[] for _ in rows]
    gc.collect()
    gc.freeze()
    for _ in range(args.rounds):  # interleaved, so that drift falls on all alike
        for row, own in zip(rows, times, strict=True):
            t = time.process_time()
            row[2]()
            own.append((time.process_time() - t) / n * 1e6)
    print(f"{n} events in {len(frames.payloads)} messages")
    for (section, name, _), own in zip(rows, times, strict=True):
        print(f"{section:9} {statistics.median(own):7.2f}  ({min(own):.2f}-{max(own):.2f})  {name}")
    render(args)


def render(args):
    """The cost of one exposition, per sample."""
    reg = CollectorRegistry()
    h = Histogram("r", "r", ["task", "worker"], registry=reg, buckets=BUCKETS)
    for i in range(1000):
        h.labels(f"shop.orders.tasks.job_{i:04d}", f"celery@worker-{i % 10}").observe(i / 100)
    own = []
    for _ in range(args.rounds):
        t = time.process_time()
        out = generate_latest(reg)
        own.append(time.process_time() - t)
    samples = sum(line[:1] != b"#" for line in out.splitlines())
    print(f"render    {statistics.median(own) / samples * 1e6:7.2f}  a sample, prometheus_client.generate_latest")
    fast = Fast()
    for i in range(1000):
        fast.runtimes[f"shop.orders.tasks.job_{i:04d}", f"celery@worker-{i % 10}"] = [1] * (len(LIMITS) + 1)
    own = []
    for _ in range(args.rounds):
        t = time.process_time()
        out = fast.render().encode()
        own.append(time.process_time() - t)
    samples = len(out.splitlines())
    print(f"render    {statistics.median(own) / samples * 1e6:7.2f}  a sample, own f-strings")


if __name__ == "__main__":
    main()
