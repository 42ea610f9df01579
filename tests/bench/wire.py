"""Synthetic Celery event streams, in the bytes that kombu's Redis transport publishes.

The layout was recorded from Celery 5.7 workers (see capture.py): one PUBLISH per
message on ``/{db}.celeryev/{routing_key}``, an envelope of JSON around base64 of
JSON.  A worker's task events travel as lists on ``task.multi``; a client's
``task-sent`` and the ``worker-*`` events travel alone.
"""

import base64
import json
import random
import time
from collections import Counter
from dataclasses import dataclass

TRACEBACK = json.dumps(
    "Traceback (most recent call last):\n"
    '  File "/srv/venv/lib/python3.11/site-packages/celery/app/trace.py", line 564, in trace_task\n'
    "    R = retval = fun(*args, **kwargs)\n"
    "                 ^^^^^^^^^^^^^^^^^^^^\n"
    '  File "/srv/venv/lib/python3.11/site-packages/celery/app/trace.py", line 883, in __protected_call__\n'
    "    return self.run(*args, **kwargs)\n"
    "           ^^^^^^^^^^^^^^^^^^^^^^^^^\n"
    '  File "/srv/shop/orders/tasks.py", line 112, in charge_card\n'
    "    gateway.charge(order, amount=amount, currency=currency)\n"
    '  File "/srv/shop/payments/gateway.py", line 58, in charge\n'
    "    raise GatewayError(response.status, response.reason)\n"
    "shop.payments.gateway.GatewayError: (502, 'Bad Gateway')\n"
)
EXCEPTIONS = (
    "GatewayError(502, 'Bad Gateway')",
    "ValueError('card declined')",
    "TimeoutError('timed out')",
    "KeyError('order')",
)
ENDINGS = (("succeeded", 940), ("failed", 30), ("retried", 20), ("revoked", 7), ("rejected", 3))


@dataclass
class Spec:
    events: int = 200_000  # task events, about
    tasks: int = 20  # distinct task names
    workers: int = 20
    queues: int = 0  # 0: one queue for every ten workers
    batch: int = 3  # task events in one message; 0: each alone, not in a list
    sent: bool = True  # clients send task-sent
    clients: int = 4
    inflight: int = 0  # tasks under way at once; 0: four a worker
    beat_every: int = 500  # one worker-heartbeat after so many task events
    cover: bool = False  # visit every (task, worker) pair in turn instead of drawing
    only_success: bool = False
    seed: int = 1
    db: int = 0


def pairs(spec):
    """Task names with their queue, and for each queue its workers."""
    queues = spec.queues or max(1, spec.workers // 10)
    names = [
        (f"shop.{('orders', 'mail', 'billing', 'search')[i % 4]}.tasks.job_{i:04d}", f"queue-{i % queues}")
        for i in range(spec.tasks)
    ]
    served = {}
    for w in range(spec.workers):
        served.setdefault(f"queue-{w % queues}", []).append(w)
    return names, served


def stream(spec):
    """Yield (channel, payload, types): types counts the message's events by type."""
    rnd = random.Random(spec.seed)
    bits, choice = rnd.getrandbits, rnd.choice
    names, served = pairs(spec)
    hosts = [f"celery@worker-{w:04d}" for w in range(spec.workers)]
    clocks = [1] * spec.workers
    begun = [0] * spec.workers  # what heartbeats say: tasks started, and those of them that still run
    active = [0] * spec.workers
    buffers = [[] for _ in hosts]
    kinds = [Counter() for _ in hosts]
    endings = [e for e, weight in ENDINGS for _ in range(weight)]
    now = time.time()
    prefix = f"/{spec.db}.celeryev/"

    def uuid():
        h = f"{bits(128):032x}"
        return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-a{h[17:20]}-{h[20:]}"

    def message(key, host, body, types):
        payload = (
            f'{{"body": "{base64.b64encode(body.encode()).decode()}", "content-encoding": "utf-8", '
            f'"content-type": "application/json", "headers": {{"hostname": "{host}"}}, '
            f'"properties": {{"delivery_mode": 1, "delivery_info": {{"exchange": "celeryev", '
            f'"routing_key": "{key}"}}, "priority": 0, "body_encoding": "base64", '
            f'"delivery_tag": "{uuid()}"}}}}'
        )
        return prefix + key, payload, types

    def head(w, stamp):
        clocks[w] += 1
        return f'{{"hostname": "{hosts[w]}", "utcoffset": 0.0, "pid": {1000 + w}, "clock": {clocks[w]}'

    def beat(w, kind, stamp):
        body = (
            f'{head(w, stamp)}, "freq": 2.0, "active": {active[w]}, "processed": {begun[w]}, '
            f'"loadavg": [0.53, 0.48, 0.3], "sw_ident": "py-celery", "sw_ver": "5.7.0", '
            f'"sw_sys": "Linux", "timestamp": {stamp:.6f}, "type": "worker-{kind}"}}'
        )
        return message(f"worker.{kind}", hosts[w], body, {f"worker-{kind}": 1})

    def flush(w):
        body, types = "[" + ", ".join(buffers[w]) + "]", dict(kinds[w])
        buffers[w].clear()
        kinds[w].clear()
        return message("task.multi", hosts[w], body, types)

    def task(pair):
        """One task's events in order, as (worker or None, type, fields)."""
        name, queue, w = pair
        end = "succeeded" if spec.only_success else choice(endings)
        ident, order = uuid(), bits(20)
        call = (
            f'"args": "({order}, 19.99)", "kwargs": "{{\'currency\': \'EUR\', '
            f"'customer': {bits(16)}, 'idempotency_key': '{bits(64):016x}'}}\""
        )
        where = f'"exchange": "", "routing_key": "{queue}"'
        attempts = 2 if end == "retried" else 1
        for attempt in range(attempts):
            if spec.sent:
                yield (
                    None,
                    "sent",
                    (
                        f'"uuid": "{ident}", "root_id": "{ident}", "parent_id": null, "name": "{name}", '
                        f'{call}, "retries": {attempt}, "eta": null, "expires": null, '
                        f'"queue": "{queue}", {where}'
                    ),
                )
            yield (
                w,
                "received",
                (
                    f'"uuid": "{ident}", "name": "{name}", {call}, "root_id": "{ident}", '
                    f'"parent_id": null, "retries": {attempt}, "eta": null, "expires": null'
                ),
            )
            if end == "revoked":
                yield w, end, (f'"uuid": "{ident}", "terminated": false, "signum": null, "expired": false')
                return
            if end == "rejected":
                yield w, end, f'"uuid": "{ident}", "requeue": false'
                return
            begun[w] += 1
            active[w] += 1
            yield w, "started", f'"uuid": "{ident}"'
            active[w] -= 1
            if end == "failed" or (end == "retried" and attempt == 0):
                yield w, end, (f'"uuid": "{ident}", "exception": "{choice(EXCEPTIONS)}", "traceback": {TRACEBACK}')
            else:
                yield (
                    w,
                    "succeeded",
                    (
                        f'"uuid": "{ident}", "result": "{{\'ok\': True, \'order\': {order}}}", '
                        f'"runtime": {rnd.lognormvariate(-2, 1.5):.16f}'
                    ),
                )

    def drawn():
        weights = [1 / (i + 1) ** 0.7 for i in range(len(names))]  # a few busy names
        while True:
            for name, queue in rnd.choices(names, weights, k=1000):
                if queue in served:
                    yield name, queue, choice(served[queue])

    def covered():
        every = [(n, q, w) for n, q in names for w in served.get(q, ())]
        while True:
            rnd.shuffle(every)
            yield from every

    source = covered() if spec.cover else drawn()
    for w in range(spec.workers):
        yield beat(w, "online", now)
    emitted = beats = 0
    running = []
    size = spec.inflight or 4 * spec.workers
    while True:
        while len(running) < size and emitted < spec.events:
            running.append(task(next(source)))
        if not running:
            break
        i = rnd.randrange(len(running))
        step = next(running[i], None)
        if step is None:
            running[i] = running[-1]
            running.pop()
            continue
        w, kind, fields = step
        stamp = now + emitted * 2e-5
        emitted += 1
        if w is None:
            c = bits(8) % spec.clients
            yield message(
                "task.sent",
                f"gen{200 + c}@web-{c}",
                f'{{"hostname": "gen{200 + c}@web-{c}", "utcoffset": 0.0, "pid": {200 + c}, '
                f'"clock": {emitted}, {fields}, "timestamp": {stamp:.6f}, "type": "task-sent"}}',
                {"task-sent": 1},
            )
        else:
            event = f'{head(w, stamp)}, {fields}, "timestamp": {stamp:.6f}, "type": "task-{kind}"}}'
            if spec.batch == 0:
                yield message(f"task.{kind}", hosts[w], event, {f"task-{kind}": 1})
            else:
                buffers[w].append(event)
                kinds[w][f"task-{kind}"] += 1
                if len(buffers[w]) >= spec.batch:
                    yield flush(w)
        if emitted % spec.beat_every == 0:
            yield beat(beats % spec.workers, "heartbeat", stamp)
            beats += 1
    for w in range(spec.workers):
        if buffers[w]:
            yield flush(w)


def command(channel, payload):
    """The PUBLISH command as Redis reads it."""
    c, p = channel.encode(), payload.encode()
    return b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(c), c, len(p), p)
