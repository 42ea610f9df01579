"""install(app): what it switches on, what it leaves alone, and what it costs."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import types
from typing import TYPE_CHECKING, Any

import celeryscope
import pytest
from celery import Celery, current_app
from celery.app.base import Celery as BaseCelery
from celery.worker import WorkController
from celeryscope.monitor import event_settings
from celeryscope.monitor.guard import Guard
from helpers import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

NEW = ("worker_send_task_events", "task_send_sent_event")
OLD = {"worker_send_task_events": "CELERY_SEND_EVENTS", "task_send_sent_event": "CELERY_SEND_TASK_SENT_EVENT"}


def make(**settings: Any) -> Celery:
    return Celery("proj", set_as_current=False, **settings)


def values(app: Celery) -> tuple[bool, bool]:
    return app.conf.worker_send_task_events, app.conf.task_send_sent_event


def test_celerys_own_defaults_are_still_false():
    """Should Celery ever turn them on, this part of install() has no reason to be."""
    assert values(make()) == (False, False)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_left_at_the_default_both_are_switched_on(moment):
    app = make()
    if moment == "after":
        assert app.conf.task_serializer == "json"  # reading any value loads the configuration
    celeryscope.install(app)
    assert values(app) == (True, True)


def from_object(app: Celery, **settings: Any) -> None:
    app.config_from_object(types.SimpleNamespace(**settings))


def from_object_forced(app: Celery, **settings: Any) -> None:
    app.config_from_object(types.SimpleNamespace(**settings), force=True)


def from_object_old_names(app: Celery, **settings: Any) -> None:
    app.config_from_object(types.SimpleNamespace(**{OLD[name]: value for name, value in settings.items()}))


def from_object_namespace(app: Celery, **settings: Any) -> None:
    named = {f"CELERY_{name.upper()}": value for name, value in settings.items()}
    app.config_from_object(types.SimpleNamespace(**named), namespace="CELERY")


def from_module(app: Celery, **settings: Any) -> None:
    sys.modules["celeryscope_test_config"] = module = types.ModuleType("celeryscope_test_config")
    vars(module).update(settings)
    app.config_from_object("celeryscope_test_config")


def from_conf_update(app: Celery, **settings: Any) -> None:
    app.conf.update(**settings)


def from_conf_attributes(app: Celery, **settings: Any) -> None:
    for name, value in settings.items():
        setattr(app.conf, name, value)


def from_add_defaults(app: Celery, **settings: Any) -> None:
    app.add_defaults(settings)


def from_lazy_add_defaults(app: Celery, **settings: Any) -> None:
    app.add_defaults(lambda: settings)


def from_on_configure(app: Celery, **settings: Any) -> None:
    def receiver(**_: Any) -> None:
        app.config_from_object(types.SimpleNamespace(**settings))

    app.on_configure.connect(receiver, weak=False)


WAYS = [
    from_object,
    from_object_forced,
    from_object_old_names,
    from_object_namespace,
    from_module,
    from_conf_update,
    from_conf_attributes,
    from_add_defaults,
    from_lazy_add_defaults,
]


@pytest.mark.parametrize("configure", [*WAYS, from_on_configure], ids=lambda way: way.__name__)
@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("name", NEW)
def test_an_explicit_choice_before_wins(configure: Callable[..., None], name, explicit):
    """Whichever way it was given; the other setting, left alone, is switched on."""
    app = make()
    configure(app, **{name: explicit})
    celeryscope.install(app)
    assert app.conf[name] is explicit
    assert app.conf[NEW[1 - NEW.index(name)]] is True


@pytest.mark.parametrize("read_between", [False, True], ids=["lazy", "read between"])
@pytest.mark.parametrize("configure", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", NEW)
def test_an_explicit_no_after_wins(configure: Callable[..., None], name, read_between):
    """Also where the configuration had been read with our default in it."""
    app = make()
    celeryscope.install(app)
    if read_between:
        assert values(app) == (True, True)
    configure(app, **{name: False})
    assert app.conf[name] is False
    assert app.conf[NEW[1 - NEW.index(name)]] is True


@pytest.mark.parametrize("name", NEW)
def test_an_explicit_no_in_the_constructor_wins(name):
    app = make(**{name: False})
    celeryscope.install(app)
    assert app.conf[name] is False
    assert app.conf[NEW[1 - NEW.index(name)]] is True


def test_a_configuration_in_old_names_gets_the_events_too():
    app = make()
    app.config_from_object(types.SimpleNamespace(CELERY_TASK_SERIALIZER="pickle", CELERY_RESULT_EXPIRES=5))
    celeryscope.install(app)
    assert values(app) == (True, True)
    assert app.conf.task_serializer == "pickle"


def test_a_configuration_read_again_gets_the_events_again():
    app = make()
    celeryscope.install(app)
    from_object_forced(app, task_serializer="pickle")
    from_object_forced(app, task_serializer="json")
    assert values(app) == (True, True)


@pytest.mark.parametrize(("option", "expected"), [(True, True), (None, False)], ids=["-E", "no -E"])
def test_the_workers_own_option_still_wins(option, expected, monkeypatch):
    """`celery worker -E` against a configuration that says False, and that configuration without -E."""
    # Who makes a worker may not wait for results any more; other tests of this process do.
    monkeypatch.setattr("celery._state._task_join_will_block", False)
    app = make(worker_send_task_events=False, broker_url="memory://")
    celeryscope.install(app)
    assert WorkController(app, task_events=option, pool="solo").task_events is expected


def test_installing_twice_is_installing_once():
    app = make()
    celeryscope.install(app)
    receivers = len(app.on_after_configure.receivers)
    celeryscope.install(app)
    assert len(app.on_after_configure.receivers) == receivers
    assert values(app) == (True, True)


def test_installing_reads_no_configuration_early(monkeypatch):
    """A Django project is not ready yet where the app is made; whoever reads settings there breaks it."""
    app = make()
    app.config_from_object("there.is.no.such.module")
    celeryscope.install(app)
    assert not app.configured


def test_other_apps_keep_celerys_defaults():
    celeryscope.install(make())
    assert values(make()) == (False, False)


def test_the_current_app_proxy_is_accepted():
    app = Celery("proxied", set_as_current=True)
    celeryscope.install(current_app)
    assert values(app) == (True, True)


def test_a_subclass_is_accepted():
    class Special(BaseCelery):
        pass

    app = Special("special", set_as_current=False)
    celeryscope.install(app)
    assert values(app) == (True, True)


def test_what_is_shown_as_the_users_own_settings_stays_the_users():
    """`celery report` and `inspect conf` list what the user set, and that has not changed."""
    app = make()
    celeryscope.install(app)
    assert not set(NEW) & set(app.conf.table())


@pytest.mark.parametrize("wrong", [None, "proj", object(), Celery], ids=["None", "text", "object", "class"])
def test_anything_but_an_app_is_refused_at_once(wrong):
    with pytest.raises(TypeError, match="takes your Celery app"):
        celeryscope.install(wrong)


def test_an_unknown_option_is_refused_at_once():
    with pytest.raises(TypeError, match="no_such_option"):
        celeryscope.install(make(), no_such_option=True)


@pytest.mark.guard_swallows
def test_a_fault_of_ours_stays_ours(monkeypatch, caplog):
    """Nothing in install() may reach the user's start-up, and the reason is in the log."""

    def broken(app: Celery) -> None:
        raise RuntimeError("our bug")

    monkeypatch.setattr(event_settings, "connect", broken)
    monkeypatch.setattr(Guard, "_logged", {})
    app = make()
    celeryscope.install(app)
    assert values(app) == (False, False)
    assert "our bug" in caplog.text


@pytest.mark.guard_swallows
def test_a_configuration_of_a_kind_of_its_own_is_left_alone(monkeypatch):
    """Somebody put an object of their own in the place of app.conf: no layers to put a default under."""
    monkeypatch.setattr(Guard, "_logged", {})
    app = make()
    assert app.conf.task_serializer == "json"
    app.conf = types.SimpleNamespace(worker_send_task_events=False)
    celeryscope.install(app)
    assert app.conf.worker_send_task_events is False


def test_an_installed_app_can_be_pickled():
    """Pools that spawn send the app to their children."""
    app = make()
    celeryscope.install(app)
    assert values(app) == (True, True)
    again = pickle.loads(pickle.dumps(app))
    celeryscope.install(again)
    assert values(again) == (True, True)


def test_a_forked_child_has_the_same_settings():
    app = make()
    celeryscope.install(app)
    child = os.fork()
    if child == 0:
        os._exit(0 if values(app) == (True, True) else 1)
    assert os.waitpid(child, 0)[1] == 0


def in_fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_us_loads_the_standard_library_at_most():
    """Celery is the user's own import; nothing else of ours or of anybody's is paid for before install()."""
    loaded = in_fresh_python(
        "import sys; before = set(sys.modules); import celeryscope\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))"
    ).split()
    ours = {name for name in loaded if not name.startswith("__editable__")}
    assert ours == {"celeryscope"}


def test_installing_loads_celery_and_nothing_that_an_extra_brings():
    loaded = in_fresh_python(
        "import sys, celery\napp = celery.Celery('proj'); app.conf.task_serializer; before = set(sys.modules)\n"
        "import celeryscope; celeryscope.install(app)\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))"
    ).split()
    ours = {name for name in loaded if not name.startswith("__editable__")}
    assert ours <= {"celeryscope", "celery", "kombu", "vine", "amqp", "billiard"}


@pytest.mark.repository
def test_all_that_it_starts_is_under_the_contract_for_users_processes():
    """Neither importing Celery's friends nor blocking is checked for a module that the two lists do not name."""
    code = (
        "import sys, celery, celeryscope; celeryscope.install(celery.Celery('x', broker='memory://'));"
        "import celeryscope.alerts.publisher;"  # with the first failure
        "print(*(name for name in sys.modules if name.startswith('celeryscope.')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    started = set(run.stdout.split()) - {"celeryscope.alerts", "celeryscope.monitor"}
    assert "celeryscope.monitor.beat_runs" in started
    contract = (
        (ROOT / "pyproject.toml").read_text().partition("needs Celery alone")[2].partition("forbidden_modules")[0]
    )
    assert {name for name in started if f'"{name}"' not in contract} == set()
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert {name for name in started if f"{name.rpartition('.')[2]}.py`" not in page} == set()
