"""The project: Django loads the Celery app with it, so that shared tasks use it and install(app) has been called."""

from .celery import app

__all__ = ["app"]
