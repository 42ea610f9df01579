"""`celeryscope flower`: closed to strangers or not at all, and no secret where others can read it."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from celeryscope import cli
from celeryscope.monitor import flower_launch
from celeryscope.monitor.configuration import SettingsError, load
from celeryscope.monitor.flower_launch import LaunchSettings, command_line, environment, loopback, refused
from celeryscope.monitor.flower_main import ask_for_the_password
from celeryscope.monitor.values import address

PASSWORD = "hunter2-hunter2"
LOGIN = {"CELERYSCOPE_FLOWER_AUTH": f"ops:{PASSWORD}"}


def settings(**environ: str) -> LaunchSettings:
    return load(LaunchSettings, options={}, environ={f"CELERYSCOPE_{key}": value for key, value in environ.items()})


@pytest.mark.parametrize(
    ("listen", "only_here"),
    [
        ("127.0.0.1:5555", True),
        ("127.8.8.8:1", True),
        ("localhost:5555", True),
        ("[::1]:5555", True),
        (":5555", False),
        ("0.0.0.0:5555", False),
        ("[::]:5555", False),
        ("192.168.1.5:5555", False),
        ("flower.example:5555", False),
        ("localhost.example.com:5555", False),
    ],
)
def test_without_credentials_it_starts_on_the_loopback_alone(listen, only_here):
    assert loopback(address(listen)) == only_here
    given = settings(FLOWER_LISTEN=listen)
    assert (refused(given, {}, ()) is None) == only_here
    if not only_here:
        assert "CELERYSCOPE_FLOWER_AUTH" in (refused(given, {}, ()) or "")
    assert refused(settings(FLOWER_LISTEN=listen, FLOWER_AUTH=f"ops:{PASSWORD}"), {}, ()) is None
    assert refused(given, {"FLOWER_AUTH": ".*@example.com"}, ()) is None
    assert refused(given, {"FLOWER_BASIC_AUTH": "a:b"}, ()) is None
    assert (refused(given, {"FLOWER_AUTH": "", "FLOWER_BASIC_AUTH": ""}, ()) is None) == only_here


@pytest.mark.parametrize(
    "argument", ["--basic_auth=a:b", "--basic-auth", "--address=0.0.0.0", "-port=1", "--oauth2-secret=x", "--db=x"]
)
def test_what_follows_the_dashes_cannot_undo_what_was_checked(argument):
    """Nor bring a secret into the list of processes."""
    assert "after --" in (refused(settings(), {}, (argument,)) or "")
    assert "x" not in (refused(settings(), {}, ("--oauth2_secret=xxxx",)) or "").replace("celeryscope", "")
    assert refused(settings(), {}, ("--natural_time=True", "--conf=mine.py")) is None


def test_the_command_has_its_bounds_and_no_secret(tmp_path):
    given = settings(
        FLOWER_AUTH=f"ops:{PASSWORD}",
        BROKER_URL=f"redis://:{PASSWORD}@broker/0",
        APP="proj",
        STATE_DIR=str(tmp_path),
        FLOWER_URL_PREFIX="/tools/flower/",
        FLOWER_LISTEN="[::1]:5556",
    )
    command = command_line(given, ("--natural_time=True",))
    assert PASSWORD not in " ".join(command)
    assert command[command.index("-A") :][:3] == ["-A", "proj", "flower"]
    assert {
        "--address=::1",
        "--port=5556",
        "--max_tasks=10000",
        "--purge_offline_workers=86400",
        "--persistent=True",
        f"--db={tmp_path / 'flower'}",
        "--url_prefix=tools/flower",
        "--xheaders=True",
        "--read_only=False",
        "--enable_events=False",
        f"--conf={os.devnull}",
        "--natural_time=True",
    } <= set(command)
    env = environment(given, {"PATH": "/bin"})
    assert env == {
        "PATH": "/bin",
        "FLOWER_BASIC_AUTH": f"ops:{PASSWORD}",
        "CELERY_BROKER_URL": f"redis://:{PASSWORD}@broker/0",
    }


def test_without_a_state_directory_nothing_is_written():
    command = command_line(settings(), ())
    assert not [argument for argument in command if argument.startswith(("--persistent", "--db", "-A", "--url_prefix"))]
    assert environment(settings(), {"FLOWER_BASIC_AUTH": "a:b"}) == {"FLOWER_BASIC_AUTH": "a:b"}


def test_a_configuration_file_is_read_only_where_it_is_named():
    """One that lies about could take the credentials away."""
    assert f"--conf={os.devnull}" not in command_line(settings(), ("--conf=mine.py",))


def test_it_becomes_flower(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    started = []
    monkeypatch.setattr(flower_launch.os, "execve", lambda *given: started.append(given))
    monkeypatch.setattr(flower_launch, "find_spec", lambda name: name)  # the oldest environment has no Flower
    monkeypatch.setenv("CELERYSCOPE_FLOWER_AUTH", f"ops:{PASSWORD}")
    folder = tmp_path / "state"
    assert cli.run(["flower", "-A", "proj", "--listen", ":0", "--state-dir", str(folder), "--", "--debug=True"]) == 0
    ((program, argv, env),) = started
    assert program == argv[0]
    assert argv[-1] == "--debug=True"
    assert env["FLOWER_BASIC_AUTH"] == f"ops:{PASSWORD}"
    assert folder.stat().st_mode & 0o077 == 0
    assert PASSWORD not in capsys.readouterr().err


def test_a_refusal_and_a_missing_flower_are_clear_errors(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(flower_launch.os, "execve", None)
    assert cli.run(["flower", "--listen", "0.0.0.0:5555"]) == 2
    assert "whoever reaches Flower can stop your workers" in capsys.readouterr().err
    monkeypatch.setattr(flower_launch, "find_spec", lambda _: None)
    assert cli.run(["flower"]) == 2
    assert "pip install" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"BROKER_URL": "a=redis://a b=redis://b"}, "one Flower sees one broker"),
        ({"STATE_DIR": "/nowhere/at/all"}, "nor the directory"),
        ({"FLOWER_URL_PREFIX": "a b"}, "must be a path"),
        ({"FLOWER_MAX_TASKS": "5"}, "at least 100"),
        ({"FLOWER_USER": "ops"}, "go together"),
    ],
)
def test_settings_that_make_no_sense_are_named(wrong, told):
    with pytest.raises(SettingsError, match=told):
        settings(**wrong)


@pytest.mark.parametrize(
    ("status", "basic_auth", "asks"), [(401, ["a:b"], True), (401, [], False), (403, ["a:b"], False)]
)
def test_flowers_api_asks_browsers_for_the_password(status, basic_auth, asks):
    """Else nobody who came straight from an alert could press Revoke."""

    class Handler:
        application = SimpleNamespace(options=SimpleNamespace(basic_auth=basic_auth))

        def __init__(self) -> None:
            self.headers: dict[str, str] = {}
            self.written: list[int] = []

        def set_header(self, name: str, value: str) -> None:
            self.headers[name] = value

        def write_error(self, status_code: int, **_: object) -> None:
            self.written.append(status_code)

    ask_for_the_password(Handler)
    handler = Handler()
    handler.write_error(status)
    assert handler.written == [status]
    assert ("WWW-Authenticate" in handler.headers) == asks
