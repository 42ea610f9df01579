"""Knocks at pages without credentials, as a stranger would (edge)."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

import httpx

from .facts import Door, is_local

TIMEOUT = 3.0


def knock(pages: Iterable[tuple[str, str]], transport: httpx.BaseTransport | None = None) -> list[Door]:
    """Ask for each (what, URL); one on this machine's loopback is asked for at its outward address instead."""
    return [door for what, url in pages if (door := _door(what, url, transport))]


def _door(what: str, url: str, transport: httpx.BaseTransport | None) -> Door | None:
    try:
        address = httpx.URL(url).copy_with(userinfo=b"")
    except httpx.InvalidURL:
        return None
    local = is_local(address.host)
    if local:
        outward = own_address()
        if outward is None:
            return Door(what=what, url=url, host=address.host, public=False, open=False)
        address = address.copy_with(host=outward)
    opened = _open(address, transport)
    # What answers on loopback alone is closed.
    opened = False if local and opened is None else opened
    return Door(what=what, url=str(address), host=address.host, public=_public(address.host), open=opened)


def _open(address: httpx.URL, transport: httpx.BaseTransport | None) -> bool | None:
    try:
        # Nothing secret is sent, so whose certificate it is does not matter; a proxy would be another's door.
        with httpx.Client(verify=False, timeout=TIMEOUT, trust_env=False, transport=transport) as client:  # noqa: S501
            answer = client.get(address)
    except (httpx.HTTPError, OSError):
        return None
    return answer.status_code == httpx.codes.OK


def _public(host: str) -> bool:
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return any(ipaddress.ip_address(str(one).partition("%")[0]).is_global for one in addresses)


def own_address() -> str | None:
    """Return the address by which this machine is known outside, None where it has none; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a documentation address: a route is looked up, no packet leaves
        except OSError:
            return None
        found = str(probe.getsockname()[0])
    return None if ipaddress.ip_address(found).is_loopback else found
