"""Reads an HTTP answer up to a size and within a time: whoever answers may go on for ever (edge)."""

from __future__ import annotations

import time
from typing import Any

import httpx

LARGEST = 64 << 20
"""Bytes; 10 000 queues of RabbitMQ's management API are some 3 MB."""
_OF_THE_WIRE = frozenset({"content-encoding", "content-length", "transfer-encoding"})


def answer_of(client: httpx.Client, method: str, path: str, *, seconds: float, **content: Any) -> httpx.Response:
    """Send a request and read its answer; `seconds` is for all of it, the client's timeout for a step.

    Raises:
        httpx.HTTPError: no answer, or one that is too long or takes too long.
    """
    deadline, pieces, size = time.monotonic() + seconds, [], 0
    with client.stream(method, path, **content) as answer:
        for piece in answer.iter_bytes():
            size += len(piece)
            if size > LARGEST:
                raise httpx.DecodingError(f"the answer is longer than {LARGEST >> 20} MB", request=answer.request)
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("the answer takes too long", request=answer.request)
            pieces.append(piece)
    headers = [(name, value) for name, value in answer.headers.multi_items() if name.lower() not in _OF_THE_WIRE]
    return httpx.Response(
        answer.status_code,
        headers=headers,
        content=b"".join(pieces),
        request=answer.request,
        extensions={"reason_phrase": answer.reason_phrase.encode("ascii", "replace")},
    )
