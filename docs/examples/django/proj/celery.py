"""The Celery app of the project: celery -A proj worker; celery -A proj beat."""

import os

import celeryscope
from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.settings")

app = Celery("proj")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
celeryscope.install(app, environment="production", release="4.2")
