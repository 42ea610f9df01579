"""The shop's tasks: every way in which a Celery task can end, at a pace that people can watch."""

from __future__ import annotations

import random
import time
from typing import Any

from celery import Task, shared_task
from celery.exceptions import Ignore, Reject

BAD_SECONDS = 12
"""So long in each minute mails fail, and then no more: an incident that opens, is counted and is resolved."""


class PaymentDeclinedError(Exception):
    """The bank said no: a failure that no retry can mend."""


class BankUnavailableError(Exception):
    """The bank did not answer: worth another attempt."""


class MailServerError(Exception):
    """The mail server refused the message."""


@shared_task(name="shop.orders.place")
def place_order(order: int) -> int:
    """Succeed, quickly."""
    time.sleep(random.uniform(0.005, 0.08))
    return order


@shared_task(  # type: ignore[call-overload,untyped-decorator] # Celery's stubs know of no further options
    name="shop.payments.charge",
    autoretry_for=(BankUnavailableError,),
    retry_backoff=1,
    retry_backoff_max=4,
    retry_jitter=True,
    max_retries=3,
    celeryscope={
        "channel": "#payments",
        "severity": "critical",
        "runbook": "https://wiki.example.com/runbooks/payments",
        "include_args": ["order"],
    },
)
def charge(order: int) -> int:
    """Succeed mostly; fail sometimes; retry with backoff, and mostly succeed then."""
    time.sleep(random.uniform(0.02, 0.2))
    luck = random.random()
    if luck < 0.05:
        raise PaymentDeclinedError(f"card of order {order} was declined")
    if luck < 0.3:
        raise BankUnavailableError("no answer from the bank within 200 ms")
    return order


@shared_task(name="shop.stock.sync", bind=True, max_retries=2)
def sync_stock(self: Task[Any, Any]) -> None:
    """Retry until no attempt is left."""
    try:
        raise ConnectionError("warehouse:8443 refused the connection")
    except ConnectionError as error:
        raise self.retry(exc=error, countdown=1) from error


@shared_task(name="shop.email.send")
def send_email(kind: str) -> str:
    """Succeed after a while; the mail server has a bad time in the first seconds of every minute."""
    time.sleep(random.uniform(0.05, 0.4))
    if time.time() % 60 < BAD_SECONDS and random.random() < 0.5:
        raise MailServerError(f"550 mailbox of the {kind} mail is unavailable")
    return kind


@shared_task(name="shop.email.newsletter")
def send_newsletter() -> None:
    """Run at the ETA that the producer gave."""
    time.sleep(0.1)


@shared_task(name="shop.reports.daily")
def daily_report() -> None:
    """Be slow."""
    time.sleep(random.uniform(2, 4))


@shared_task(name="shop.reports.part")
def report_part(number: int) -> int:
    """Be one part of a chord's header."""
    time.sleep(random.uniform(0.05, 0.3))
    return number


@shared_task(name="shop.reports.merge")
def merge_report(parts: list[int]) -> int:
    """Be the body of a chord."""
    return sum(parts)


@shared_task(name="shop.reports.export")
def export() -> None:
    """Run until somebody revokes it."""
    time.sleep(20)


@shared_task(name="shop.reports.forecast", time_limit=2)
def forecast() -> None:
    """Run into the hard time limit."""
    time.sleep(20)


@shared_task(name="shop.images.resize")
def resize(image: int) -> int:
    """Be the first link of a chain."""
    time.sleep(0.05)
    return image


@shared_task(name="shop.images.publish")
def publish_image(image: int) -> int:
    """Be the second link of a chain."""
    time.sleep(0.02)
    return image


@shared_task(name="shop.cache.warm")
def warm_cache() -> None:
    """End without any event: Celery sends none for Ignore."""
    raise Ignore


@shared_task(  # type: ignore[call-overload,untyped-decorator]
    name="shop.webhooks.deliver", bind=True, acks_late=True, celeryscope={"severity": "info"}
)
def deliver_webhook(self: Task[Any, Any]) -> None:
    """Be rejected: put back into the queue the first time, thrown away the second time. Idempotent."""
    again = bool((self.request.delivery_info or {}).get("redelivered"))
    raise Reject("the receiver is busy", requeue=not again)
