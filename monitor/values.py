"""The values that settings are made of, and how their texts are read; every ValueError says what it must look like."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from pydantic import SecretStr

from .doctor.facts import is_internal, is_local

NAME = re.compile(r"[a-z0-9_-]+")
_NAMED = re.compile(r"(?P<name>[^=/:]*)=(?P<url>[a-zA-Z][a-zA-Z0-9+.-]*://.*)", re.DOTALL)
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+._-]*(:[A-Za-z_]\w*)?://")
_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


@dataclass(frozen=True)
class Target:
    """A server that has a URL, which may hold a password, and a name; the name is empty where there is only one."""

    name: str
    url: SecretStr


class Address(NamedTuple):
    """Where to listen; an empty host means all addresses, port 0 any free port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def items(raw: object) -> list[str]:
    """Return the texts of a repeated option, of a TOML list, or of a variable with blanks between them."""
    if isinstance(raw, str):
        return raw.split()
    if isinstance(raw, (list, tuple)) and all(isinstance(item, str) for item in raw):
        return list(raw)
    raise ValueError("must be a text or a list of texts")


def targets(raw: object) -> tuple[Target, ...]:
    """Read URL, or NAME=URL several times, or a table of names and URLs."""
    if isinstance(raw, Mapping):
        found = [_target(str(name), url) for name, url in raw.items()]
    else:
        found = [_target_text(text) for text in items(raw)]
    names = [target.name for target in found]
    if len(found) > 1 and "" in names:
        raise ValueError("must name each one where there are several: NAME=URL")
    if len(set(names)) < len(names):
        raise ValueError("must not use a name twice")
    return tuple(found)


def _target_text(text: str) -> Target:
    match = _NAMED.fullmatch(text)
    return _target(match["name"], match["url"], named=True) if match else _target("", text)


def _target(name: str, url: object, *, named: bool = False) -> Target:
    if (name or named) and not NAME.fullmatch(name):
        raise ValueError(f"must have a name of small letters, digits, _ and -, which {name!r} is not")
    if not isinstance(url, str) or not _SCHEME.match(url):
        raise ValueError("must be a URL such as redis://host:6379/0 or amqp://user:password@host//")
    _check_url(url)
    return Target(name, SecretStr(url))


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        _ = parts.port if "," not in url and ";" not in url else None  # reading it checks it
    except ValueError:
        # Not its own words: they quote what it takes for the port, which is the password where an @ is missing.
        raise ValueError("must be a URL with a port between 0 and 65535") from None
    for key, path in parse_qsl(parts.query):
        if key in _TLS_FILES:
            try:
                readable_file(path)
            except ValueError as error:
                raise ValueError(f"{key} {error}") from None


def web_address(url: str) -> str:
    """Check the address of a web page, without a password in it; an empty one stays empty."""
    if not url:
        return url
    if not url.startswith(("http://", "https://")):
        raise ValueError("must be an address that starts with http:// or https://")
    host = _host(url)
    if "@" in urlsplit(url).netloc:
        raise ValueError("must be without a user or password")
    if not host or not url.isprintable() or any(character in url for character in " <>\\\"'"):
        raise ValueError("must be an address with a host, and without blanks, quotes and backslashes")
    return url


def confidential_address(url: str) -> str:
    """Check the address that a credential is sent to: https, unless it does not leave this machine or its network."""
    web_address(url)
    host = _host(url)
    if url.startswith("http://") and not is_near(host):
        raise ValueError(f"must start with https://: {host} would get the credential in clear text")
    return url


def is_near(host: str) -> bool:
    """Tell whether a host is this machine, a private address, or a name that only one network knows."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return is_local(host) or is_internal(host)
    # What is not global is private, or shared (100.64.0.0/10): of Kubernetes' pods at AWS, and of Tailscale.
    return not address.is_global and not address.is_unspecified


def _host(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port  # reading it checks it
    except ValueError:
        raise ValueError("must be an address with a host and a port between 0 and 65535") from None
    return parts.hostname or ""


def readable_file(raw: object) -> Path:
    """Read the path of a file that can be opened."""
    path = Path(str(raw))
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"must be a readable file, {str(path)!r}: {os.strerror(error.errno or 0)}") from None
    return path


def address(raw: object) -> Address:
    """Read HOST:PORT, [IPV6]:PORT, or :PORT for all addresses."""
    text = str(raw).strip()
    match = re.fullmatch(r"(\[(?P<six>[0-9a-fA-F:.%\w]+)\]|(?P<host>[^:\[\]\s]*)):(?P<port>[0-9]{1,5})", text)
    if match is None or int(match["port"]) > 65535:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:9808, or :9808 for all addresses")
    return Address(match["six"] or match["host"] or "", int(match["port"]))


def pairs(separator: str = "=", value: Callable[[str], Any] = str) -> Callable[[object], dict[str, Any]]:
    """Return a reader of KEY=VALUE items or of a table; `value` reads each VALUE given as text."""

    def read(raw: object) -> dict[str, Any]:
        if isinstance(raw, Mapping):
            return {str(key): entry for key, entry in raw.items()}
        found = {}
        for item in items(raw):
            key, equals, text = item.partition(separator)
            if not key or not equals:
                raise ValueError("must be KEY=VALUE")
            found[key] = value(text)
        return found

    return read


def numbers(text: str) -> tuple[float, ...]:
    """Read numbers with commas between them."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError("must be numbers with commas between them, such as 0.1,1,10") from None
