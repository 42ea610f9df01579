"""Laws of redaction: a secret in a known form never survives, however it is placed and cut."""

from __future__ import annotations

import string

from celeryscope.alerts.redaction import MASK, Redactor, clean, head, tail
from celeryscope.alerts.tracebacks import parse
from hypothesis import given
from hypothesis import strategies as st

redactor = Redactor()

secrets = st.text(string.ascii_letters + string.digits, min_size=8, max_size=40).map(lambda s: f"Zq{s}9")
words = st.text(string.ascii_lowercase + " .\n", max_size=60)
keys = st.sampled_from(
    ["password", "DB_PASSWORD", "api_key", "X-Api-Key", "accessToken", "client_secret", "Authorization", "session_id"]
)
forms = st.one_of(
    keys.map(lambda key: f"{key}={{}}"),
    keys.map(lambda key: f"{key}: {{}}"),
    keys.map(lambda key: f"'{key}': '{{}}'"),
    keys.map(lambda key: f'"{key}" : "{{}}"'),
    st.sampled_from(["redis://:{}@host:6379/0", "amqp://user:{}@host//", "Bearer {}", "Authorization: Basic {}"]),
)


@given(before=words, form=forms, secret=secrets, after=words)
def test_a_secret_in_a_known_form_is_gone(before: str, form: str, secret: str, after: str) -> None:
    assert secret not in redactor.text(f"{before} {form.format(secret)} {after}")


@given(before=words, form=forms, secret=secrets, after=words, length=st.integers(1, 200))
def test_cutting_first_does_not_hide_it(before: str, form: str, secret: str, after: str, length: int) -> None:
    """No part of a secret that is long enough to matter is left by cutting before redacting."""
    text = f"{before} {form.format(secret)} {after}"
    for part in (head(text, length), tail(text, length)):
        assert secret[:8] not in redactor.text(part)


@given(st.text(max_size=300))
def test_redacting_twice_changes_nothing(text: str) -> None:
    """The alerter redacts again what a worker has redacted."""
    once = redactor.text(text)
    assert redactor.text(once) == once


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=20,
)


@given(value=json_like, key=keys, secret=secrets)
def test_secrets_within_values(value: object, key: str, secret: str) -> None:
    """Under a secret key nothing is shown, at whatever depth; every value can be shown."""
    for nested in ({key: secret}, [{"a": {key: secret}}], {"x": value, key: [secret]}):
        assert secret not in redactor.show("argument", nested)
    assert redactor.show(key, secret) == MASK


@given(st.text(max_size=400), st.none() | st.just("shop.CardError"))
def test_any_text_can_be_read_and_cleaned(text: str, hint: str | None) -> None:
    assert parse(text, hint).exception
    clean(text).encode()
