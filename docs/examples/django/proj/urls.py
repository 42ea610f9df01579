"""One page: it answers at once, and a worker does the rest."""

from django.http import HttpRequest, JsonResponse
from django.urls import path

from .tasks import place_order


def order(_request: HttpRequest, number: int) -> JsonResponse:
    """Send the task once the transaction is committed: delay_on_commit, as Celery's own documentation advises."""
    place_order.delay_on_commit(number)
    return JsonResponse({"order": number}, status=202)


urlpatterns = [path("orders/<int:number>", order)]
