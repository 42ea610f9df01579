"""The incident store and what is told from it, on a clock of our own: counting, pacing, claiming, storms, trouble."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from alerting import batch, entry
from celeryscope.alerts import queries, store
from celeryscope.alerts.alerter import Config
from celeryscope.alerts.batches import Batch, decode
from celeryscope.alerts.delivery import (
    GoneError,
    MisconfiguredError,
    Place,
    RateLimitedError,
    RefusedError,
    UncertainError,
    UnreachableError,
)
from celeryscope.alerts.dispatcher import Dispatcher
from celeryscope.alerts.intake import Intake
from celeryscope.alerts.mailbox import Mailbox
from celeryscope.alerts.policy import Plan, QuietHours, Rule, Threshold
from celeryscope.alerts.store import Database, StoreError
from celeryscope.alerts.views import Composer, View, encoded

START = 1_790_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


class FakeSlack:
    """Keeps what is posted by message id; `trouble` is raised by the next calls, with or without their effect."""

    editable = True

    def __init__(self) -> None:
        self.posts: list[tuple[str, str, View]] = []
        self.calls: list[tuple[str, str]] = []
        self.replies: list[View] = []
        self.shown: dict[str, View] = {}
        self.trouble: list[tuple[bool, Exception]] = []
        self.knows_history = True

    def _call(self, name, key, effect):
        self.calls.append((name, key))
        if self.trouble:
            works, error = self.trouble.pop(0)
            if works:
                effect()
            raise error
        effect()

    def post(self, channel, view, message_id):
        ref = str(len(self.posts))

        def effect():
            self.posts.append((channel, message_id, view))
            self.shown[ref] = view

        self._call("post", message_id, effect)
        return Place(f"C{channel}", ref)

    def update(self, place, view, message_id):
        self._call("update", message_id, lambda: self.shown.update({place.ref: view}))

    def reply(self, place, view):
        self._call("reply", place.ref, lambda: self.replies.append(view))

    def find(self, channel, channel_id, since):
        self._call("find", channel, lambda: None)
        if not self.knows_history:
            return None
        return {
            message_id: Place(f"C{to}", str(n)) for n, (to, message_id, _) in enumerate(self.posts) if to == channel
        }

    def check(self, channels):
        return []


class Desk:
    """An alerter without threads: what arrives is `take`n, and `run` lets time pass a second at a time."""

    def __init__(self, path, clock: Clock, slack: FakeSlack, *rules: Rule, **default) -> None:
        self.config = Config(default=Plan("#general", **default), rules=rules, fallback="#ops")
        self.clock, self.slack = clock, slack
        self.database = Database(f"sqlite:///{path / 'incidents.db'}", clock)
        # No power cuts here: a commit need not wait for the disk.
        sa.event.listen(self.database.engine, "connect", lambda c, _: c.execute("PRAGMA synchronous=OFF"))
        self.database.open()
        self.intake = Intake(self.database, self.config.plan)
        self.mailbox = Mailbox(self.database, self.config.plan, editable=slack.editable)
        composer = Composer(self.config.plan, self.config.links)
        self.dispatcher = Dispatcher(self.mailbox, slack, composer, clock, fallback=self.config.fallback)
        self.successes: dict[str, float] = {}

    def fail(self, *entries, mark=None) -> None:
        self.intake.absorb([decode(batch(*entries, mark=mark))], self.clock.now)

    def run(self, seconds: float = 5, step: float = 1) -> None:
        for number in range(int(seconds / step)):
            # As the alerter does, and seldom enough for a quick test.
            if number * step % 10 == 0:
                self.mailbox.settle(self.clock.now, self.successes, 600.0)
                self.mailbox.assign(self.clock.now)
                if not self.slack.editable:
                    self.mailbox.collect_changes(self.clock.now, 600.0, self.digest)
            while self.dispatcher.step():
                pass
            self.clock.now += step

    def digest(self, incidents, more) -> str:
        return encoded(self.dispatcher.composer.view("changes", incidents, more, self.clock.now))

    def counts(self) -> dict[str, int]:
        return {told.task: told.count for view in self.slack.shown.values() for told in view.incidents}

    def kinds(self) -> list[str]:
        return [view.kind for _, _, view in self.slack.posts]


@pytest.fixture(name="clock")
def _clock():
    return Clock()


@pytest.fixture(name="slack")
def _slack():
    return FakeSlack()


@pytest.fixture(name="desk")
def _desk(tmp_path, clock, slack):
    return Desk(tmp_path, clock, slack)


def at(clock, fingerprint="f", count=1, **sample):
    return entry(fingerprint, count, clock.now, **sample)


def test_one_message_is_posted_at_once_and_updated_every_30_seconds(desk, clock, slack):
    for _ in range(90):
        desk.fail(at(clock))
        desk.run(1)
    posts = [call for call, _ in slack.calls if call == "post"]
    updates = [call for call, _ in slack.calls if call == "update"]
    assert (len(posts), len(updates)) == (1, 2)
    desk.run(40)
    assert desk.counts() == {"shop.charge": 90}


def test_a_batch_that_comes_twice_counts_once(desk, clock):
    for _ in range(3):
        desk.fail(at(clock, count=7), mark="same")
    desk.intake.absorb([decode(batch(at(clock), mark="x"))] * 2, clock.now)
    desk.run()
    assert desk.counts() == {"shop.charge": 8}
    assert desk.intake.results == {"notified": 1, "grouped": 7, "muted": 0, "duplicate": 15, "rejected": 0}


def test_threads_are_told_at_10_100_1000_and_skipped_levels_make_one_reply(desk, clock, slack):
    desk.fail(at(clock))
    desk.run()
    desk.fail(at(clock, count=1_500))
    desk.run(90)
    assert len(slack.replies) == 1
    desk.fail(at(clock, count=9_000))
    desk.run(90)
    assert len(slack.replies) == 2


def test_what_the_first_message_says_its_thread_need_not(desk, clock, slack):
    desk.fail(at(clock, count=500))
    desk.run(5)
    desk.fail(at(clock))
    desk.run(60)
    assert slack.replies == []


def test_a_channel_gets_at_most_one_call_a_second(desk, clock, slack):
    desk.fail(*[at(clock, f"f{n}", task=f"t{n}") for n in range(8)])
    for expected in range(1, 9):
        desk.run(1)
        assert len(slack.calls) == expected


def test_it_is_resolved_and_reopened_in_the_same_message(desk, clock, slack):
    desk.fail(at(clock))
    desk.run()
    desk.successes["shop.charge"] = clock.now + 1
    desk.run(660, step=10)
    assert slack.shown["0"].incidents[0].state == "resolved"
    clock.now += 3_600
    desk.fail(at(clock))
    desk.run(60)
    (told,) = slack.shown["0"].incidents
    assert (told.state, told.count, told.reopens, len(slack.posts)) == ("open", 2, 1, 1)
    assert len(slack.replies) == 1  # an update alone would call nobody
    clock.now += 3 * 86_400
    desk.fail(at(clock))
    desk.run(5)
    assert len(slack.posts) == 1  # still open: it never succeeded again


def test_without_a_success_it_stays_open_and_after_a_day_of_being_resolved_a_new_one_begins(desk, clock, slack):
    desk.fail(at(clock))
    desk.run()
    clock.now += 86_400
    desk.run(60)
    assert slack.shown["0"].incidents[0].state == "open"
    desk.successes["shop.charge"] = clock.now
    desk.run(60)
    assert slack.shown["0"].incidents[0].state == "resolved"
    clock.now += 90_000
    desk.fail(at(clock))
    desk.run()
    assert [view.incidents[0].count for _, _, view in slack.posts] == [1, 1]
    assert len(queries.incidents(desk.database)) == 2


def test_a_storm_of_kinds_is_ten_messages_and_a_roll_up(desk, clock, slack):
    desk.fail(*[at(clock, f"f{n}", task=f"t{n}") for n in range(60)])
    desk.run(30)
    assert desk.kinds() == ["incident"] * 10 + ["rollup"]
    desk.fail(*[at(clock, f"f{n}", task=f"t{n}") for n in range(80)])
    desk.run(90)
    assert desk.kinds() == ["incident"] * 10 + ["rollup"]
    assert len(desk.counts()) == 80
    assert sum(desk.counts().values()) == 140
    clock.now += 600
    desk.fail(at(clock, "later", task="later"))
    desk.run()
    assert desk.kinds()[-1] == "incident"


def test_a_storm_in_one_channel_does_not_roll_up_another(tmp_path, clock, slack):
    desk = Desk(tmp_path, clock, slack, Rule("pay", task=("pay.*",), channel="#pay"))
    desk.fail(*[at(clock, f"f{n}", task=f"t{n}") for n in range(60)], at(clock, "p", task="pay.x"))
    desk.run(30)
    assert [view.kind for channel, _, view in slack.posts if channel == "#pay"] == ["incident"]


def test_quiet_hours_hold_and_then_tell_in_one_digest(tmp_path, clock, slack):
    minute = int(START // 60) % 1440
    desk = Desk(tmp_path, clock, slack, quiet_hours=QuietHours(minute, minute + 60, ZoneInfo("UTC")))
    desk.fail(*[at(clock, f"f{n}", task=f"t{n}") for n in range(3)])
    desk.successes["t1"] = clock.now + 1
    desk.run(700, step=10)
    assert slack.calls == []
    clock.now += 3_600
    desk.run(40)
    assert desk.kinds() == ["digest"]
    assert {told.task: told.state for told in slack.posts[0][2].incidents} == {
        "t0": "open", "t1": "resolved", "t2": "open"
    }  # fmt: skip


def test_a_threshold_keeps_silent_until_it_is_reached(tmp_path, clock, slack):
    desk = Desk(tmp_path, clock, slack, threshold=Threshold(5, 600.0))
    for _ in range(4):
        desk.fail(at(clock))
        desk.run(1)
    clock.now += 1_200
    desk.fail(at(clock))
    desk.run(5)
    assert slack.calls == []
    desk.fail(at(clock, count=4))
    desk.run(5)
    assert desk.counts() == {"shop.charge": 9}


def test_a_muted_route_says_nothing_and_counts(tmp_path, clock, slack):
    desk = Desk(tmp_path, clock, slack, mute=True)
    desk.fail(at(clock, count=5))
    desk.run(5)
    assert slack.calls == []
    assert desk.intake.results["muted"] == 5
    assert queries.incidents(desk.database)[0].count == 5


def test_muted_by_hand_it_waits_and_then_speaks(desk, clock, slack):
    desk.fail(at(clock))
    (found,) = queries.incidents(desk.database)
    queries.mute(desk.database, found.id, clock.now + 300)
    desk.run(120)
    assert slack.calls == []
    desk.run(300, step=10)
    assert desk.counts() == {"shop.charge": 1}


def test_resolved_by_hand_shows_and_the_same_failure_reopens(desk, clock, slack):
    desk.fail(at(clock))
    desk.run()
    (found,) = queries.incidents(desk.database, states=["open"])
    queries.resolve_by_hand(desk.database, found.id[:6], clock.now)
    desk.run(40)
    assert slack.shown["0"].incidents[0].state == "resolved"
    assert queries.states(desk.database, clock.now) == {"open": 0, "resolved": 1, "muted": 0, "waiting": 0}
    desk.fail(at(clock))
    desk.run(40)
    assert slack.shown["0"].incidents[0].state == "open"
    with pytest.raises(queries.NoSuchIncidentError, match="no incident has the id 'zz'"):
        queries.incident(desk.database, "zz")


def test_retries_count_only_where_they_are_wanted(tmp_path, clock, slack):
    desk = Desk(tmp_path, clock, slack, Rule("r", task=("loud",), notify_retries=True))
    desk.fail(at(clock, kind="retry"), at(clock, "l", task="loud", kind="retry"), at(clock, "o", task="other"))
    desk.run(10)
    assert desk.counts() == {"loud": 1, "other": 1}


def test_the_tasks_own_channel_counts(desk, clock, slack):
    desk.fail(at(clock, settings={"channel": "#mine"}))
    desk.run()
    assert [channel for channel, _, _ in slack.posts] == ["#mine"]


UNCERTAIN = UncertainError("timeout")


@pytest.mark.parametrize("arrived", [True, False])
def test_after_an_uncertain_post_history_decides(desk, clock, slack, arrived):
    slack.trouble = [(arrived, UNCERTAIN)]
    desk.fail(at(clock))
    desk.run(30)
    assert len(slack.posts) == 1
    assert [name for name, _ in slack.calls] == (["post", "find"] if arrived else ["post", "find", "post"])
    desk.fail(at(clock))
    desk.run(40)
    assert desk.counts() == {"shop.charge": 2}


def test_one_look_into_history_settles_all_of_a_channel(desk, clock, slack):
    slack.trouble = [(True, UNCERTAIN)] * 3
    desk.fail(*[at(clock, f"f{n}", task=f"t{n}") for n in range(3)])
    desk.run(60)
    assert len(slack.posts) == 3
    assert len(desk.counts()) == 3
    assert [name for name, _ in slack.calls].count("find") <= 2


def test_where_history_cannot_be_read_it_is_posted_again(desk, clock, slack, caplog):
    slack.knows_history = False
    slack.trouble = [(True, UNCERTAIN)]
    desk.fail(at(clock))
    desk.run(60)
    assert len(slack.posts) == 2
    assert "may be posted twice" in caplog.text


@pytest.mark.parametrize("arrived", [True, False])
def test_an_alerter_that_died_while_posting_is_succeeded_by_another(tmp_path, clock, slack, arrived):
    desk = Desk(tmp_path, clock, slack)
    desk.fail(at(clock))
    desk.mailbox.assign(clock.now)
    work = desk.mailbox.claim(clock.now)
    if arrived:
        slack.post("#general", View("incident"), work.message.id)
    other = Desk(tmp_path, clock, slack)
    other.run(10)
    assert len(slack.posts) == int(arrived)  # its lease still holds
    other.run(40)
    assert len(slack.posts) == 1
    desk.mailbox.posted(work, "C", "99", clock.now)  # it wakes up after all, and has nothing more to say
    _, message = queries.incident(desk.database, "")
    assert message["ref"] == "0"


def test_a_process_that_slept_over_its_lease_posts_nothing(desk, clock, slack):
    desk.fail(at(clock))
    desk.mailbox.assign(clock.now)
    claim = desk.mailbox.claim

    def slow(*args, **others):
        work = claim(*args, **others)
        clock.now += 20
        return work

    desk.mailbox.claim = slow
    desk.dispatcher.step()
    assert slack.calls == []


def test_a_rate_limit_pauses_the_workspace_for_as_long_as_slack_says(desk, clock, slack):
    slack.trouble = [(False, RateLimitedError(20))]
    desk.fail(at(clock), at(clock, "g", task="t", settings={"channel": "#mine"}))
    desk.run(20)
    assert len(slack.calls) == 1
    desk.run(5)
    assert len(slack.posts) == 2


def test_a_limit_on_history_does_not_stop_posting(desk, clock, slack):
    slack.trouble = [(True, UNCERTAIN)]
    desk.fail(at(clock))
    desk.run(8)
    slack.trouble = [(False, RateLimitedError(60))]
    desk.run(10)
    desk.fail(at(clock, "g", task="t"))
    desk.run(10)
    assert [name for name, _ in slack.calls] == ["post", "find", "post"]
    desk.run(60)
    assert len(slack.posts) == 2


def test_an_outage_is_backed_off_from_as_a_whole_and_logged_once(desk, clock, slack, caplog):
    slack.trouble = [(False, UnreachableError("unreachable"))] * 8
    desk.fail(*[at(clock, f"f{n}", task=f"t{n}") for n in range(9)])
    desk.run(400, step=10)
    assert len(slack.posts) == 9
    assert sum("incidents wait" in record.message for record in caplog.records) == 1
    assert sum("Slack is back" in record.message for record in caplog.records) == 1


def test_a_broken_channel_is_complained_of_elsewhere_and_its_incidents_wait(desk, clock, slack, caplog):
    broken = MisconfiguredError("not_in_channel", "invite the app", one_channel=True)
    slack.trouble = [(False, broken)]
    desk.fail(at(clock))
    desk.fail(at(clock, "g", task="t", settings={"channel": "#mine"}))
    desk.run(10)
    assert [(channel, view.kind) for channel, _, view in slack.posts] == [("#mine", "incident"), ("#ops", "notice")]
    assert "#general: not_in_channel: invite the app" in slack.posts[1][2].text
    assert queries.states(desk.database, clock.now)["waiting"] == 1
    assert "ERROR" in caplog.text
    desk.run(80)
    assert desk.counts()["shop.charge"] == 1
    assert desk.kinds().count("notice") == 1


def test_a_message_that_slack_refuses_holds_up_no_other(desk, clock, slack, monkeypatch, caplog):
    """It would be the oldest each time its channel is tried again, and silence that for good."""
    post = slack.post

    def picky(channel, view, message_id):
        if any(told.task == "shop.odd" for told in view.incidents):
            raise RefusedError("msg_too_long")
        return post(channel, view, message_id)

    desk.fail(at(clock, "g", task="shop.odd"))
    with monkeypatch.context() as patch:
        patch.setattr(slack, "post", picky)
        desk.run(3)
        desk.fail(at(clock))
        desk.run(300, step=5)
        assert desk.counts() == {"shop.charge": 1}
        assert sum("msg_too_long" in record.message for record in caplog.records) == 1
    desk.run(600, step=10)
    assert desk.counts() == {"shop.charge": 1, "shop.odd": 1}


def test_a_wrong_token_stops_everything_loudly_and_loses_nothing(desk, clock, slack, caplog):
    slack.trouble = [(False, MisconfiguredError("invalid_auth", "take the right one", one_channel=False))] * 3
    desk.fail(at(clock), at(clock, "g", task="t"))
    desk.run(150)
    assert [name for name, _ in slack.calls] == ["post"] * 3
    assert sum(record.levelname == "ERROR" for record in caplog.records) == 1
    desk.run(120)
    assert len(slack.posts) == 2


def test_a_message_that_somebody_deleted_is_posted_afresh_while_it_matters(desk, clock, slack):
    desk.fail(at(clock))
    desk.run(5)
    slack.trouble = [(False, GoneError("message_not_found"))]
    desk.fail(at(clock))
    desk.run(60)
    assert len(slack.posts) == 2
    desk.successes["shop.charge"] = clock.now
    slack.trouble = [(False, GoneError("message_not_found"))]
    desk.run(700, step=10)
    assert len(slack.posts) == 2


def test_a_reply_whose_fate_is_unknown_is_not_repeated(desk, clock, slack):
    desk.fail(at(clock))
    desk.run(5)
    desk.fail(at(clock, count=20))
    desk.run(27)
    slack.trouble = [(True, UNCERTAIN)]
    desk.run(60)
    assert [name for name, _ in slack.calls].count("reply") == 1


class FakeWebhook(FakeSlack):
    editable = False

    def __init__(self) -> None:
        super().__init__()
        self.knows_history = False


def test_a_webhook_gets_digests_of_what_changed(tmp_path, clock):
    hook = FakeWebhook()
    desk = Desk(tmp_path, clock, hook)
    desk.fail(at(clock), at(clock, "g", task="t"))
    desk.run(5)
    assert desk.kinds() == ["incident"] * 2
    for _ in range(100):
        desk.fail(at(clock), at(clock, "g", task="t"))
        desk.run(10, step=10)
    assert desk.kinds() == ["incident"] * 2 + ["changes"]
    desk.run(1_300, step=10)
    assert desk.kinds() == ["incident"] * 2 + ["changes"] * 2
    assert [told.count for told in hook.posts[-1][2].incidents] == [101, 101]


def test_a_storm_with_a_webhook_is_a_roll_up_every_guard_window(tmp_path, clock):
    hook = FakeWebhook()
    desk = Desk(tmp_path, clock, hook)
    for n in range(40):
        desk.fail(at(clock, f"f{n}", task=f"t{n}"))
        desk.run(10, step=10)
    desk.run(400, step=10)
    assert desk.kinds().count("incident") <= 20
    assert desk.kinds().count("rollup") <= 2
    assert len(desk.counts()) == 40


def test_old_incidents_and_batches_are_forgotten(desk, clock):
    desk.fail(at(clock))
    desk.run()
    desk.successes["shop.charge"] = clock.now
    desk.run(700, step=10)
    queries.prune(desk.database, clock.now + 86_400, 2 * 86_400)
    assert len(queries.incidents(desk.database)) == 1
    queries.prune(desk.database, clock.now + 10 * 86_400, 2 * 86_400)
    assert queries.incidents(desk.database) == []
    with desk.database.read() as connection:
        for table in (store.batches, store.messages):
            assert connection.execute(sa.select(sa.func.count()).select_from(table)).scalar() == 0


def test_a_hundred_thousand_failures_of_many_kinds_are_a_few_writes(desk, clock, slack):
    kinds = [at(clock, f"f{n}", 500, task=f"t{n}") for n in range(100)]
    desk.intake.absorb([decode(batch(*kinds)) for _ in range(2)], clock.now)
    desk.run(40)
    assert sum(desk.counts().values()) == 100_000
    assert len(slack.calls) <= 12


def test_what_the_database_refuses_is_returned_and_the_rest_is_counted(desk, clock, monkeypatch):
    good, bad = decode(batch(at(clock))), decode(batch(at(clock, "bad"), mark="bad"))
    absorb = Intake.absorb

    def refuse(self, batches: list[Batch], now: float) -> None:
        if any(b.id == "bad" for b in batches):
            raise sa.exc.DataError("x", {}, Exception("y"))
        absorb(self, batches, now)

    monkeypatch.setattr(Intake, "absorb", refuse)
    assert desk.intake.take([good, bad], clock.now) == [bad]
    desk.run()
    assert desk.counts() == {"shop.charge": 1}


def test_the_file_is_private_even_where_the_umask_is_not(tmp_path, clock):
    before = os.umask(0)
    try:
        (tmp_path / "incidents.db").touch(0o666)
        Desk(tmp_path, clock, FakeSlack()).fail(at(clock))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("incidents.db*")}
    finally:
        os.umask(before)
    assert set(modes.values()) == {0o600}


def test_a_file_is_for_one_machine(tmp_path, clock):
    url = f"sqlite:///{tmp_path / 'incidents.db'}"
    first = Database(url, clock, host="one")
    first.open()
    Database(url, clock, host="one").open()
    with pytest.raises(StoreError, match=r"alerter on another machine.*PostgreSQL"):
        Database(url, clock, host="two").open()
    clock.now += 61
    Database(url, clock, host="two").open()
    with pytest.raises(StoreError, match="another machine"):
        first.register()


def test_a_newer_schema_is_refused(desk, clock):
    with desk.database.write() as connection:
        connection.execute(store.meta.update().values(value="99"))
    for use in (desk.database.open, desk.database.inspect):
        with pytest.raises(StoreError, match=r"version 99.*knows 1"):
            use()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "no database URL"), ("sqlite://", "must be sqlite:////path"),
        ("mysql://u:pw@h/x", "must be sqlite"),
        ("sqlite:////proc/nowhere/x.db", "cannot be opened"),
        ("postgresql://u:sesame@127.0.0.1:1/x", "cannot be opened"),
    ],
)  # fmt: skip
def test_a_store_that_cannot_be_used_is_named_without_its_password(url, message, clock):
    with pytest.raises(StoreError, match=message) as caught:
        Database(url, clock).open()
    assert "sesame" not in str(caught.value)


def test_inspecting_makes_no_store(tmp_path, clock):
    with pytest.raises(StoreError, match="there is none yet"):
        Database(f"sqlite:///{tmp_path / 'x.db'}", clock).inspect()
    assert list(tmp_path.iterdir()) == []


def test_config_plans_by_what_the_sample_says():
    config = replace(Config(default=Plan("#g")), rules=(Rule("q", queue=("q",), channel="#q"),))
    sample = decode(batch(entry(queue="q"))).entries[0].sample
    assert config.plan(sample).channel == "#q"
