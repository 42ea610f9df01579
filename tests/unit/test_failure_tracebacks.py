"""What is read from a traceback's text, against tracebacks that Python itself printed."""

from __future__ import annotations

import sysconfig
import traceback
from typing import TYPE_CHECKING

import pytest
from celeryscope.alerts.tracebacks import READ_LENGTH, Trace, UserCode, bounded, parse

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = __file__


class Local(Exception):
    """An exception of this module."""


def text_of(function: Callable[[], object]) -> str:
    try:
        function()
    except BaseException:  # the tests raise SystemExit, too
        return traceback.format_exc()
    raise AssertionError("it did not raise")


def user_code(*packages: str) -> UserCode:
    paths = sysconfig.get_paths()
    return UserCode(["/srv/app"], [paths["stdlib"], paths["platstdlib"]], packages)


def simple() -> None:
    raise ValueError("of no value")


def without_message() -> None:
    raise Local


def many_lines() -> None:
    raise Local("first\n  second, indented\n\nTraceback (most recent call last):\nfourth: 4")


def caused() -> None:
    try:
        simple()
    except ValueError as error:
        raise Local("the outermost") from error


def on_the_way() -> None:
    try:
        caused()
    except Local:
        without_message()


def no_cause() -> None:
    try:
        simple()
    except ValueError:
        raise Local("alone") from None


def recursive() -> None:
    recursive()


def syntax() -> None:
    compile("x = = 1", "<template>", "exec")


def exits() -> None:
    raise SystemExit(3)


def noted() -> None:
    error = Local("with a note")
    error.__notes__ = ["the note"]  # type: ignore[attr-defined]  # printed from 3.11 on
    raise error


def library() -> None:
    int("x", 99)


@pytest.mark.parametrize(
    ("function", "exception", "message", "innermost"),
    [
        (simple, "ValueError", "of no value", "simple"),
        (without_message, f"{__name__}.Local", "", "without_message"),
        (
            many_lines,
            f"{__name__}.Local",
            "first\n  second, indented\n\nTraceback (most recent call last):\nfourth: 4",
            "many_lines",
        ),
        (caused, f"{__name__}.Local", "the outermost", "caused"),
        (on_the_way, f"{__name__}.Local", "", "without_message"),
        (no_cause, f"{__name__}.Local", "alone", "no_cause"),
        (exits, "SystemExit", "3", "exits"),
    ],
)
def test_reads_what_python_prints(function: Callable[[], object], exception: str, message: str, innermost: str) -> None:
    """Class, message and innermost frame; of a chain those of the exception raised last."""
    trace = parse(text_of(function), exception)
    assert (trace.exception, trace.message) == (exception, message)
    assert trace.frames[-1] == (HERE, innermost)
    assert parse(text_of(function)).exception == exception


def test_a_cause_is_kept_apart() -> None:
    """The frames of what came before in the chain are there, for a failure whose own frames are a library's."""
    trace = parse(text_of(caused))
    assert [function for _, function in trace.frames] == ["text_of", "caused"]
    assert [function for _, function in trace.causes] == ["caused", "simple"]


def test_recursion() -> None:
    """Python folds the repeated lines; the frame is still the function."""
    trace = parse(text_of(recursive))
    assert trace.exception == "RecursionError"
    assert trace.message.startswith("maximum recursion depth exceeded")
    assert trace.frames[-1] == (HERE, "recursive")


def test_syntax_error() -> None:
    """Its `File` line without a function is no frame."""
    trace = parse(text_of(syntax))
    assert (trace.exception, trace.message) == ("SyntaxError", "invalid syntax")
    assert trace.frames[-1] == (HERE, "syntax")


def test_notes_belong_to_the_message() -> None:
    assert parse(text_of(noted)).message.split("\n")[0] == "with a note"


GROUP = """\
  + Exception Group Traceback (most recent call last):
  |   File "/srv/app/shop/tasks.py", line 5, in gather
  |     run_all()
  |   File "/srv/app/shop/pool.py", line 9, in run_all
  |     raise ExceptionGroup("two of them", errors)
  | ExceptionGroup: two of them (2 sub-exceptions)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "/srv/app/shop/card.py", line 7, in charge
    |     raise ValueError("a")
    | ValueError: a
    +---------------- 2 ----------------
    | TypeError: b
    +------------------------------------
"""


def test_exception_group() -> None:
    """A group is one exception: its own class, message and place."""
    trace = parse(GROUP, "ExceptionGroup")
    assert (trace.exception, trace.message) == ("ExceptionGroup", "two of them (2 sub-exceptions)")
    assert trace.frames == [("/srv/app/shop/tasks.py", "gather"), ("/srv/app/shop/pool.py", "run_all")]


def test_a_chain_that_ends_in_a_group() -> None:
    text = (
        'Traceback (most recent call last):\n  File "/srv/app/a.py", line 1, in a\n    b()\nKeyError: 1\n'
        "\nDuring handling of the above exception, another exception occurred:\n\n" + GROUP
    )
    trace = parse(text)
    assert trace.exception == "ExceptionGroup"
    assert trace.causes == [("/srv/app/a.py", "a")]


INNER = (
    'Traceback (most recent call last):\n  File "/srv/app/inner.py", line 1, in inner\n    x()\nKeyError: 1\n'
    "\nThe above exception was the direct cause of the following exception:\n\n"
    'Traceback (most recent call last):\n  File "/srv/app/inner.py", line 2, in outer\n    x()\nOSError: gone'
)


def test_a_traceback_within_a_message() -> None:
    """Where the class is known, what looks like a chain inside a message does not mislead."""
    text = 'Traceback (most recent call last):\n  File "/srv/app/a.py", line 1, in run\n    go()\n'
    text += f"shop.ChildError: {INNER}\n"
    trace = parse(text, "shop.ChildError")
    assert trace.exception == "shop.ChildError"
    assert trace.frames[-1] == ("/srv/app/a.py", "run")


def test_retries_show_what_made_them() -> None:
    """`self.retry(exc=…)` raises Retry while the real exception is handled: that one is wanted."""
    text = INNER.replace("OSError: gone", "celery.exceptions.Retry: Retry in 3s")
    assert parse(text, "celery.exceptions.Retry", skip=frozenset({"celery.exceptions.Retry"})).exception == "KeyError"
    assert parse(text).exception == "celery.exceptions.Retry"


def test_what_celery_wraps_is_unwrapped() -> None:
    text = (
        'Traceback (most recent call last):\n  File "/srv/app/a.py", line 1, in run\n    go()\n'
        "celery.utils.serialization.UnpickleableExceptionWrapper: CardError('declined', 7)\n"
    )
    trace = parse(text, "celery.utils.serialization.UnpickleableExceptionWrapper")
    assert (trace.exception, trace.message) == ("CardError", "'declined', 7")


@pytest.mark.parametrize(
    "text", ["", "\n\n", "no traceback at all", "Traceback (most recent call last):", "  x", "+-", "é: ü"]
)
def test_any_text_is_read(text: str) -> None:
    """What is no traceback gives the class that is known from elsewhere."""
    trace = parse(text, "shop.CardError")
    assert isinstance(trace, Trace)
    assert trace.exception


def test_a_text_without_a_class_is_unknown() -> None:
    assert parse("").exception == "unknown"
    assert parse("", "shop.CardError").exception == "shop.CardError"


def test_a_huge_text_is_read_at_both_ends() -> None:
    """100 MB of message cost no more than 64 kB, and the frames before it are found."""
    text = (
        'Traceback (most recent call last):\n  File "/srv/app/a.py", line 1, in run\n    go()\nValueError: '
        + "x" * 100_000_000
    )
    assert len(bounded(text)) < READ_LENGTH + 100
    trace = parse(text, "ValueError")
    assert trace.exception == "ValueError"
    assert trace.frames == [("/srv/app/a.py", "run")]


@pytest.mark.parametrize(
    ("path", "module"),
    [
        ("/srv/app/shop/payments/tasks.py", "shop.payments.tasks"),
        ("/srv/app/shop/__init__.py", "shop"),
        ("/srv/app/.venv/lib/python3.12/site-packages/requests/api.py", None),
        ("/usr/lib/python3/dist-packages/yaml/__init__.py", None),
        ("/srv/app/.venv/lib/python3.12/site-packages/ourlib/client.py", "ourlib.client"),
        (sysconfig.get_paths()["stdlib"] + "/json/decoder.py", None),
        ("<frozen importlib._bootstrap>", None),
        ("<string>", None),
        ("/elsewhere/jobs/nightly.py", "jobs.nightly"),
        ("C:\\work\\jobs\\nightly.py", "jobs.nightly"),
        ("/srv/app/celery/app/trace.py", None),
    ],
)
def test_whose_code_it_is(path: str, module: str | None) -> None:
    assert user_code("ourlib").module(path) == module


def test_the_innermost_frame_of_the_user() -> None:
    """Frames of libraries below it do not count; without any of its own, the exception's cause tells the place."""
    code = user_code()
    ours, theirs = ("/srv/app/shop/tasks.py", "charge"), ("/x/site-packages/requests/api.py", "get")
    assert code.innermost(Trace("E", "", [ours, theirs])) == "shop.tasks:charge"
    assert code.innermost(Trace("E", "", [theirs], [ours])) == "shop.tasks:charge"
    assert code.innermost(Trace("E", "", [theirs])) is None


def test_a_new_release_folder_is_the_same_place() -> None:
    """Deploys into numbered folders do not make new incidents."""
    marks = [
        UserCode([f"/srv/releases/{number}"], []).innermost(
            Trace("E", "", [(f"/srv/releases/{number}/shop/tasks.py", "f")])
        )
        for number in (17, 18)
    ]
    assert marks == ["shop.tasks:f"] * 2
