"""The demo's customers: sends the shop's tasks at a steady pace, and revokes some of them."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

from celery import chain, chord, group

from . import tasks
from .app import app

RARE = 12
"""Ordinary rounds to one round of everything that is rare."""


def ordinary(number: int) -> None:
    """Send what a shop does all day."""
    tasks.place_order.delay(number)
    tasks.charge.delay(number)
    tasks.send_email.delay(random.choice(["welcome", "receipt", "shipping"]))
    chain(tasks.resize.s(number), tasks.publish_image.s()).delay()


def compose(number: int) -> None:
    """Send a chord, a group and a chain of them."""
    chord([tasks.report_part.s(part) for part in range(4)])(tasks.merge_report.s())
    group(tasks.place_order.s(number * 1000 + part) for part in range(3)).delay()


def delay_some(_number: int) -> None:
    """Send tasks with a countdown: one that runs, one that is revoked before, one that expires before."""
    tasks.send_newsletter.apply_async(countdown=5)
    tasks.send_newsletter.apply_async(countdown=4).revoke()
    tasks.send_newsletter.apply_async(countdown=3, expires=1)


def go_wrong(_number: int) -> None:
    """Send what is rejected, unknown, or runs into its time limit."""
    tasks.deliver_webhook.delay()
    tasks.forecast.delay()
    app.send_task("shop.legacy.cleanup")


def be_slow(_number: int) -> None:
    """Send a slow report, and an export that is terminated soon after it has started."""
    tasks.daily_report.delay()
    result = tasks.export.delay()
    pending.append((time.monotonic() + 2, lambda: result.revoke(terminate=True)))


RARITIES: tuple[Callable[[int], None], ...] = (compose, delay_some, go_wrong, be_slow)
pending: list[tuple[float, Callable[[], None]]] = []


def run(rate: float) -> None:
    """Send for ever, about `rate` messages a second."""
    number = 0
    while True:
        number += 1
        ordinary(number)
        # All rarities in the first rounds, so that whoever looks soon sees them; then now and then.
        if number <= len(RARITIES) or number % RARE == 0:
            RARITIES[number % len(RARITIES) if number <= len(RARITIES) else number // RARE % len(RARITIES)](number)
        for entry in [entry for entry in pending if entry[0] <= time.monotonic()]:
            pending.remove(entry)
            entry[1]()
        time.sleep(4 / rate)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=8.0)
    run(parser.parse_args().rate)
