"""A Flask app and its Celery app: celery -A shop.app worker; flask --app shop run."""

import celeryscope
from celery import Celery, Task, shared_task
from flask import Flask


def make_celery(flask: Flask) -> Celery:
    """Return the Celery app, whose tasks run in Flask's application context."""

    class ContextTask(Task):
        def __call__(self, *args: object, **kwargs: object) -> object:
            with flask.app_context():
                return self.run(*args, **kwargs)

    app = Celery(flask.name, task_cls=ContextTask)
    app.config_from_object(flask.config["CELERY"])
    celeryscope.install(app, environment="production", release="4.2")
    app.set_default()
    return app


@shared_task
def place_order(number: int) -> None:
    """Do what takes long."""


flask = Flask("shop")
flask.config["CELERY"] = {"broker_url": "redis://localhost:6379/0"}
app = make_celery(flask)


@flask.post("/orders/<int:number>")
def order(number: int) -> tuple[dict[str, str], int]:
    """Answer at once; a worker does the rest."""
    return {"task": place_order.delay(number).id}, 202
