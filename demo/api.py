"""The example's web service: FastAPI as a producer of the shop's tasks, as a user's own would be."""

from __future__ import annotations

from fastapi import FastAPI
from pydantic import BaseModel, Field

from . import tasks
from .app import app as celery_app

app = FastAPI(title="shop", description="The example behind celeryscope's Compose stack: each call sends tasks.")


class Order(BaseModel):
    """What is ordered."""

    number: int = Field(ge=0, lt=2**31)


class Sent(BaseModel):
    """The tasks that were sent: name → id."""

    tasks: dict[str, str]


class Known(BaseModel):
    """What the result backend says of a task; PENDING is also what it says of one that it does not know."""

    id: str
    state: str


@app.post("/orders", status_code=202)
def place_order(order: Order) -> Sent:
    """Place an order, charge the card and send a receipt: three tasks, two queues."""
    placed = tasks.place_order.delay(order.number)
    charged = tasks.charge.delay(order.number)
    mailed = tasks.send_email.delay("receipt")
    return Sent(
        tasks={"shop.orders.place": placed.id, "shop.payments.charge": charged.id, "shop.email.send": mailed.id}
    )


@app.post("/exports", status_code=202)
def export() -> Sent:
    """Start an export that takes 20 seconds: long enough to be revoked."""
    return Sent(tasks={"shop.reports.export": tasks.export.delay().id})


@app.post("/stock-syncs", status_code=202)
def sync_stock() -> Sent:
    """Start what fails each time, after two retries."""
    return Sent(tasks={"shop.stock.sync": tasks.sync_stock.delay().id})


@app.get("/tasks/{task_id}")
def task(task_id: str) -> Known:
    """Tell how far a task is."""
    return Known(id=task_id, state=celery_app.AsyncResult(task_id).state)


@app.get("/healthz")
def healthz() -> dict[str, str]:
    """Say that this process serves; whether the broker does is not this one's to say."""
    return {"status": "ok"}
