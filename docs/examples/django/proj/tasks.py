"""Tasks are as they were: nothing in them knows of celeryscope."""

from celery import shared_task


@shared_task
def place_order(number: int) -> None:
    """Do what takes long."""
