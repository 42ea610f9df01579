"""Publish a synthetic stream to Redis as fast as its subscribers read, or at a rate.

Builds and encodes everything first, prints ``built``, waits for a line on stdin,
then publishes and prints one JSON line.  With a closed loop it holds back while
Redis keeps more than --backlog bytes for its subscribers.
"""

import argparse
import json
import socket
import sys
import time
from collections import Counter
from dataclasses import fields

import wire


def spec_arguments(parser):
    for f in fields(wire.Spec):
        flag = "--" + f.name.replace("_", "-")
        if f.type in (bool, "bool"):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=f.default)
        else:
            parser.add_argument(flag, type=int, default=f.default)


def spec_from(args):
    return wire.Spec(**{f.name: getattr(args, f.name) for f in fields(wire.Spec)})


class Redis:
    """Just enough of a client: raw commands out, one reply in."""

    def __init__(self, port):
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rest = b""

    def call(self, *words):
        words = [str(w).encode() for w in words]
        self.sock.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words))
        return self.reply()

    def line(self):
        while b"\r\n" not in self.rest:
            self.rest += self.sock.recv(65536)
        line, self.rest = self.rest.split(b"\r\n", 1)
        return line

    def reply(self):
        line = self.line()
        if line[:1] == b"-":
            raise RuntimeError(line.decode())
        if line[:1] == b"*":
            return [self.reply() for _ in range(int(line[1:]))]
        if line[:1] != b"$":
            return line[1:].decode()
        size = int(line[1:])
        while len(self.rest) < size + 2:
            self.rest += self.sock.recv(65536)
        data, self.rest = self.rest[:size], self.rest[size + 2 :]
        return data.decode()

    def integers(self, n):
        """Read n integer replies; the lowest of them."""
        low = None
        while n:
            low = min(int(self.line()[1:]), low if low is not None else 1 << 30)
            n -= 1
        return low

    def subscribers(self):
        """Each pub/sub client as a dict of CLIENT LIST's fields."""
        rows = self.call("CLIENT", "LIST", "TYPE", "pubsub").splitlines()
        return [dict(p.split("=", 1) for p in row.split(" ") if "=" in p) for row in rows if row]


def chunks(commands, size=65536):
    """Join commands into writes of about size bytes: (bytes, messages)."""
    part, length = [], 0
    for c in commands:
        part.append(c)
        length += len(c)
        if length >= size:
            yield b"".join(part), len(part)
            part, length = [], 0
    if part:
        yield b"".join(part), len(part)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis-port", type=int, default=16379)
    parser.add_argument("--rate", type=float, default=0, help="task events a second; 0: as fast as read")
    parser.add_argument("--backlog", type=int, default=4 << 20, help="0: no closed loop")
    spec_arguments(parser)
    args = parser.parse_args()

    types, commands = Counter(), []
    for channel, payload, kinds in wire.stream(spec_from(args)):
        types.update(kinds)
        commands.append(wire.command(channel, payload))
    tasks = sum(n for t, n in types.items() if t.startswith("task-"))
    per_message = tasks / len(commands)
    small = args.rate and min(65536, 1 + int(args.rate / 200 / per_message * len(commands[-1])))
    writes = list(chunks(commands, small or 65536))
    size, messages = sum(len(w) for w, _ in writes), len(commands)
    del commands
    print("built", flush=True)
    sys.stdin.readline()

    data, control = Redis(args.redis_port), Redis(args.redis_port)
    start, published, waited, lowest, since = time.monotonic(), 0, 0.0, 1 << 30, 0
    for block, n in writes:
        data.sock.sendall(block)
        lowest = min(lowest, data.integers(n))
        published += n
        if args.rate:
            ahead = start + published * per_message / args.rate - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)
        since += len(block)
        if args.backlog and since >= args.backlog // 8:
            since = 0
            before = time.monotonic()
            while sum(int(c["omem"]) for c in control.subscribers()) > args.backlog:
                time.sleep(0.002)
            waited += time.monotonic() - before
    end = time.monotonic()
    print(
        json.dumps(
            {
                "start": start,
                "end": end,
                "seconds": end - start,
                "waited": waited,
                "messages": messages,
                "bytes": size,
                "task_events": tasks,
                "types": types,
                "fewest_receivers": lowest,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
