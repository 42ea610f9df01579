"""The image's HEALTHCHECK: asks the service that MODE names whether it is well; exit code 0 when it is.

For other commands: `healthcheck.py http PORT PATH`, or `healthcheck.py connected` for what talks to the broker alone.

A broker that is away makes a worker and a beat unhealthy, but not the monitor and the alerter: nobody should restart
what waits for it. (Whether the monitor sees anything is at /-/ready.)
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

ESTABLISHED = "01"
SECONDS = 5.0


def serves(port: str, path: str) -> bool:
    """Whether a web server answers there; one that wants a password or a certificate first does."""
    handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=_trusting())]
    opener = urllib.request.build_opener(*handlers)
    scheme = "https" if os.environ.get("CELERYSCOPE_WEB_CONFIG_FILE") and _speaks_tls(int(port)) else "http"
    try:
        with opener.open(f"{scheme}://127.0.0.1:{port}{path}", timeout=SECONDS) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code == 401
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)


def _trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False  # it is our own process, by its address
    context.verify_mode = ssl.CERT_NONE
    return context


def _speaks_tls(port: int) -> bool:
    try:
        with (
            socket.create_connection(("127.0.0.1", port), SECONDS) as plain,
            _trusting().wrap_socket(plain),
        ):
            return True
    except ssl.SSLError as error:
        return "WRONG_VERSION_NUMBER" not in str(error) and "HTTP_REQUEST" not in str(error)
    except OSError:
        return False


def connected(broker: str, tables: tuple[str, ...] = ("/proc/net/tcp", "/proc/net/tcp6")) -> bool:
    """Whether a process of this container has a connection to the broker's port.

    A worker always has one. A ping would ask more, but each leaves a reply queue at the broker and imports the app
    anew, and `celeryscope doctor` advises against it; a worker that is connected and does nothing is for the monitor.
    `celeryscope.install(app)` keeps a connection open in beat, which otherwise connects when the first entry is due.
    """
    url = urlsplit(broker.partition(";")[0])
    if not url.hostname:
        return True  # a socket file, or a service without an address: nothing to see here
    port = url.port or {"amqp": 5672, "pyamqp": 5672, "amqps": 5671}.get(url.scheme, 6379)
    rows = [line.split() for table in tables if Path(table).exists() for line in Path(table).read_text().splitlines()]
    return any(row[3] == ESTABLISHED and int(row[2].rpartition(":")[2], 16) == port for row in rows if ":" in row[2])


def broker_url() -> str:
    """Return the broker's URL, from the environment or from the file that it names."""
    file = os.environ.get("CELERY_BROKER_URL_FILE")
    return Path(file).read_text(encoding="utf-8").strip() if file else os.environ.get("CELERY_BROKER_URL", "")


def port_of(variable: str, default: str) -> str:
    """Return the port of the HOST:PORT that a variable holds."""
    return os.environ.get(variable, "").rpartition(":")[2] or default


def flower_path() -> str:
    """Return the path of Flower's own check, which asks for no password."""
    prefix = os.environ.get("CELERYSCOPE_FLOWER_URL_PREFIX", "").strip("/")
    return f"/{prefix}/healthcheck" if prefix else "/healthcheck"


CHECKS: dict[str, Callable[..., bool]] = {
    "monitor": lambda: serves(port_of("CELERYSCOPE_LISTEN", "9808"), "/-/healthy"),
    "alerter": lambda: serves(port_of("CELERYSCOPE_LISTEN", "9809"), "/-/healthy"),
    "flower": lambda: serves(port_of("CELERYSCOPE_FLOWER_LISTEN", "5555"), flower_path()),
    "worker": lambda: connected(broker_url()),
    "beat": lambda: connected(broker_url()),
    "connected": lambda: connected(broker_url()),
    "http": serves,
}


def main(arguments: list[str]) -> int:
    """Return the exit code; a command that is none of ours brings its own check."""
    name, *rest = arguments or [os.environ.get("MODE", "")]
    check = CHECKS.get(name)
    return 0 if check is None or check(*rest) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
