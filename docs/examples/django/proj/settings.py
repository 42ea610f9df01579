"""Django's settings: what has to do with Celery starts with CELERY_."""

import os

SECRET_KEY = os.environ["SECRET_KEY"]
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["proj"]
ROOT_URLCONF = "proj.urls"
USE_TZ = True

CELERY_BROKER_URL = "redis://localhost:6379/0"
