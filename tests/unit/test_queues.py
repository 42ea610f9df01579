"""Decisions about queues, by literals: what is a queue, what is known of it, and what is said of the unknown."""

from __future__ import annotations

import time

import pytest
from celeryscope.monitor.broker import BrokerConfig
from celeryscope.monitor.inspect import Inspector, Rounds
from celeryscope.monitor.queues import (
    Answer,
    Directory,
    Problems,
    QueueFacts,
    QueueSnapshot,
    Topology,
    age,
    answered,
    collector_families,
    is_delayed_level,
    is_noise,
    slot_families,
    snapshot_families,
    with_consumers,
    without,
)
from celeryscope.monitor.queues_rabbitmq import from_api
from celeryscope.monitor.queues_redis_wire import Bindings, Options, read_held, read_tail
from celeryscope.monitor.queues_sampler import QueueSampler, QueueSamplerThread, bounded, open_sampler
from helpers import eventually


def values(families) -> dict:
    return {family.metric.name: dict(family.samples) for family in families}


@pytest.mark.parametrize(
    "name",
    [
        "",
        "w@h.celery.pidbox",
        "x.reply.celery.pidbox",
        "celery.pidbox",
        "celeryev",
        "celeryev.1-2",
        "amq.gen-x",
        "celeryscope.failures",
    ],
)
def test_names_that_carry_no_tasks(name):
    assert is_noise(name)


@pytest.mark.parametrize("name", ["celery", "celeryevents", "reply.mail", "celeryscoped", "pidbox", "high@amq"])
def test_names_that_do(name):
    assert not is_noise(name)


def test_delayed_levels():
    assert is_delayed_level("celery_delayed_0")
    assert is_delayed_level("celery_delayed_27")
    assert not is_delayed_level("celery_delayed_jobs")


def test_directory_is_bounded_and_counts_what_it_turns_away():
    directory = Directory(["named"], limit=3)
    directory.see(["a", "b", "c", "named", "w.celery.pidbox"], 0.0)
    assert directory.names() == ["named", "a", "b"]
    assert directory.overflow == 1


def test_directory_forgets_only_what_is_empty_and_unheard_of_and_not_named():
    directory = Directory(["named"], linger=10.0)
    directory.see(["idle", "heard", "full", "consumed"], 0.0)
    directory.see(["heard"], 15.0)
    facts = {"full": QueueFacts(ready=1), "consumed": QueueFacts(ready=0, consumers=1), "idle": QueueFacts(ready=0)}
    directory.forget(QueueSnapshot(20.0, facts), 20.0)
    assert directory.names() == ["named", "heard", "full", "consumed"]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (QueueFacts(), None),
        (QueueFacts(ready=0), 0.0),
        (QueueFacts(ready=3), None),
        (QueueFacts(ready=3, oldest_at=90.0), 10.0),
        (QueueFacts(ready=3, oldest_at=200.0), 0.0),
    ],
)
def test_age(facts, expected):
    assert age(facts, 100.0) == expected


def test_unknown_facts_have_no_series():
    found = values(snapshot_families(QueueSnapshot(1.0, {"a": QueueFacts(), "b": QueueFacts(0, {0: 0}, 0, 0)})))
    assert found["celery_queue_messages"] == {("b", "ready"): 0, ("b", "unacked"): 0, ("b", "scheduled"): 0}
    assert found["celery_queue_priority_messages"] == {("b", "0"): 0}
    assert found["celery_queue_oldest_message_age_seconds"] == {("b",): 0.0}
    assert found["celery_queue_consumers"] == {}


def test_sampler_says_nothing_of_itself_before_its_first_pass():
    found = values(collector_families(None, 0.0, {"gone": 0}))
    assert found == {"celeryscope_sample_unknown_total": {("queues", "gone"): 0}}


TWO = Topology(1.0, {"w1": frozenset({"a", "b"}), "w2": frozenset({"a"})}, {"w1": 4, "w2": 2})


def test_slots_count_in_every_queue_of_a_worker_and_dead_workers_in_none():
    found = values(slot_families(TWO, {"w1": 3, "stranger": 5}))
    assert found["celery_queue_slots"] == {("a",): 4, ("b",): 4}
    assert found["celery_queue_busy_slots"] == {("a",): 3, ("b",): 3}


def test_never_more_busy_slots_than_slots():
    assert values(slot_families(TWO, {"w2": 9}))["celery_queue_busy_slots"] == {("a",): 2}


def test_consumers_are_zero_only_when_everybody_answered():
    facts = {"a": QueueFacts(ready=1), "c": QueueFacts(ready=1), "told": QueueFacts(consumers=7)}
    filled = with_consumers(facts, TWO)
    assert [filled[name].consumers for name in ("a", "c", "told")] == [2, 0, 7]
    silent = with_consumers(facts, answered(TWO, {}, ["w3"], [], 2.0))
    assert [silent[name].consumers for name in ("a", "c", "told")] == [2, None, 7]
    assert with_consumers(facts, Topology()) == facts


def test_answers_add_up_and_the_silent_keep_theirs_until_they_lapse():
    first = answered(Topology(), {"w1": Answer(frozenset({"a"}), 4, "prefork"), "w2": Answer(None, 2)}, [], [], 1.0)
    assert first.queues == {"w1": {"a"}}
    second = answered(first, {}, ["w1", "w2"], [], 2.0)
    assert (second.queues, second.silent) == ({"w1": {"a"}}, {"w2"})
    third = answered(second, {}, ["w1"], ["w1"], 3.0)
    assert (third.queues, third.silent) == ({}, {"w1", "w2"})
    assert without(third, {"w1", "w2"}) == Topology(3.0)


def test_everybody_is_asked_at_the_start_and_new_workers_together_after_a_quiet_while():
    rounds = Rounds(every=300, debounce=3, patience=15)
    assert rounds.due(0.0) == []
    rounds.know(["w1"], 10.0)
    rounds.know(["w2", "w1"], 12.0)
    assert rounds.due(14.9) is None
    assert rounds.due(15.0) == ["w1", "w2"]
    assert rounds.due(20.0) is None
    assert rounds.due(300.0) == ["w1", "w2"]


def test_patience_ends_while_workers_keep_coming_and_returning_workers_are_asked_anew():
    rounds = Rounds(every=300, debounce=3, patience=5)
    rounds.due(0.0)
    for second in range(6):
        rounds.know([f"w{second}"], 10.0 + second)
    assert rounds.due(15.0) == [f"w{n}" for n in range(6)]
    rounds.forget(["w1"])
    rounds.know(["w0", "w1"], 20.0)
    assert rounds.due(23.0) == ["w1"]


def test_question_that_could_not_be_put_is_put_again_soon():
    rounds = Rounds(every=300)
    rounds.failed(rounds.due(0.0), 0.0)
    assert rounds.due(14.0) is None
    assert rounds.due(15.0) == []
    assert rounds.due(16.0) is None


def test_long_silence_lapses():
    rounds = Rounds()
    rounds.know(["w1"], 0.0)
    assert [rounds.answered(["w1"], []) for _ in range(3)] == [[], [], ["w1"]]
    assert rounds.answered(["w1"], ["w1"]) == []
    assert rounds.answered(["w1"], []) == []


def test_inspector_survives_a_broker_that_cannot_be_asked(caplog):
    inspector = Inspector(lambda _: 1 / 0, Rounds(every=1))
    assert inspector.round([], [], 0.0, 0.0)
    assert inspector.round([], [], 5.0, 0.0)
    assert sum("cannot be asked" in record.getMessage() for record in caplog.records) == 1
    assert inspector.topology == Topology()


def test_problems_are_counted_always_and_logged_once():
    lines = []
    problems = Problems(lambda text, *args: lines.append(text % args))
    for _ in range(3):
        problems.note("gone", "q", "no such queue")
    assert (problems.counts["gone"], lines) == (3, ["queues: q: no such queue"])


@pytest.mark.parametrize(
    "tail",
    [
        (
            b'"headers": {"id": "i", "eta": "2030-01-01T00:00:00+00:00", "celeryscope-sent-at": 1000.5, '
            b'"x": {"eta": 1}}, '
            b'"properties": {"delivery_tag": "t"}}'
        ),
        b'"headers":{"celeryscope-sent-at":1000.5,"eta":"2030-01-01T00:00:00Z","id":"i"},"properties":{"delivery_tag":"t"}}',
        (
            b'yyy", "eta": "2030-01-01T00:00:00", "id": "i", "a": "\\"celeryscope-sent-at\\": 7", '
            b'"celeryscope-sent-at": 1000.5},'
            b' "properties": {"delivery_tag": "t"}}'
        ),
    ],
    ids=["kombu", "compact", "cut off"],
)
def test_tails_are_read_whole_or_cut_off(tail):
    read = read_tail(tail)
    assert (read.mark, read.sent_at, read.eta, read.uuid) == ("t", 1000.5, 1893456000.0, "i")


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        b"garbage",
        b'"headers": [1], "properties": {}}',
        b'"headers": {"a": 1',
        b"\xff\xfe",
        b'{"delivery_tag": "t"',
    ],
)
def test_what_is_no_message_is_none(tail):
    assert read_tail(tail) is None


@pytest.mark.parametrize("stamp", [b"null", b'"x"', b"-1", b"1e300", b"[1]", b"true"])
def test_nonsense_stamps_are_no_stamps(stamp):
    tail = b'"headers": {"celeryscope-sent-at": %s, "eta": 7, "id": 8}, "properties": {"delivery_tag": "t"}}' % stamp
    read = read_tail(tail)
    assert (read.sent_at, read.eta, read.uuid) == (None, None, None)


def test_held_messages():
    assert read_held(b'null\n", "mail') == (("", "mail"), 0.0)
    assert read_held(b'"1970-01-01T00:01:40+00:00"\nex", "k\\u00e9y') == (("ex", "kéy"), 100.0)
    assert read_held(b'"soon"\nex", "key') == (("ex", "key"), 0.0)
    assert read_held(b"") == (("", ""), 0.0)


def test_bindings_lead_to_one_queue_or_to_none():
    bindings = Bindings()
    learned = bindings.learn(
        "ex", [b"k||one", b"k2||one", b"k2||two", rb"n.#|^n\..*?$|three", b"bad|(|four", b"x"], "|"
    )
    assert learned == {"one", "two", "three", "four"}
    assert [bindings.queue(("ex", key)) for key in ("k", "k2", "n.a", "q")] == ["one", None, "three", None]
    assert bindings.queue(("", "direct")) == "direct"
    assert bindings.queue(("", "")) is None
    bindings.learn("ex", [b"q||five"], "|")
    assert bindings.queue(("ex", "q")) == "five"


def test_redis_options_are_kombus():
    options = Options.of({"global_keyprefix": "p:", "sep": "-", "priority_steps": [0, 5], "unacked_key": "u"})
    assert [options.key("q", step) for step in options.steps] == ["p:q", "p:q-5"]
    assert (options.unacked, options.index, options.acks) == ("u", "unacked_index", True)
    assert Options.of({}).key("q", 3) == "q\x06\x163"


def test_management_answers_of_every_kind():
    assert from_api({"name": "q"}) == QueueFacts()
    assert from_api({"messages_ready": True, "consumers": -1, "backing_queue_status": "x"}) == QueueFacts()
    full = from_api(
        {
            "messages_ready": 3,
            "messages_unacknowledged": 2,
            "consumers": 1,
            "head_message_timestamp": 1000,
            "backing_queue_status": {"priority_lengths": {"0": 1, "9": 2, "x": 3}},
        }
    )
    assert full == QueueFacts(3, {0: 1, 9: 2}, 2, None, 1000.0, "head", 1)


def test_queues_over_the_limit_are_put_together():
    facts = {"a": QueueFacts(ready=1), "b": QueueFacts(unacked=2, scheduled=1), "c": QueueFacts(unacked=3)}
    assert bounded(facts, {"a"}) == {"a": QueueFacts(ready=1), "__other__": QueueFacts(unacked=5, scheduled=1)}
    assert bounded(facts, {"a", "b", "c"}) is facts


class Reader:
    """A reader that does as it is told."""

    def __init__(self, facts=None, error=None, found=()):
        self.problems = Problems(lambda *_: None)
        self.facts, self.error, self.found = facts or {}, error, found
        self.asked, self.closed, self.times = [], 0, []

    def discover(self):
        for name in self.found:
            yield frozenset({name})

    def read(self, queues, now):
        self.asked = list(queues)
        self.times.append(now)
        if self.error is not None:
            raise self.error
        return dict(self.facts)

    def close(self):
        self.closed += 1


def test_names_from_everywhere_are_sampled():
    reader = Reader(found=("bound",))
    sampler = QueueSampler(reader, queues=["named"])
    list(sampler.discover(1.0))
    sampler.know({"heard", "w.celery.pidbox"})
    sampler.sample(1.0)
    assert reader.asked == ["named", "bound", "heard"]


def test_failing_reader_never_raises_and_is_closed():
    sampler = QueueSampler(Reader({"a": QueueFacts(ready=1)}))
    sampler.sample(5.0)
    sampler._reader.error = RuntimeError("amqp://guest:hunter2@host is gone")
    sampler.sample(6.0)
    assert (sampler.snapshot.taken, sampler._reader.closed) == (5.0, 1)
    assert values(sampler.families(7.0))["celeryscope_collector_success"] == {("queues",): 0.0}


def test_thread_samples_on_a_grid_through_failures_and_stops():
    reader = Reader(error=OSError("down"), found=("a", "b"))
    thread = QueueSamplerThread(QueueSampler(reader), interval=0.02)
    thread.start()
    eventually(lambda: len(reader.times) >= 3)
    reader.error = None
    eventually(lambda: len(reader.times) >= 6)
    assert reader.asked == ["a", "b"]
    thread.stop(5.0)
    taken = len(reader.times)
    assert not any(t.is_alive() for t in thread._threads)
    assert len(reader.times) == taken


def test_other_transports_tell_how_many_messages_wait_and_say_so(caplog):
    """kombu's in-memory transport, whole: depth, and one line on what cannot be known."""
    config = BrokerConfig.from_url("memory://")
    name = f"queue-{time.monotonic_ns()}"
    with config.connection() as connection:
        queue = connection.SimpleQueue(name)
        for _ in range(3):
            queue.put({})
        sampler = open_sampler(config, queues=[name], inspect=False)
        sampler.sample(1.0)
        sampler.sample(2.0)
        assert sampler.snapshot.queues == {name: QueueFacts(ready=3)}
        assert sum("cannot be known" in record.getMessage() for record in caplog.records) == 1
        queue.close()
    sampler.close()


def test_a_worker_that_was_started_again_is_asked_anew_and_its_old_answer_holds_meanwhile():
    asked = []

    def ask(workers):
        asked.append(workers)
        return {"w1": Answer(frozenset({"a"}), 2 * len(asked), "prefork")}

    inspector = Inspector(ask, Rounds(every=300, debounce=3))
    inspector.round([], [], 0.0, 0.0)
    inspector.round(["w1"], [], 1.0, 0.0)
    assert not inspector.round([], [], 10.0, 0.0)
    inspector.round([], [], 20.0, 0.0, again=["w1"])
    assert inspector.topology.concurrency == {"w1": 2}
    assert inspector.round([], [], 23.0, 0.0)
    assert asked == [[], ["w1"]]
    assert inspector.topology.concurrency == {"w1": 4}


def test_who_is_known_before_the_first_question_and_does_not_answer_it_is_asked_by_name():
    asked = []

    def ask(workers):
        asked.append(workers)
        return {"w1": Answer(frozenset({"a"}))}

    inspector = Inspector(ask, Rounds(every=300, debounce=3))
    inspector.round(["w1", "w2"], [], 0.0, 0.0)
    inspector.round([], [], 3.0, 0.0)
    assert asked == [[], ["w2"]]
    assert inspector.topology.silent == {"w2"}


def test_restarted_workers_reach_the_inspector_through_the_sampler():
    rounds = []

    class Recorder(Inspector):
        def round(self, came, went, monotonic, now, *, again=()):
            rounds.append((set(came), set(went), set(again)))
            return False

    sampler = QueueSampler(Reader(), Recorder(lambda _: {}))
    sampler.know_workers(["w1"], again=["w2", "w3"])
    sampler.forget_workers(["w3"])
    sampler.inspect(0.0)
    sampler.inspect(0.0)
    assert rounds == [({"w1"}, {"w3"}, {"w2"}), (set(), set(), set())]
