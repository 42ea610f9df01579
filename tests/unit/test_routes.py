"""Routes and settings as people write them: what is taken, and how each mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from celeryscope.alerts.policy import QuietHours, Threshold
from celeryscope.alerts.routes import Route, contradictions, duration, rules
from celeryscope.alerts.settings import AlerterSettings
from celeryscope.monitor.configuration import SettingsError, load
from pydantic import ValidationError

GIVEN = {
    "CELERYSCOPE_BROKER_URL": "redis://:hunter2secret@broker/0",
    "CELERYSCOPE_SLACK_TOKEN": "xoxb-very-secret",
    "CELERYSCOPE_SLACK_CHANNEL": "#general",
}


def read(tmp_path: Path, toml: str = "", **environ: str) -> AlerterSettings:
    (tmp_path / "celeryscope.toml").write_text(toml)
    kept = {name: value for name, value in {**GIVEN, **environ}.items() if value}
    return load(AlerterSettings, options={}, environ=kept, config=tmp_path / "celeryscope.toml")


def problems(tmp_path: Path, toml: str = "", **environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, toml, **environ)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10min", 600), ("10 minutes", 600), ("2h", 7_200), ("1 d", 86_400), (45, 45), ("7", 7)],
)
def test_lengths_of_time(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5s", "0", "5 fortnights", True])
def test_what_is_no_length_of_time(text):
    with pytest.raises(ValueError, match="length of time"):
        duration(text)


def test_a_route_with_everything():
    route = Route(
        name="payments", task="shop.*", queue=["a", "b"], exception="CardError", channel="#pay",
        mention=["@here", "U0123456"],
        severity="critical", mute=False, threshold="5 in 10min", quiet_hours="22:00-07:00 Europe/Paris",
        notify_retries=True, runbook="https://wiki/pay",
    )  # fmt: skip
    (rule,) = rules([route])
    assert rule.task == ("shop.*",)
    assert rule.threshold == Threshold(5, 600.0)
    assert isinstance(rule.quiet_hours, QuietHours)
    assert str(rule.quiet_hours) == "22:00-07:00 Europe/Paris"
    assert rule.mention == "<!here> <@U0123456>"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"chanel": "#x"}, "did you mean 'channel'"),
        ({"task": ""}, "must be a glob"),
        ({"task": []}, "must be a glob"),
        ({"channel": "two words"}, "must be a channel"),
        ({"mention": "@joe"}, "must be @here"),
        ({"mention": "<!channel> x"}, "must be @here"),
        ({"severity": "loud"}, "'critical', 'warning' or 'info'"),
        ({"threshold": "often"}, '"5 in 10min"'),
        ({"threshold": "0 in 5min"}, '"5 in 10min"'),
        ({"threshold": "5 in 2 d"}, "more than a day"),
        ({"quiet_hours": "at night"}, "22:00-07:00"),
        ({"quiet_hours": "22:00-22:00"}, "begin when they end"),
        ({"quiet_hours": "22:00-07:00 Mars/Olympus"}, "no known time zone"),
        ({"mute": "perhaps"}, "valid boolean"),
    ],
)
def test_a_mistake_in_a_route_is_named(table, message):
    with pytest.raises(ValidationError, match=message):
        Route(**table)


def test_routes_that_can_never_be_reached_are_named_with_the_remedy():
    found = contradictions(rules([Route(name="all", task="*"), Route(name="pay", task="shop.*", channel="#pay")]))
    assert found == [
        (
            "routes 'all' and 'pay' contradict: 'all' takes everything 'pay' matches, and the first match counts; "
            "put 'pay' above 'all', or merge them"
        )
    ]


def test_two_routes_for_the_same_failures_contradict():
    (problem,) = contradictions(rules([Route(task="a", channel="#x"), Route(task="a", channel="#y")]))
    assert "'#1' and '#2' match the same failures" in problem


def test_routes_from_the_particular_to_the_general_are_fine():
    assert contradictions(rules([Route(task="shop.pay"), Route(task="shop.*"), Route(queue="shop"), Route()])) == []


def test_the_file_the_environment_and_defaults_make_the_settings(tmp_path):
    settings = read(tmp_path, '[alerter]\nquiet = "5min"\n[[alerter.routes]]\ntask = "a.*"\nchannel = "#a"\n')
    assert settings.quiet == 300
    assert settings.route[0].channel == "#a"
    assert settings.update_interval == 30
    assert settings.store_url.startswith("sqlite:////")
    assert read(tmp_path, CELERYSCOPE_STORE="postgresql://u:pw@db/x").store_url == "postgresql://u:pw@db/x"


@pytest.mark.parametrize(
    ("toml", "environ", "message"),
    [
        ("", {"CELERYSCOPE_SLACK_TOKEN": ""}, "CELERYSCOPE_SLACK_TOKEN"),
        ("", {"CELERYSCOPE_SLACK_CHANNEL": ""}, "no channel is named"),
        ("", {"CELERYSCOPE_SLACK_WEBHOOK_URL": "https://hooks.slack.com/services/T/B/x"}, "not both"),
        ("", {"CELERYSCOPE_SLACK_WEBHOOK_URL": "ftp://x"}, "starts with http"),
        ("", {"CELERYSCOPE_QUIET": "soon"}, "CELERYSCOPE_QUIET: must be a length of time"),
        ("", {"CELERYSCOPE_FLOWER_URL": "flower:5555"}, "starts with http"),
        ("[alerter]\nroutes = 7\n", {}, r"\[\[routes\]\]"),
        ('[[alerter.routes]]\ntaks = "a"\n', {}, "did you mean 'task'"),
        ('[[alerter.routes]]\ntask = "a"\n[[alerter.routes]]\ntask = "a"\n', {}, "match the same failures"),
    ],
)
def test_settings_that_cannot_be_used_are_named(tmp_path, toml, environ, message):
    import re

    assert re.search(message, problems(tmp_path, toml, **environ))


def test_secrets_are_in_no_repr_and_no_error(tmp_path):
    settings = read(tmp_path, CELERYSCOPE_STORE="postgresql://u:dbsecret@db/x")
    shown = repr(settings) + str(settings) + repr(settings.model_dump())
    assert not any(secret in shown for secret in ("very-secret", "hunter2secret", "dbsecret"))
    assert {"xoxb-very-secret", "hunter2secret", "dbsecret"} <= set(settings.secrets)
    bad = problems(tmp_path, CELERYSCOPE_SLACK_TOKEN="xoxb very secret", CELERYSCOPE_QUIET="x")
    assert "very secret" not in bad
