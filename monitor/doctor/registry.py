"""Every check once, as people read it: its id, how bad it is, why it matters, how to fix it, where to read on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

CELERY = "https://docs.celeryq.dev/en/stable/"
DOCS = "https://github.com/celeryscope/celeryscope/blob/main/docs/doctor.md"


class Severity(str, Enum):
    """How bad a finding is: work is lost, runs twice or stands open; it will hurt; it is worth a thought."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True)
class Check:
    """One item of the checklist. `looks` says where it looks; `more` is a page of others on the subject."""

    id: str
    severity: Severity
    title: str
    looks: str
    why: str
    fix: str
    more: str = ""

    @property
    def link(self) -> str:
        """Where our own documentation has the check."""
        return f"{DOCS}#{self.id}"


E, W, ADVICE = Severity.ERROR, Severity.WARNING, Severity.INFO

SET_UP = (
    Check(
        "broker-unreachable",
        E,
        "The broker cannot be reached",
        "the broker",
        "Nothing can be sent, fetched or watched; and nothing about the broker and the workers can be checked.",
        "See to host, port, credentials and TLS of broker_url: the reason is in the finding.",
    ),
    Check(
        "no-workers",
        E,
        "No worker answers",
        "a question to all workers, with a deadline",
        "Without a worker tasks pile up; with workers that have remote control off nobody can revoke, limit or look.",
        "Start a worker (celery -A proj worker), and leave worker_enable_remote_control at True.",
        CELERY + "userguide/workers.html",
    ),
    Check(
        "startup-retry",
        W,
        "Whether workers wait for the broker when they start is left open",
        "app, workers",
        "Celery warns about it at each start and will change what happens; where it is False, a worker that starts "
        "before its broker ends at once.",
        "app.conf.broker_connection_retry_on_startup = True",
        CELERY + "userguide/configuration.html#broker-connection-retry-on-startup",
    ),
    Check(
        "timezone-unset",
        W,
        "Crontabs run by a time zone that nobody chose",
        "app, workers",
        "Without timezone, crontabs run in UTC, or in each machine's local time where enable_utc is False: the nightly "
        "job comes at an hour that nobody expects, and moves when the machine does.",
        'app.conf.timezone = "Europe/Berlin"  # or "UTC", but say so',
        CELERY + "userguide/periodic-tasks.html#time-zones",
    ),
    Check(
        "timezone-disagrees",
        E,
        "Beat and workers have different time zones",
        "app, workers",
        "ETAs and expiry times that one side means in its zone are read in another: tasks run hours early or late, or "
        "expire at once.",
        "Give every process the same timezone and enable_utc; deploy beat and workers from one configuration.",
        CELERY + "userguide/configuration.html#timezone",
    ),
    Check(
        "accept-pickle",
        E,
        "Messages may be pickled",
        "app, workers",
        "Whoever can write to the broker runs any code in every worker.",
        'app.conf.accept_content = ["json"]; app.conf.task_serializer = "json"; app.conf.result_serializer = "json"',
        CELERY + "userguide/security.html",
    ),
    Check(
        "plain-broker",
        W,
        "The broker is spoken to in clear text across hosts",
        "the broker URL",
        "Arguments of tasks and the broker's password can be read, and tasks planted, by whoever is on the way. It is "
        "advice (info) where the broker's name is one that only a network of its own knows: redis, redis.shop.svc.",
        "Use rediss:// or amqps:// with the broker's TLS port, and broker_use_ssl for its certificates.",
        CELERY + "userguide/security.html",
    ),
    Check(
        "open-pages",
        E,
        "Flower or /metrics answers anybody",
        "GET without credentials",
        "Metrics name your tasks, queues and hosts; Flower also shows arguments and stops workers.",
        "Flower: --basic-auth or OAuth, and a network that strangers are not in; its /metrics asks for no password "
        "even then: a proxy in front has to refuse that path. The monitor: --listen 127.0.0.1:9808, "
        "or --web.config.file with basic_auth_users.",
        "https://flower.readthedocs.io/en/latest/auth.html",
    ),
)

TASKS = (
    Check(
        "events-off",
        W,
        "Workers send no task events",
        "workers, the monitor's page, listening",
        "Nobody but the worker knows what a task does: no counts, no run times, no failures in any monitor.",
        "celeryscope.install(app), or app.conf.worker_send_task_events = True, or start workers with -E.",
        CELERY + "userguide/configuration.html#worker-send-task-events",
    ),
    Check(
        "task-sent-off",
        W,
        "Producers do not say what they send",
        "app, workers",
        "Without task-sent the queue of a task and the time it waited there are unknown, and what is never fetched is "
        "never seen.",
        "celeryscope.install(app), or app.conf.task_send_sent_event = True, in the producers too.",
        CELERY + "userguide/configuration.html#task-send-sent-event",
    ),
    Check(
        "results-unused",
        W,
        "A result backend, and every task ignores its result",
        "app, workers",
        "Each producer and worker keeps connections to a backend that nobody reads; and when it is down, they suffer.",
        "Remove app.conf.result_backend; or, where results are wanted, task_ignore_result = False.",
        CELERY + "userguide/tasks.html#ignore-results-you-don-t-want",
    ),
    Check(
        "no-time-limit",
        W,
        "Tasks without a time limit",
        "app, workers",
        "One call that hangs holds a slot until somebody notices; a few of them, and the worker does nothing.",
        "app.conf.task_time_limit = 600; app.conf.task_soft_time_limit = 540  # or @app.task(time_limit=…) on each",
        CELERY + "userguide/workers.html#time-limits",
    ),
    Check(
        "late-not-idempotent",
        W,
        "Acknowledged late, and nobody says that they may run twice",
        "app, workers",
        "A late acknowledgement runs the task again after a crash, a lost connection or a visibility timeout: the "
        "second mail, the second payment.",
        "Make the task safe to run twice, and say so: @app.task(acks_late=True, idempotent=True), or the word "
        '"idempotent" in its docstring; otherwise acks_late=False.',
        CELERY + "userguide/tasks.html",
    ),
    Check(
        "visibility-timeout",
        E,
        "The visibility timeout is shorter than what a message may wait",
        "app, workers",
        "The broker gives a message out again when it was not acknowledged in time: an ETA or a long task beyond that "
        "is run again and again, by several workers at once.",
        'app.conf.broker_transport_options = {"visibility_timeout": SECONDS}  # longer than the longest ETA, countdown '
        "and late-acknowledged task; the same in every process",
        CELERY + "getting-started/backends-and-brokers/redis.html#visibility-timeout",
    ),
    Check(
        "prefetch-long-tasks",
        W,
        "Long tasks wait behind long tasks, and workers idle",
        "the monitor's page, workers",
        "A worker reserves slots × worker_prefetch_multiplier messages: with long tasks those lie there for minutes, "
        "and no free worker can take them.",
        "app.conf.worker_prefetch_multiplier = 1 (with task_acks_late = True for one at a time), in the worker that "
        "has the long tasks.",
        CELERY + "userguide/optimizing.html#prefetch-limits",
    ),
    Check(
        "retry-storm",
        W,
        "Retries without backoff or jitter",
        "app, workers",
        "All tasks that a failing service has turned away come back at the same moment, and turn it away again.",
        "@app.task(autoretry_for=(…,), retry_backoff=True, retry_jitter=True)",
        CELERY + "userguide/tasks.html#automatic-retry-for-known-exceptions",
    ),
    Check(
        "no-dead-letter",
        ADVICE,
        "What fails for good is kept nowhere",
        "app, queue arguments",
        "A rejected message is dropped, and a failed task is a line in a log: nobody can count it, look at it or run "
        "it again.",
        "RabbitMQ: x-dead-letter-exchange in the queue's arguments, or a policy. Elsewhere: celeryscope.install(app), "
        "a task_failure receiver, or on_failure.",
        "https://www.rabbitmq.com/docs/dlx",
    ),
)

QUEUES = (
    Check(
        "queue-unconsumed",
        E,
        "Queues that nobody consumes",
        "app, broker, workers",
        "What is sent there waits for ever, and no worker ever reports an error.",
        "Start a worker with -Q QUEUE, or send the tasks to a queue that has one.",
        CELERY + "userguide/routing.html",
    ),
    Check(
        "route-undeclared",
        W,
        "Routes lead to queues that are not declared",
        "app",
        "A misspelt route makes a queue of its own that no worker reads; with task_create_missing_queues off, sending "
        "raises instead.",
        "Add the queue to task_queues, or correct the route.",
        CELERY + "userguide/routing.html",
    ),
    Check(
        "task-unregistered",
        E,
        "Tasks that the workers of their queue do not know",
        "app, beat schedule, workers",
        'The worker throws the message away: "Received unregistered task".',
        "Import the module in the worker (include=, imports, autodiscover_tasks), and deploy producers and workers "
        "together.",
        CELERY + "userguide/tasks.html#names",
    ),
    Check(
        "priority-steps",
        W,
        "Priorities that the broker does not tell apart",
        "app",
        "On Redis priorities are rounded down to priority_steps (0, 3, 6, 9); on RabbitMQ a queue without "
        "x-max-priority ignores them.",
        'Redis: app.conf.broker_transport_options = {"priority_steps": list(range(10))}. RabbitMQ: '
        "app.conf.task_queue_max_priority = 10, or x-max-priority in the queue's arguments.",
        CELERY + "userguide/routing.html#redis-message-priorities",
    ),
    Check(
        "reply-keys",
        W,
        "Reply queues of inspect and ping pile up",
        "Redis",
        "Each question to the workers left a key behind: at some sites these are gigabytes.",
        "Update kombu; ask rarely (no `celery inspect` as a health check); delete keys *.reply.celery.pidbox that "
        "nobody reads.",
        "https://github.com/celery/celery/issues/6089",
    ),
)

OPERATION = (
    Check(
        "several-beats",
        E,
        "More than one beat leads",
        "the beat probe: page, listening",
        "Every entry of the schedule is sent once by each of them.",
        "Run exactly one; for a standby use a scheduler with a lock, such as RedBeat.",
        CELERY + "userguide/periodic-tasks.html#starting-the-scheduler",
    ),
    Check(
        "beat-in-worker",
        W,
        "Beat runs inside a worker",
        "the beat probe: listening",
        "The schedule stops when that worker does, and the second worker started with -B doubles it.",
        "Leave -B out, and run `celery -A proj beat` as a process of its own.",
        CELERY + "userguide/periodic-tasks.html#starting-the-scheduler",
    ),
    Check(
        "clock-skew",
        W,
        "Clocks disagree",
        "heartbeats, the monitor's page",
        "ETAs, expiry times, schedules and every waiting time are off by as much.",
        "Run chrony or another NTP client on every host (and on this one).",
    ),
    Check(
        "grace-period",
        W,
        "Workers are killed before their slowest task can end",
        "the monitor's page",
        "At each deployment the task is cut off: lost, or with acks_late started over.",
        "Kubernetes: terminationGracePeriodSeconds above the slowest task; Compose: stop_grace_period; systemd: "
        "TimeoutStopSec. Tell the doctor with --grace-period. Or cut the task into smaller ones.",
        CELERY + "userguide/workers.html#stopping-the-worker",
    ),
    Check(
        "redis-eviction",
        E,
        "Redis may throw messages away",
        "Redis",
        "When memory is full, any other maxmemory-policy than noeviction deletes queues, bindings or results.",
        "CONFIG SET maxmemory-policy noeviction, and in redis.conf; alert on memory.",
        CELERY + "getting-started/backends-and-brokers/redis.html",
    ),
    Check(
        "redis-pubsub-limit",
        W,
        "Redis cuts off whoever watches, sooner than it should",
        "Redis, the rate of events",
        "A monitor that stands still for some seconds is disconnected, and loses all events until it is back.",
        'CONFIG SET client-output-buffer-limit "pubsub 128mb 64mb 60", and in redis.conf',
        "https://redis.io/docs/latest/develop/reference/clients/#output-buffer-limits",
    ),
    Check(
        "redis-persistence",
        W,
        "Redis keeps nothing over a restart",
        "Redis",
        "All waiting, scheduled and running tasks are gone when it is restarted.",
        "appendonly yes (appendfsync everysec) in redis.conf, on a volume.",
        "https://redis.io/docs/latest/operate/oss_and_stack/management/persistence/",
    ),
)

CHECKS: dict[str, Check] = {check.id: check for check in (*SET_UP, *TASKS, *QUEUES, *OPERATION)}

GROUPS = {"Set-up": SET_UP, "Tasks": TASKS, "Queues": QUEUES, "Operation": OPERATION}
