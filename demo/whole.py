"""What the stack of docker-compose.yml has beside the demo's services: the web service, and alerts from Prometheus."""

from __future__ import annotations

import re
import shutil
import sys
from typing import TYPE_CHECKING

from . import stack as parts
from .inbox import TOKEN
from .processes import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from .stack import Stack


def api(stack: Stack) -> None:
    """Start the example's web service, on its usual port if that is free."""
    for _ in range(parts.ATTEMPTS):
        port = free_port(8000)
        url = f"http://127.0.0.1:{port}"
        arguments = ("-m", "uvicorn", "celeryscope.demo.api:app", "--port", str(port), "--no-access-log")
        child = stack.run("api", sys.executable, *arguments)
        if stack.until(child, lambda url=url: parts.answers(f"{url}/healthz")):  # type: ignore[misc]
            stack.urls["api"] = f"{url}/docs"
            return
    raise parts.DemoError(f"the web service does not start:\n{child.tail()}")


def alertmanager(stack: Stack) -> None:
    """Start Alertmanager where it is installed, and have Prometheus load the rules and tell it."""
    binary = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if binary is None:
        return
    folder = stack.nursery.folder
    write_rules(stack)
    for _ in range(parts.ATTEMPTS):
        port = free_port()
        child = stack.run(
            "alertmanager",
            binary,
            f"--config.file={folder / 'alertmanager' / 'alertmanager.yml'}",
            f"--storage.path={folder / 'alertmanager-data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",
        )
        url = f"http://127.0.0.1:{port}"
        if stack.until(child, lambda url=url: parts.answers(f"{url}/-/ready")):  # type: ignore[misc]
            stack.urls["alertmanager"] = url
            stack.prometheus |= {
                "rule_files": [str(folder / "rules" / "*.yml")],
                "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}]},
            }
            stack.scraped["alertmanager"] = f"127.0.0.1:{port}"
            # The alerter listens on any free port and says on which.
            if found := re.search(r"serves http://(\S+?)/metrics", stack.services["alerter"].log.read_text()):
                stack.scraped["celeryscope-alerter"] = found[1]
            return
    raise parts.DemoError(f"Alertmanager does not start:\n{child.tail()}")


def write_rules(stack: Stack) -> None:
    """Write the rules and Alertmanager's configuration, with the addresses of this run."""
    from ..dashboards.rules_cli import outputs, write
    from ..dashboards.thresholds import defaults

    folder, slack = stack.nursery.folder, stack.urls["slack inbox"]
    token = folder / "slack-token"
    token.write_text(TOKEN)
    settings = defaults(
        flower_url=stack.flower_url,
        slack_channel="#alerts",
        alertmanager_slack_url=f"{slack}/api/chat.postMessage",
        alertmanager_token_file=str(token),
        alertmanager_watchdog_url=f"{slack}/dead-mans-switch",
        alertmanager_fallback_url=f"{slack}/fallback",
        alertmanager_group_wait="5s",
    )
    write(folder, outputs(settings))


SERVICES: tuple[Callable[[Stack], None], ...] = (
    *(service for service in parts.SERVICES if service is not parts.prometheus),
    api,
    alertmanager,
    parts.prometheus,
)
