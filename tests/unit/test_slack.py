"""Slack messages: what they say, what they can never do, and how each of Slack's answers is understood."""

from __future__ import annotations

import json
import logging

import pytest
from celeryscope.alerts import slack_blocks
from celeryscope.alerts.batches import Sample
from celeryscope.alerts.delivery import (
    GoneError,
    MisconfiguredError,
    Place,
    RateLimitedError,
    RefusedError,
    UncertainError,
    UnreachableError,
)
from celeryscope.alerts.incidents import Incident
from celeryscope.alerts.policy import Plan
from celeryscope.alerts.slack import SlackWeb, SlackWebhook
from celeryscope.alerts.views import Composer, Link, Links, Told, View, decoded, encoded
from celeryscope.demo.inbox import DOWN, LOST_ANSWER, TOKEN, ApiError, Channel, Fault, Inbox, check_limits
from helpers import ROOT, free_port
from pydantic import SecretStr
from slack_sdk.models.blocks import Block

GOLDEN = ROOT / "tests" / "golden" / "slack"
AT = 1_790_000_000.0
LINKS = Links("https://flower.example/", "https://grafana.example", "https://wiki.example/run/")


def incident(**changes) -> Incident:
    sample = Sample(
        task="shop.charge", exception="shop.errors.CardError", message="card 4<2 & declined",
        uuid="7f3e0000-0000-4000-8000-000000000001", queue="payments", worker="celery@node1", environment="prod",
        release="1.4.2", frame="shop.payments:charge", retries=3, max_retries=3, gave_up=True,
        traceback='Traceback (most recent call last):\n  File "shop/payments.py", line 3, in charge\n    pay()\n'
        "shop.errors.CardError: card 4<2 & declined\n",
        kwargs={"order_id": "17"},
    )  # fmt: skip
    values = {
        "id": "0123456789ab", "key": "f prod", "fingerprint": "f", "environment": "prod", "task": "shop.charge",
        "exception": "shop.errors.CardError", "sample": sample, "count": 1_234, "first": AT, "last": AT + 90,
        "opened_at": AT,
    }  # fmt: skip
    return Incident(**{**values, **changes})


PLAN = Plan(channel="#pay", severity="critical", mention="<!here> <@U0123456>", runbook="card-errors.md")


def view(*incidents, kind="incident", plan=PLAN, more=0) -> View:
    return Composer(lambda _sample: plan, LINKS).view(kind, list(incidents), more, AT + 120)


def several(count: int) -> list[Incident]:
    return [incident(id=f"{n:012}", task=f"shop.task{n}", count=n + 1) for n in range(count)]


MESSAGES = {
    "new": view(incident()),
    "resolved": view(incident(state="resolved", resolved_at=AT + 800, reopens=2)),
    "muted": view(incident(muted_until=AT + 3_600)),
    "bare": View("incident", [Told("i", "__other__", "__other__", "open", "info", 1, AT, AT, Sample())]),
    "lost": view(incident(sample=Sample(kind="lost", task="a.b", exception="WorkerLostError", requeued=True))),
    "rollup": view(*several(45), kind="rollup", more=3),
    "digest": view(incident(), incident(id="b", state="resolved", resolved_at=AT), kind="digest"),
    "changes": view(incident(), kind="changes"),
    "notice": View("notice", text="celeryscope cannot post to #pay: not_in_channel"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_look_as_they_did(name, request):
    """`pytest --update-golden` writes them anew: look at the difference."""
    body = json.dumps(slack_blocks.message(MESSAGES[name]), indent=1, ensure_ascii=False) + "\n"
    path = GOLDEN / f"{name}.json"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(body)
    assert body == path.read_text()


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_are_blocks_to_slacks_own_models(name):
    body = slack_blocks.message(MESSAGES[name])
    blocks = body["blocks"] + [b for a in body.get("attachments", ()) for b in a["blocks"]]
    parsed = Block.parse_all(blocks)
    for block in parsed:
        block.validate_json()
    assert [block.to_dict() for block in parsed] == blocks


HOSTILE = [
    "<!channel> <!here> <@U0123456> @channel <https://evil.example|click> & *bold* `x` ``` end",
    "&" * 5_000,
    "<" * 5_000,
    "`" * 5_000,
    "x" * 100_000,
    "\x00\x1b[31m\u202e" * 500,
    "🔥" * 5_000,
    "\n" * 5_000,
    " ",
    "",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_in_users_text_pings_links_or_breaks_slacks_limits(text):
    sample = Sample(
        task=text, exception=text, message=text, uuid=text, queue=text, worker=text, release=text, frame=text,
        traceback=text, kwargs={text[:200]: text}, environment=text,
    )  # fmt: skip
    hostile = incident(task=text[:255], exception=text[:255], environment=text[:255], sample=sample)
    for shown in (view(hostile), view(*[hostile] * 45, kind="rollup"), view(hostile, kind="digest")):
        for body in (slack_blocks.message(shown), slack_blocks.in_words(shown), slack_blocks.reply(shown)):
            check_limits(body)
            said = json.dumps(body, ensure_ascii=False).replace("<!here>", "", 1).replace("<@U0123456>", "", 1)
            for markup in ("<!channel", "<!here", "<@U0", "<https://evil", "</"):
                assert markup not in said
    texts = [b["text"] for b in slack_blocks.message(view(hostile))["attachments"][0]["blocks"] if "text" in b]
    assert all(t["verbatim"] for t in texts)
    assert all(t["text"].count("```") % 2 == 0 for t in texts)


def test_secrets_are_taken_out_once_more():
    sample = Sample(task="a", exception="E", message="password=hunter2 postgres://u:pw123@db", traceback="token: 'abc'")
    said = json.dumps(slack_blocks.message(view(incident(sample=sample))))
    assert not any(secret in said for secret in ("hunter2", "pw123", "abc'"))


@pytest.mark.parametrize(
    ("text", "markup"),
    [
        ("@here", "<!here>"), ("channel", "<!channel>"), ("U0123456", "<@U0123456>"),
        ("S0123456", "<!subteam^S0123456>"),
        ("<!subteam^S0123456>", "<!subteam^S0123456>"), ("joe", None), ("<!channel> x", None), ("<https://x|y>", None),
    ],
)  # fmt: skip
def test_whom_a_mention_calls(text, markup):
    assert slack_blocks.mention_of(text) == markup


def test_links_lead_to_the_task_its_list_its_board_and_its_runbook():
    assert view(incident()).incidents[0].links == [
        Link("Task in Flower", "https://flower.example/task/7f3e0000-0000-4000-8000-000000000001"),
        Link("All failures in Flower", "https://flower.example/tasks?name=shop.charge&state=FAILURE"),
        Link(
            "Grafana",
            "https://grafana.example/d/celery-task?var-task=shop.charge&var-queue=payments"
            "&from=1789999100000&to=1790000990000",
        ),
        Link("Runbook", "https://wiki.example/run/card-errors.md"),
    ]


def test_no_address_no_link():
    assert Links().of(incident(), "card.md", AT) == []
    assert Links().of(incident(), "javascript:alert(1)//://", AT) == []


def test_views_survive_the_store():
    assert decoded(encoded(MESSAGES["rollup"])) == MESSAGES["rollup"]


def test_a_reply_says_how_many_and_whether_again():
    text = slack_blocks.reply(view(incident(reopens=2)))["text"]
    assert "Failing again, for the 2nd time. 1,234 failures since" in text


@pytest.fixture(name="inbox", scope="module")
def _inbox():
    with Inbox(
        ["pay", Channel("C0ELSE00", "else", member=False), Channel("C0OLD000", "old", archived=True)]
    ).serving() as it:
        yield it


@pytest.fixture(name="slack")
def _slack(inbox):
    inbox.script = lambda _method: None
    inbox.token, inbox.messages[:] = TOKEN, []
    return SlackWeb(SecretStr(TOKEN), base_url=inbox.api_url, noted=lambda _status: None, timeout=2)


def test_post_update_reply_and_find(inbox, slack):
    place = slack.post("#pay", MESSAGES["new"], "m1")
    assert place.channel_id == inbox.channels[0].id
    slack.update(place, MESSAGES["resolved"], "m1")
    slack.reply(place, MESSAGES["new"])
    (message,) = inbox.top("pay")
    assert message.text.startswith("[resolved] shop.charge")
    assert len(inbox.replies(message)) == 1
    assert slack.find("#pay", "", AT) == {"m1": place}
    assert slack.find("#pay", place.channel_id, AT) == {"m1": place}


def test_history_is_read_page_by_page(inbox, slack):
    places = {f"m{n}": slack.post("pay", MESSAGES["notice"], f"m{n}") for n in range(120)}
    assert slack.find("pay", "", AT) == places


def test_a_reading_that_was_limited_is_taken_up_where_it_ended(inbox, slack):
    for n in range(120):
        slack.post("pay", MESSAGES["notice"], f"m{n}")
    answers = iter([None, None, Fault(status=429, retry_after=7, error="ratelimited")])
    inbox.script = lambda method: next(answers, None)
    with pytest.raises(RateLimitedError) as caught:
        slack.find("pay", "", AT)
    assert caught.value.seconds == 7
    before = inbox.accepted["conversations.history"]
    assert len(slack.find("pay", "", AT)) == 120
    assert inbox.accepted["conversations.history"] == before + 1


@pytest.mark.parametrize(
    ("fault", "kind", "status"),
    [
        (DOWN, UncertainError, "http_503"),
        (LOST_ANSWER, UncertainError, "connection"),
        (Fault(reset=True), UncertainError, "connection"),
        (Fault(seconds=3), UncertainError, "timeout"),
        (Fault(status=429, retry_after=3), RateLimitedError, "rate_limited"),
        (Fault(error="ratelimited"), RateLimitedError, "rate_limited"),
        (Fault(error="internal_error"), UncertainError, "internal_error"),
        (Fault(error="invalid_auth"), MisconfiguredError, "invalid_auth"),
        (Fault(error="missing_scope"), MisconfiguredError, "missing_scope"),
        (Fault(error="not_in_channel"), MisconfiguredError, "not_in_channel"),
        (Fault(error="something_new"), MisconfiguredError, "something_new"),
        (Fault(error="message_not_found"), GoneError, "message_not_found"),
        (Fault(error="edit_window_closed"), GoneError, "edit_window_closed"),
    ],
)
def test_what_slacks_answers_mean(inbox, slack, fault, kind, status):
    inbox.script = lambda method: fault
    with pytest.raises(kind) as caught:
        slack.post("#pay", MESSAGES["new"], "m1")
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("channel", "status"), [("#nowhere", "channel_not_found"), ("#else", "not_in_channel"), ("#old", "is_archived")]
)
def test_a_channel_that_cannot_be_posted_to_comes_with_a_remedy(slack, channel, status):
    with pytest.raises(MisconfiguredError, match=status) as caught:
        slack.post(channel, MESSAGES["new"], "m1")
    assert caught.value.one_channel
    assert len(caught.value.remedy) > 10


def test_nobody_listening_is_known_not_to_have_heard():
    slack = SlackWeb(SecretStr(TOKEN), base_url=f"http://127.0.0.1:{free_port()}/", noted=lambda _status: None)
    with pytest.raises(UnreachableError):
        slack.post("#pay", MESSAGES["new"], "m1")


def test_blocks_that_slack_refuses_are_said_in_words(inbox, slack):
    refusals = iter([Fault(error="invalid_blocks")])
    inbox.script = lambda method: next(refusals, None)
    slack.post("#pay", MESSAGES["new"], "m1")
    assert "shop.charge" in inbox.top()[0].text
    assert inbox.top()[0].body["blocks"] == []


def test_what_is_refused_in_words_too_is_no_fault_of_the_channel(inbox, slack):
    inbox.script = lambda method: Fault(error="msg_too_long")
    with pytest.raises(RefusedError, match="msg_too_long") as caught:
        slack.post("#pay", MESSAGES["new"], "m1")
    assert caught.value.status == "refused"


def test_without_the_scope_history_is_unknown(inbox, slack):
    inbox.scopes = "chat:write"
    try:
        assert slack.find("#pay", "C0123456", AT) is None
        assert slack.find("#pay", "", AT) is None
    finally:
        inbox.scopes = "chat:write,channels:history,channels:read"


def test_check_names_each_problem(inbox, slack):
    assert slack.check({"#pay"}) == []
    found = slack.check({"#pay", "#nowhere", "else", "C0OLD000"})
    assert [line.split(": ")[1] for line in found] == ["channel_not_found", "is_archived", "not_in_channel"]
    inbox.token = "other"
    assert slack.check({"#pay"})[0].startswith("Slack token: invalid_auth: the token is wrong")


def test_a_webhook_posts_and_knows_nothing_more(inbox):
    hook = SlackWebhook(SecretStr(inbox.hook_url), noted=lambda _status: None, timeout=2)
    inbox.script, inbox.messages[:] = lambda _method: None, []
    assert hook.post("anything", MESSAGES["new"], "m1") == Place("", "")
    assert "shop.charge" in inbox.top()[0].text
    assert hook.find("x", "", AT) is None
    assert not hook.editable
    for fault, kind in [(DOWN, UncertainError), (Fault(status=429, retry_after=2), RateLimitedError)]:
        inbox.script = lambda method, fault=fault: fault
        with pytest.raises(kind):
            hook.post("anything", MESSAGES["new"], "m1")
    gone = SlackWebhook(SecretStr(inbox.url + "/api/hook"), noted=lambda _status: None)
    inbox.script = lambda method: Fault(status=404, error="no_service")
    with pytest.raises(MisconfiguredError):
        gone.post("x", MESSAGES["new"], "m1")


def test_token_and_webhook_are_in_no_log_repr_or_error(inbox, caplog):
    """With every logger at DEBUG: slack_sdk would write the webhook's URL, and its errors carry the request."""
    caplog.set_level(logging.DEBUG)
    secret = "xoxb-do-not-tell"
    web = SlackWeb(SecretStr(secret), base_url=inbox.api_url, noted=lambda _status: None, timeout=1)
    hook = SlackWebhook(SecretStr(inbox.url + "/services/do-not-tell"), noted=lambda _status: None, timeout=1)
    said = [repr(web), repr(hook), str(web), str(hook)]
    for fault in (None, DOWN, LOST_ANSWER, Fault(error="invalid_auth"), Fault(error="message_not_found")):
        inbox.script = lambda method, fault=fault: fault
        for client in (web, hook):
            try:
                client.post("#pay", MESSAGES["new"], "m1")
            except Exception as error:
                said.append(repr(error) + str(error) + repr(error.__context__) + repr(error.__cause__))
    inbox.script = lambda _method: None
    assert "do-not-tell" not in "".join(said) + caplog.text


def test_the_longest_message_of_all_is_within_slacks_limits(inbox, slack):
    """As the inbox checks them, which does refuse what is beyond."""
    long = incident(sample=Sample(task="a", exception="E", message="<&>" * 9_000, traceback="&\n" * 9_000))
    slack.post("#pay", view(long), "m1")
    with pytest.raises(ApiError, match="invalid_blocks"):
        check_limits({"text": "x", "blocks": [{"type": "header", "text": {"type": "plain_text", "text": "x" * 151}}]})
