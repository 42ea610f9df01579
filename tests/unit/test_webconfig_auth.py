"""Basic authentication: who passes, and what it costs."""

from __future__ import annotations

import base64
import threading

import bcrypt
import pytest
from celeryscope.exporters import auth
from celeryscope.exporters.auth import REMEMBERED, Authenticator, is_bcrypt

PASSWORDS = {"prometheus": b"s3cret", "näme": "pässword".encode(), "colon": b"a:b:c", "empty": b"", "long": b"x" * 100}
USERS = {name: bcrypt.hashpw(word[:72], bcrypt.gensalt(4)).decode() for name, word in PASSWORDS.items()}


def header(user, password):
    return "Basic " + base64.b64encode(user.encode() + b":" + password).decode()


@pytest.fixture(name="checks")
def _checks(monkeypatch):
    """The bcrypt computations done, as (password, hash)."""
    done = []

    def checkpw(password, hashed):
        done.append((password, hashed.decode()))
        return bcrypt.checkpw(password, hashed)

    monkeypatch.setattr(auth, "bcrypt", type("Counting", (), {"checkpw": staticmethod(checkpw)}))
    return done


@pytest.mark.parametrize("user", USERS)
def test_the_right_password_passes_and_no_other(user):
    authenticator = Authenticator()
    assert authenticator.allows(USERS, header(user, PASSWORDS[user]))
    assert not authenticator.allows(USERS, header(user, b"wrong"))
    assert not authenticator.allows(USERS, header(user.upper(), PASSWORDS[user]))


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "Basic",
        "Basic ",
        "Basic !!!",
        "Bearer " + base64.b64encode(b"prometheus:s3cret").decode(),
        "Basic " + base64.b64encode(b"prometheus").decode(),
        "Basic " + base64.b64encode(b"\xff\xfe:s3cret").decode(),
        "Basic " + base64.b64encode(b"prometheus:s3\0cret").decode(),
        "Basic é",
    ],
)
def test_what_is_no_credential_does_not_pass(value):
    assert not Authenticator().allows(USERS, value)


def test_spellings_of_the_scheme():
    assert Authenticator().allows(USERS, header("prometheus", b"s3cret").replace("Basic", "bASIC"))


def test_bcrypt_is_paid_once_a_client_and_not_a_scrape(checks):
    authenticator = Authenticator()
    for _ in range(10):
        assert authenticator.allows(USERS, header("prometheus", b"s3cret"))
        assert not authenticator.allows(USERS, header("prometheus", b"wrong"))
    assert len(checks) == 2


def test_a_changed_hash_is_a_new_question(checks):
    authenticator = Authenticator()
    users = dict(USERS)
    assert authenticator.allows(users, header("prometheus", b"s3cret"))
    users["prometheus"] = bcrypt.hashpw(b"other", bcrypt.gensalt(4)).decode()
    assert not authenticator.allows(users, header("prometheus", b"s3cret"))
    del users["prometheus"]
    assert not authenticator.allows(users, header("prometheus", b"s3cret"))
    assert len(checks) == 3


def test_unknown_users_cost_as_much_as_known_ones(checks):
    """Else the time taken would tell which users exist."""
    users = {"a": USERS["prometheus"], "b": bcrypt.hashpw(b"b", bcrypt.gensalt(5)).decode()}
    assert not Authenticator().allows(users, header("nobody", b"s3cret"))
    [(password, hashed)] = checks
    assert password == b"s3cret"
    assert is_bcrypt(hashed)
    assert hashed.startswith("$2b$05$")


def test_the_stand_in_hash_lets_nobody_in():
    for password in (b"fakepassword", b"", b"s3cret"):
        assert not Authenticator().allows(USERS, header("nobody", password))


def test_guessing_pushes_nobody_out(checks):
    authenticator = Authenticator()
    authenticator.allows(USERS, header("prometheus", b"s3cret"))
    for guess in range(REMEMBERED * 2):
        authenticator.allows(USERS, header("prometheus", b"guess %d" % guess))
    before = len(checks)
    assert authenticator.allows(USERS, header("prometheus", b"s3cret"))
    assert len(checks) == before
    assert len(authenticator._refused) == REMEMBERED


def test_who_is_known_does_not_wait_for_a_guess_under_way(monkeypatch):
    authenticator = Authenticator()
    assert authenticator.allows(USERS, header("prometheus", b"s3cret"))
    entered, finish = threading.Event(), threading.Event()

    def checkpw(_password, _hashed):
        entered.set()
        return not finish.wait(20)

    monkeypatch.setattr(auth, "bcrypt", type("Stuck", (), {"checkpw": staticmethod(checkpw)}))
    guess = threading.Thread(target=authenticator.allows, args=(USERS, header("prometheus", b"guess")))
    guess.start()
    assert entered.wait(20)
    assert authenticator.allows(USERS, header("prometheus", b"s3cret"))
    assert guess.is_alive()
    finish.set()
    guess.join(20)


def test_the_same_new_client_many_times_at_once_is_one_bcrypt(checks):
    authenticator = Authenticator()
    outcomes = []
    clients = [
        threading.Thread(target=lambda: outcomes.append(authenticator.allows(USERS, header("prometheus", b"s3cret"))))
        for _ in range(10)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join(20)
    assert outcomes == [True] * 10
    assert len(checks) == 1


def test_no_password_is_kept():
    authenticator = Authenticator()
    authenticator.allows(USERS, header("prometheus", b"s3cret"))
    authenticator.allows(USERS, header("prometheus", b"hunter2"))
    held = repr(vars(authenticator))
    assert "s3cret" not in held
    assert "hunter2" not in held


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG", True),
        ("$2b$04$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG", True),
        ("$2y$03$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG", False),
        ("$2y$32$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG", False),
        ("$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7z", False),
        ("$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG\n", False),
        ("s3cret", False),
        ("", False),
    ],
)
def test_what_is_a_bcrypt_hash(text, expected):
    assert is_bcrypt(text) is expected
