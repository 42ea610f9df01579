"""The local Slack: what its page shows, and that it is as strict as the real one where tests rely on it."""

from __future__ import annotations

import httpx
import pytest
from celeryscope.alerts.batches import Sample
from celeryscope.alerts.slack import SlackWeb
from celeryscope.alerts.views import Link, Told, View
from celeryscope.demo.inbox import TOKEN, ApiError, Channel, Inbox, check_limits
from pydantic import SecretStr

AT = 1_790_000_000.0


def view(**sample) -> View:
    """One incident, with markup where users' text goes."""
    sample_ = Sample(message="card <b>declined</b> & gone", traceback="Traceback\n  line", **sample)
    told = Told("i1", "shop.charge", "shop.errors.CardError", "open", "critical", 1_234, AT, AT + 60, sample_, "prod")
    told.links = [Link("Task in Flower", "https://flower.example/task/1?a=1&b=2")]
    return View("incident", [told], mention="<!here> <@U0123456>")


@pytest.fixture(name="inbox", scope="module")
def _inbox():
    with Inbox(["general", Channel("C0PAY000", "payments")]).serving() as inbox:
        slack = SlackWeb(SecretStr(TOKEN), base_url=inbox.api_url, noted=lambda _status: None)
        place = slack.post("#general", view(), "m1")
        slack.update(place, view(worker="celery@node1"), "m1")
        slack.reply(place, view())
        slack.post("C0PAY000", View("notice", text="<script>alert(1)</script> in *payments*"), "m2")
        yield inbox


def page(inbox, channel: str = "") -> str:
    answer = httpx.get(inbox.url, params={"channel": channel} if channel else {}, trust_env=False)
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    return answer.text


def test_the_page_shows_a_message_as_slack_would(inbox):
    shown = page(inbox, inbox.channels[0].id)
    assert "<h2>🔴 shop.charge: CardError</h2>" in shown
    assert "<strong>Failures</strong><br>1,234" in shown
    assert "<pre>card &lt;b&gt;declined&lt;/b&gt; &amp; gone</pre>" in shown
    assert 'href="https://flower.example/task/1?a=1&amp;b=2"' in shown
    assert "--bar:#d92d20" in shown
    assert '<span class="ping">@here</span>' in shown
    assert "(edited)" in shown
    assert "1 reply" in shown


def test_the_page_opens_at_the_latest_message_and_lists_all_channels(inbox):
    shown = page(inbox)
    assert "<header># payments</header>" in shown
    assert "# general" in shown


def test_what_is_posted_cannot_script_the_page(inbox):
    shown = page(inbox)
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    assert "<h1>" not in page(inbox, "<h1>x</h1>").replace("<h1>Slack inbox", "")


def test_the_page_of_an_empty_workspace():
    with Inbox().serving() as inbox:
        assert "No messages yet." in page(inbox)


def call(inbox, method, token=TOKEN, **arguments):
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.post(f"{inbox.api_url}{method}", json=arguments, headers=headers, trust_env=False).json()


@pytest.mark.parametrize(
    ("method", "arguments", "error"),
    [
        ("chat.postMessage", {"channel": "nowhere", "text": "x"}, "channel_not_found"),
        ("chat.postMessage", {"channel": "general"}, "no_text"),
        ("chat.postMessage", {"channel": "general", "blocks": [{"type": "fancy"}]}, "invalid_blocks"),
        ("chat.update", {"channel": "general", "ts": "1", "text": "x"}, "channel_not_found"),  # a name, not an id
        ("chat.update", {"channel": "C0PAY000", "ts": "1", "text": "x"}, "message_not_found"),
        ("no.such", {}, "unknown_method"),
    ],
)
def test_it_refuses_what_slack_refuses(inbox, method, arguments, error):
    assert call(inbox, method, **arguments) == {"ok": False, "error": error}


def test_it_wants_the_token(inbox):
    assert call(inbox, "auth.test", token="other")["error"] == "invalid_auth"
    assert call(inbox, "auth.test")["ok"]
    assert call(inbox, "conversations.info", channel="payments")["channel"]["is_member"]


TEXT = {"type": "mrkdwn", "text": "x"}
PLAIN = {"type": "plain_text", "text": "x"}
BUTTON = {"type": "button", "text": PLAIN, "url": "https://x", "action_id": "a"}


@pytest.mark.parametrize(
    "block",
    [
        {"type": "header", "text": {**PLAIN, "text": "x" * 151}},
        {"type": "header", "text": TEXT},
        {"type": "section"},
        {"type": "section", "text": {**TEXT, "text": ""}},
        {"type": "section", "text": {**TEXT, "text": "x" * 3_001}},
        {"type": "section", "fields": [TEXT] * 11},
        {"type": "section", "fields": [{**TEXT, "text": "x" * 2_001}]},
        {"type": "context", "elements": []},
        {"type": "actions", "elements": [{**BUTTON, "url": "x" * 3_001}]},
        {"type": "actions", "elements": [BUTTON, BUTTON]},
        {"type": "actions", "elements": [{**BUTTON, "text": {**PLAIN, "text": "x" * 76}}]},
    ],
)
def test_blocks_beyond_slacks_limits_are_refused_wherever_they_stand(block):
    for body in ({"blocks": [block]}, {"attachments": [{"blocks": [block]}]}):
        with pytest.raises(ApiError, match="invalid_blocks"):
            check_limits({"text": "x", **body})


def test_more_than_fifty_blocks_are_refused():
    with pytest.raises(ApiError, match="invalid_blocks"):
        check_limits({"blocks": [{"type": "section", "text": TEXT}] * 51})


def test_too_many_calls_a_second_are_told_when_to_come_back():
    with Inbox().serving() as inbox:
        inbox.per_second = 0.01
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answers = [httpx.post(f"{inbox.api_url}auth.test", json={}, headers=headers, trust_env=False) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert 90 <= float(answers[1].headers["retry-after"]) <= 100
