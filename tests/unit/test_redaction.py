"""No secret leaves a worker, and what is no secret stays readable."""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from celeryscope.alerts.redaction import MASK, SHOWN_LENGTH, Redactor, clean, cut, head, tail

if TYPE_CHECKING:
    from collections.abc import Callable

redactor = Redactor()


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("redis://:hunter2@host/0", "redis://:***@host/0"),
        ("amqp://user:p@ss@host//v", "amqp://user:***@host//v"),
        ("https://0123456789abcdef0123@sentry.example/1", "https://***@sentry.example/1"),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("{'Authorization': 'Basic dXNlcjpwYXNz'}", "{'Authorization': '***'}"),
        ("sent Bearer abcdef0123456789", "sent Bearer ***"),
        ("password=hunter2&user=joe", "password=***&user=joe"),
        ("DB_PASSWORD: hunter2", "DB_PASSWORD: ***"),
        ("secret_key = b'abc'", "secret_key = b'***'"),
        ('{"api_key": "a b c", "n": 1}', '{"api_key": "***", "n": 1}'),
        ('{\\"password\\": \\"pw1\\"}', '{\\"password\\": ***}'),
        ("password='cut off in the mid", "password='***'"),
        ("https://hooks.slack.com/services/T0/B0/xyz", "https://hooks.slack.com/services/***"),
        ("token xoxb-12-ab", "token ***"),
        ("key AKIAABCDEFGHIJKLMNOP used", "key *** used"),
        ("jwt eyJhbGciOi.eyJzdWIi.sig", "jwt ***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----.", "***."),
        ("-----BEGIN PRIVATE KEY-----\nMIIE", "***"),
    ],
)
def test_secrets_are_masked(text: str, redacted: str) -> None:
    assert redactor.text(text) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "TokenError: no such user",
        "got an unexpected keyword argument 'token'",
        "http://host:80/x?mail=a@b.example",
        "basic authentication failed",
        "a bearer token is missing",
        "token=None",
        'File "/srv/app/tokens.py", line 3, in check_password',
        "order 17 for card 4 declined",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redactor.text(text) == text


def test_a_masked_line_does_not_swallow_the_next() -> None:
    """A quote that is never closed ends with its line: the rest of a traceback stays."""
    assert redactor.text("token = 'abc\nValueError: x") == "token = '***'\nValueError: x"


def test_own_key_names() -> None:
    """Patterns that users add hold for text and for values."""
    own = Redactor(keys=["patient_id"])
    assert own.text("patient_id=123") == "patient_id=***"
    assert own.show("patient_id", 123) == MASK
    assert own.text("password=1") == "password=***"


def test_own_function_runs_last() -> None:
    assert Redactor(replace=lambda text: text.replace("17", "#")).text("password=1 order 17") == "password=*** order #"


@pytest.mark.parametrize("function", [lambda text: 1 / 0, lambda text: None])
def test_own_function_that_fails_withholds_the_text(function: object) -> None:
    assert "17" not in Redactor(replace=function).text("order 17")  # type: ignore[arg-type]


@pytest.mark.parametrize(("key", "said"), [("(", "not a regular expression"), ("x*", "matches every key")])
def test_a_pattern_that_cannot_be(key: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Redactor(keys=[key])


class Hostile:
    """Whatever is asked of it raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __repr__


class Text(str):
    """A subclass of a builtin may have a repr of its own."""

    __slots__ = ()

    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (17, "17"),
        ("a", "'a'"),
        (None, "None"),
        (Decimal("1.5"), "Decimal('1.5')"),
        (
            datetime(2026, 1, 2, tzinfo=timezone.utc),
            "datetime.datetime(2026, 1, 2, 0, 0, tzinfo=datetime.timezone.utc)",
        ),
        ({"password": "x", "n": [1, {"token": "t"}]}, "{'n': [1, {'token': '***'}], 'password': '***'}"),
        ((1,), "(1,)"),
        ({1, 2}, "{1, 2}"),
        ([[[[[[1]]]]]], "[[[…]]]"),
        ("url redis://:pw@h", "'url redis://:***@h'"),
    ],
)
def test_values_are_shown(value: object, shown: str) -> None:
    assert redactor.show("x", value) == shown


@pytest.mark.parametrize("value", [Hostile(), [Hostile()], {"a": Hostile()}, {Hostile(): 1}, Text("x"), [Text("x")]])
def test_the_users_repr_is_never_called(value: object) -> None:
    """Their class is named instead."""
    assert isinstance(redactor.show("x", value), str)


def test_a_number_too_long_to_print() -> None:
    assert redactor.show("x", 10**5000) == "<int of 16610 bits>"


@pytest.mark.parametrize(
    "make",
    [
        lambda: "x" * 10**8,
        lambda: b"x" * 10**8,
        lambda: ["x" * 10**6] * 100,
        lambda: list(range(10**6)),
        lambda: {1: "y" * 10**7},
    ],
)
def test_huge_values_are_cut(make: Callable[[], object]) -> None:
    assert len(redactor.show("x", make())) < 20_000


def test_many_small_values_are_bounded_together() -> None:
    """20 in each of 20 in 20 were 2.4 million characters, redacted in the worker's main process: a second each."""
    deep = [[["x" * 300] * 20] * 20] * 20
    wide = {f"k{n}": {f"k{m}": {f"k{i}": "x" for i in range(20)} for m in range(20)} for n in range(20)}
    for value in (deep, wide, {"a": deep}, tuple(deep)):
        assert 500 < len(redactor.show("x", value)) <= SHOWN_LENGTH


def test_what_is_cut_out_of_a_long_value_is_no_half_secret() -> None:
    value = [f"redis://user:{'p' * 200}@host/{number}" for number in range(20)]
    shown = redactor.show("x", value)
    assert "user:***@host" in shown
    assert "ppp" not in shown


class Sorted:
    """Sorting a set of these runs the user's code."""

    def __lt__(self, other: object) -> bool:
        raise AssertionError("called")


@pytest.mark.parametrize("kind", [set, frozenset])
def test_a_set_is_not_sorted_as_a_whole(kind: type) -> None:
    """Its items may be the user's, or a million."""
    assert redactor.show("x", kind([Sorted(), Sorted()])) == f"<{kind.__name__}>"
    assert len(redactor.show("x", [kind(range(10**6))])) < 500


def test_what_refers_to_itself_ends() -> None:
    loop: list[object] = []
    loop.append(loop)
    assert len(redactor.show("x", loop)) < 100


def test_head_ends_before_the_word_that_would_be_split() -> None:
    """Half of an address with its password would not be recognised as one."""
    assert head("see redis://user:pass@host now", 20) == "see"
    assert head("short", 20) == "short"
    assert head("a " + "redis://user:" + "p" * 900, 600) == "a"


def test_head_keeps_the_start_of_an_endless_word() -> None:
    assert head("x" * 5_000, 4_000) == "x" * 200


def test_tail_starts_with_a_whole_line() -> None:
    assert tail("first line\nsecond\nthird", 8) == "third"
    assert tail("password: hunter2", 10) == ""
    assert tail("short", 10) == "short"


def test_cut_says_so() -> None:
    assert cut("abcdef", 4) == "abc…"
    assert cut("abcd", 4) == "abcd"


def test_clean_is_valid_text() -> None:
    """Lone surrogates cannot be sent, control characters would act on a terminal."""
    assert clean("a\ud800b\x1b[31m\n\tc") == "a?b\N{REPLACEMENT CHARACTER}[31m\n\tc"
