"""A FastAPI service and its Celery app: celery -A shop worker; uvicorn shop:api."""

import celeryscope
from celery import Celery
from fastapi import FastAPI

app = Celery("shop", broker="redis://localhost:6379/0")
celeryscope.install(app, environment="production", release="4.2")

api = FastAPI()


@app.task
def place_order(number: int) -> None:
    """Do what takes long."""


@api.post("/orders/{number}", status_code=202)
def order(number: int) -> dict[str, str]:
    """Answer at once; a worker does the rest."""
    return {"task": place_order.delay(number).id}
