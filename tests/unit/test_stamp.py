"""The publish stamp against real Celery apps on kombu's memory transport."""

from __future__ import annotations

import gc
import json
import time
import weakref

import pytest
from celery import Celery, current_app
from celery.signals import before_task_publish
from celeryscope.monitor import stamp
from celeryscope.monitor.guard import Guard


@pytest.fixture(name="make")
def _make():
    apps = []

    def make(broker: str = "memory://", **conf) -> Celery:
        app = Celery(f"app{len(apps)}", broker=broker, set_as_current=False)
        app.conf.update(task_default_queue=f"stamp-{len(apps)}-{time.monotonic_ns()}", **conf)
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.close()


def sent(app: Celery, *args, **options):
    """Publish a task and return the message as it lies in the queue."""
    app.send_task("some.task", args, **options)
    with app.connection_for_read() as connection:
        return connection.SimpleQueue(options.get("queue", app.conf.task_default_queue)).get(timeout=5)


def test_stamp_is_the_time_of_the_publish(make):
    app = make()
    stamp.connect(app)
    before = time.time()
    value = sent(app).headers[stamp.HEADER]
    assert before - 0.001 <= value <= time.time() + 0.001


def test_copied_header_of_a_retry_is_overwritten_and_the_callers_dict_is_not_touched(make):
    app = make()
    stamp.connect(app)
    mine = {stamp.HEADER: 1.0, "other": "kept"}
    headers = sent(app, headers=mine).headers
    assert headers[stamp.HEADER] > 1.0
    assert headers["other"] == "kept"
    assert mine == {stamp.HEADER: 1.0, "other": "kept"}


def test_real_retry_carries_a_fresh_stamp(make):
    app = make()
    stamp.connect(app)

    @app.task(bind=True, name="again")
    def again(self):
        raise self.retry(countdown=0)

    again.push_request(
        id="x", called_directly=False, headers={stamp.HEADER: 1.0}, retries=0, args=(), kwargs={}, delivery_info={}
    )
    with pytest.raises(Exception, match="Retry"):
        again.run()
    again.pop_request()
    with app.connection_for_read() as connection:
        message = connection.SimpleQueue(app.conf.task_default_queue).get(timeout=5)
    assert message.headers["retries"] == 1
    assert message.headers[stamp.HEADER] > 1.0


def test_another_app_of_the_process_is_left_alone(make):
    stamped, other = make(), make()
    stamp.connect(stamped)
    assert stamp.HEADER not in sent(other).headers
    assert stamp.HEADER in sent(stamped).headers


def test_publishing_to_an_exchange_without_a_queue_is_attributed_too(make):
    stamped, other = make("amqp://"), make("amqp://")
    stamp.connect(stamped)
    options = {"exchange": "events", "routing_key": "some.key", "exchange_type": "topic"}
    assert stamp.HEADER in published(stamped, **options)["headers"]
    assert stamp.HEADER not in published(other, **options)["headers"]


def test_both_apps_installed_each_stamp_their_own_once(make):
    first, second = make(), make()
    stamp.connect(first)
    stamp.connect(second)
    assert stamp.HEADER in sent(first).headers
    assert stamp.HEADER in sent(second).headers


def test_connecting_twice_and_through_the_proxy_adds_one_receiver(make, monkeypatch):
    app = make()
    connected = []
    monkeypatch.setattr(before_task_publish, "connect", connected.append)
    app.set_current()
    try:
        stamp.connect(app)
        stamp.connect(current_app)
        stamp.connect(app)
        assert len(connected) == 1
    finally:
        Celery(set_as_current=True).close()


def test_old_protocol_is_stamped_too(make):
    app = make(task_protocol=1)
    stamp.connect(app)
    assert sent(app).headers[stamp.HEADER] > 1e9


def test_app_is_not_kept_alive(make):
    app = Celery("short-lived", broker="memory://", set_as_current=False)
    stamp.connect(app)
    gone = weakref.ref(app)
    app.close()
    del app
    gc.collect()
    assert gone() is None


def test_connecting_does_not_configure_the_app(make):
    app = make()
    fresh = Celery("lazy", set_as_current=False)
    fresh.config_from_object("no.such.module")
    stamp.connect(fresh)
    assert not fresh.configured
    app.close()


def published(app: Celery, **options) -> dict:
    """The properties with which a message would be published, without a broker."""
    seen: dict = {}

    class Producer:
        connection = None

        def publish(self, body, **kwargs):
            json.dumps(body)
            seen.update(kwargs)

    message = app.amqp.create_task_message("id", "some.task", (), {})
    app.amqp.send_task_message(Producer(), "some.task", message, **options)
    return seen


@pytest.mark.parametrize("broker", ["amqp://", "pyamqp://guest@nowhere//"])
def test_amqp_gets_the_timestamp_property(make, broker):
    app = make(broker)
    stamp.connect(app)
    before = int(time.time())
    assert before <= published(app)["timestamp"] <= time.time()
    assert isinstance(published(app)["timestamp"], int)


def test_callers_own_timestamp_property_is_respected(make):
    app = make("amqp://")
    stamp.connect(app)
    assert published(app, timestamp=12)["timestamp"] == 12


@pytest.mark.parametrize("broker", ["memory://", "redis://nowhere"])
def test_other_transports_get_no_timestamp_property(make, broker):
    app = make(broker)
    stamp.connect(app)
    assert "timestamp" not in published(app)


@pytest.mark.guard_swallows
def test_broken_step_never_reaches_the_publisher(make, monkeypatch):
    app = make()
    stamp.connect(app)
    monkeypatch.setattr(stamp, "_owns", lambda *_: 1 / 0)
    failures = Guard.errors["publish stamp"]
    assert stamp.HEADER not in sent(app).headers
    assert Guard.errors["publish stamp"] > failures


def test_publishing_function_that_is_not_found_means_a_stamp(make):
    app = make()
    headers: dict = {}
    stamp._receiver(app)(headers=headers, properties={})
    assert stamp.HEADER in headers
