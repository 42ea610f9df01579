"""Settings: which values are taken from where, and what a person reads when one is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celeryscope.monitor import values
from celeryscope.monitor.configuration import SettingsError, exposed, load
from celeryscope.monitor.settings import MonitorSettings
from celeryscope.monitor.values import Address
from pydantic import ValidationError

if TYPE_CHECKING:
    from pathlib import Path

BROKER = {"CELERYSCOPE_BROKER_URL": "redis://host:6379/0"}


def settings(
    options: dict[str, Any] | None = None,
    environ: dict[str, str] | None = None,
    config: Path | None = None,
    also_known: frozenset[str] = frozenset(),
) -> MonitorSettings:
    return load(
        MonitorSettings,
        options=options or {},
        environ=BROKER | (environ or {}),
        config=config,
        also_known=also_known,
    )


def problems(**given: Any) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        settings(**given)
    return caught.value.problems


def brokers(given: MonitorSettings) -> dict[str, str]:
    return {target.name: target.url.get_secret_value() for target in given.broker_url}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_defaults_are_the_documented_ones() -> None:
    """What DESIGN promises without any option."""
    plain = settings()
    assert plain.listen == Address("127.0.0.1", 9808)
    assert plain.state_dir is None
    assert plain.accept_content == ("json",)
    assert plain.max_live_tasks == 200_000
    assert (plain.log_level, plain.log_format) == ("warning", "text")


def test_options_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    """The order of sources, seen on three settings of which each layer sets one fewer."""
    config = write(tmp_path / "c.toml", 'worker_timeout = 1\nsample_interval = 1\nlisten = "file:1"')
    found = settings(
        options={"worker_timeout": "3"},
        environ={"CELERYSCOPE_WORKER_TIMEOUT": "2", "CELERYSCOPE_SAMPLE_INTERVAL": "2"},
        config=config,
    )
    assert (found.worker_timeout, found.sample_interval, found.listen) == (3, 2, Address("file", 1))


def test_tables_merge_by_key_and_lists_are_replaced(tmp_path: Path) -> None:
    """A cap for one label does not undo another's; a broker on the command line is the only one."""
    config = write(
        tmp_path / "c.toml",
        '[brokers]\na = "redis://a"\nb = "redis://b"\n[caps]\ntask = 5\nqueue = 6\n',
    )
    found = settings(options={"cap": ("task=7",), "broker_url": ("redis://c",)}, config=config)
    assert found.cap == {"task": 7, "queue": 6}
    assert brokers(found) == {"": "redis://c"}


def test_a_commands_own_table_in_the_file_wins(tmp_path: Path) -> None:
    """[monitor] is for the monitor alone; other commands' names and tables are let be."""
    config = write(
        tmp_path / "c.toml", 'listen = ":1"\nslack_channel = "#x"\n[monitor]\nlisten = ":2"\n[alerter]\nx = 1'
    )
    found = settings(config=config, also_known=frozenset({"[alerter]", "slack_channel"}))
    assert found.listen == Address("", 2)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("redis://h/0",), {"": "redis://h/0"}),
        (("main=redis://h/0",), {"main": "redis://h/0"}),
        (("a=redis://h/0", "b=amqp://u:p@h//"), {"a": "redis://h/0", "b": "amqp://u:p@h//"}),
        (("redis://:pass=word@h/0",), {"": "redis://:pass=word@h/0"}),
        (("sentinel://h1:26379;sentinel://h2:26379",), {"": "sentinel://h1:26379;sentinel://h2:26379"}),
    ],
)
def test_brokers_are_read_from_urls_and_named_urls(given: tuple[str, ...], expected: dict[str, str]) -> None:
    """NAME=URL names a broker; an = inside a URL does not."""
    assert brokers(settings(options={"broker_url": given})) == expected


def test_brokers_come_from_variables_files_and_celerys_own_variable(tmp_path: Path) -> None:
    """Blanks separate several; _FILE names a file; CELERY_BROKER_URL counts when nothing else does."""
    secret = write(tmp_path / "url", "redis://:pw@file/0\n")
    assert brokers(settings(environ={"CELERYSCOPE_BROKER_URL": "a=redis://a b=redis://b"})) == {
        "a": "redis://a",
        "b": "redis://b",
    }
    from_file = load(MonitorSettings, options={}, environ={"CELERYSCOPE_BROKER_URL_FILE": str(secret)})
    assert brokers(from_file) == {"": "redis://:pw@file/0"}
    from_toml = load(
        MonitorSettings, options={}, environ={}, config=write(tmp_path / "c.toml", f'broker_url_file = "{secret}"')
    )
    assert brokers(from_toml) == {"": "redis://:pw@file/0"}
    last_resort = {"CELERY_BROKER_URL": "redis://celery"}
    assert brokers(load(MonitorSettings, options={}, environ=last_resort)) == {"": "redis://celery"}
    assert brokers(settings(environ=last_resort)) == {"": "redis://host:6379/0"}
    assert brokers(load(MonitorSettings, options={"app": "proj"}, environ=last_resort)) == {}


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9808", Address("127.0.0.1", 9808)),
        (":9808", Address("", 9808)),
        ("[::1]:0", Address("::1", 0)),
        ("[::]:65535", Address("::", 65535)),
        (" monitor.example:80 ", Address("monitor.example", 80)),
    ],
)
def test_addresses_to_listen_on(text: str, address: Address) -> None:
    assert values.address(text) == address
    assert values.address(str(address)) == address


@pytest.mark.parametrize("text", ["", "9808", "host", "host:", "host:x", "host:65536", "host:-1", "::1:9808", "host:١"])
def test_what_is_no_address_is_an_error_that_shows_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9808"):
        values.address(text)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"listen": "nonsense"}, "--listen: must be HOST:PORT"),
        ({"listen": "h:70000"}, "--listen: must be HOST:PORT"),
        ({"broker_url": ("localhost",)}, "--broker: must be a URL such as"),
        ({"broker_url": ("redis://h:99999/0",)}, "--broker: must be a URL with a port between 0 and 65535"),
        ({"broker_url": ("redis://a", "redis://b")}, "--broker: must name each one"),
        ({"broker_url": ("a=redis://a", "a=redis://b")}, "--broker: must not use a name twice"),
        ({"broker_url": ("Big=redis://a",)}, "--broker: must have a name of small letters"),
        (
            {"broker_url": ("rediss://h/0?ssl_ca_certs=/no/such.pem",)},
            "--broker: ssl_ca_certs must be a readable file, '/no/such.pem': No such file",
        ),
        ({"web_config_file": "/no/such.yml"}, "--web.config.file: must be a readable file, '/no/such.yml'"),
        ({"buckets": ("celery_task_runtime_seconds=-1,2",)}, "--buckets: buckets of celery_task_runtime_seconds"),
        ({"buckets": ("celery_task_sent_total=1",)}, "--buckets: 'celery_task_sent_total' is not a histogram"),
        ({"buckets": ("celery_task_runtime_seconds=a",)}, "--buckets: must be numbers with commas"),
        ({"buckets": ("nothing",)}, "--buckets: must be KEY=VALUE"),
        ({"cap": ("task=none",)}, "--cap [task]: must be a whole number (got 'none')"),
        ({"cap": ("task=0",)}, "--cap [task]: must be at least 1"),
        ({"cap": ("colour=5",)}, "--cap: must be for one of the labels"),
        ({"static_label": ("le=x",)}, "--static-label: must have label names"),
        ({"metric_prefix": "1x"}, "--metric-prefix: must be letters"),
        (
            {"accept_content": ("xml",)},
            "--accept-content [0]: must be 'json', 'yaml', 'msgpack' or 'pickle' (got 'xml')",
        ),
        ({"compat": ("flower",)}, "--compat [0]: must be 'celery-exporter'"),
        ({"max_live_tasks": "-1"}, "--max-live-tasks: must be at least 1 (got '-1')"),
        ({"sample_interval": "nan"}, "--sample-interval: must be a finite number"),
        ({"worker_timeout": "0"}, "--worker-timeout: must be more than 0 (got '0')"),
        ({"forget_worker_after": "10"}, "--forget-worker-after: must not be shorter than worker_timeout (60 s)"),
        ({"log_level": "loud"}, "--log-level: must be 'debug', 'info', 'warning' or 'error' (got 'loud')"),
        ({"rabbitmq_management_url": ("x=http://h",)}, "--rabbitmq-management-url: 'x' is not the name of a broker"),
        ({"app": "proj", "broker_url": ("a=redis://a", "b=redis://b")}, "--app: takes one broker's options"),
    ],
)
def test_a_wrong_value_is_one_line_with_setting_and_value(options: dict[str, Any], line: str) -> None:
    """Each refusal names the option and says what to do."""
    (problem,) = problems(options=options)
    assert problem.startswith(line)


def test_every_problem_of_every_source_is_reported_at_once(tmp_path: Path) -> None:
    """Nobody mends a configuration one start at a time."""
    config = write(tmp_path / "c.toml", "brokr = 1\nmax_live_tasks = 1.5\n")
    found = problems(
        options={"listen": "x"},
        environ={"CELERYSCOPE_LISTN": "y", "CELERYSCOPE_SAMPLE_INTERVAL": "soon"},
        config=config,
    )
    assert found == [
        f"{config}: brokr: no such setting; did you mean brokers?",
        "CELERYSCOPE_LISTN: no such setting; did you mean CELERYSCOPE_LISTEN?",
        "--listen: must be HOST:PORT, such as 127.0.0.1:9808, or :9808 for all addresses (got 'x')",
        f"max_live_tasks in {config}: must be a whole number (got 1.5)",
        "CELERYSCOPE_SAMPLE_INTERVAL: must be a number (got 'soon')",
    ]


def test_no_broker_at_all_says_how_to_name_one() -> None:
    with pytest.raises(SettingsError, match="--broker: no broker is named; give --broker redis://"):
        load(MonitorSettings, options={}, environ={})


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    missing, broken = tmp_path / "missing.toml", write(tmp_path / "broken.toml", "x = = 1")
    assert problems(config=missing) == [f"--config: cannot read '{missing}': No such file or directory"]
    assert problems(config=broken)[0].startswith(f"--config: cannot read '{broken}': Invalid value")
    assert problems(environ={"CELERYSCOPE_CONFIG": str(missing)})[0].startswith("CELERYSCOPE_CONFIG: cannot read")
    secret = problems(environ={"CELERYSCOPE_RABBITMQ_MANAGEMENT_URL_FILE": str(missing)})
    assert secret == [f"CELERYSCOPE_RABBITMQ_MANAGEMENT_URL_FILE: cannot read '{missing}': No such file or directory"]


def test_a_secret_and_its_file_exclude_each_other(tmp_path: Path) -> None:
    secret = write(tmp_path / "url", "redis://h")
    (problem,) = problems(environ={"CELERYSCOPE_BROKER_URL_FILE": str(secret)})
    assert "cannot be given together with" in problem


def test_secrets_are_in_no_message_and_no_repr() -> None:
    """Neither a refusal nor the settings themselves show a password."""
    found = problems(
        options={"broker_url": ("redis://:hunter2@h:99999", "x")}, environ={"CELERYSCOPE_BROKER_URL": "hunter2"}
    )
    assert "hunter2" not in "\n".join(found)
    good = settings(options={"broker_url": ("redis://:hunter2@h",)})
    assert "hunter2" not in f"{good!r} {good} {good.model_dump()}"


def test_only_secrets_on_the_command_line_are_exposed() -> None:
    assert exposed(MonitorSettings, {"broker_url": ("redis://h",)}) == []
    assert exposed(MonitorSettings, {"broker_url": ("a=redis://h", "b=redis://:pw@h")}) == ["--broker"]


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        settings().listen = Address("x", 1)  # type: ignore[misc]
