"""The recipes for Django, FastAPI and Flask are run, and the page shows what was run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest
from helpers import ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.repository

EXAMPLES = ROOT / "docs" / "examples"

CLIENTS = {
    "fastapi": """
        from fastapi.testclient import TestClient
        from shop import api, app
        answer = TestClient(api).post("/orders/7")
        status = answer.status_code
    """,
    "flask": """
        from shop import app, flask
        status = flask.test_client().post("/orders/7").status_code
    """,
    "django": """
        import django
        from proj.celery import app
        django.setup()
        from unittest.mock import patch
        from django.db import transaction
        from django.test import Client
        # There is no database here, so there is no transaction to wait for.
        with patch.object(transaction, "on_commit", lambda function, **_: function()):
            status = Client().post("/orders/7").status_code
    """,
}

SENT = """
import json
with app.connection_for_read() as connection:
    message = connection.default_channel.basic_get("celery", no_ack=True)
    task = app.tasks[message.headers["task"]]
    print(json.dumps({
        "status": status,
        "task": message.headers["task"],
        "stamp": message.headers.get("celeryscope-sent-at"),
        "events": [app.conf.worker_send_task_events, app.conf.task_send_sent_event],
        "result": task(7),
    }))
"""


@pytest.mark.parametrize("name", sorted(CLIENTS))
def test_a_recipe_works(name: str, tmp_path: Path):
    """The web page sends the task, stamped; events are on; and the worker's side finds the task and runs it."""
    script = textwrap.dedent(CLIENTS[name])
    (tmp_path / "client.py").write_text(script + "\n" + SENT)
    folder = EXAMPLES / name
    done = subprocess.run(
        [sys.executable, tmp_path / "client.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            "CELERY_BROKER_URL": "memory://",
            "SECRET_KEY": "only for this test",
        },
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["status"] == 202
    assert told["task"].endswith("place_order")
    assert float(told["stamp"]) > 0
    assert told["events"] == [True, True]
    assert told["result"] is None


def test_the_page_shows_what_was_run():
    page = (ROOT / "docs" / "recipes.md").read_text()
    shown = dict(re.findall(r"`(\w+/[\w/]+\.py)`:\n\n```python\n(.*?)```", page, re.DOTALL))
    assert set(shown) == {
        *("django/proj/__init__.py", "django/proj/celery.py", "django/proj/tasks.py", "django/proj/urls.py"),
        *("fastapi/shop.py", "flask/shop.py"),
    }
    for name, code in shown.items():
        assert code == (EXAMPLES / name).read_text(), name
