"""The demo's screen: small enough for any terminal, and its numbers are those of the page."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

from celeryscope.demo import screen
from celeryscope.exporters.reading import Page
from rich.console import Console

SERVICES = ("broker", "monitor", "inbox", "flower", "alerter", "worker", "reports", "beat", "customers", "prometheus")


def stack(port: int = 9808, taken: bool = False) -> Any:
    url = f"http://127.0.0.1:{40000 if taken else port}"
    children = {name: SimpleNamespace(pid=1234567 + n, running=name != "beat") for n, name in enumerate(SERVICES)}
    urls = {
        "broker": "redis://127.0.0.1:45699/0",
        "metrics": f"{url}/metrics",
        "slack inbox": "http://127.0.0.1:45700",
        "flower": f"http://127.0.0.1:{40001 if taken else 5555}",
        "prometheus": "http://127.0.0.1:34903",
    }
    flower = {"flower_url": urls["flower"], "flower_password": "0a1b2c3d"}
    return SimpleNamespace(port=port, monitor_url=url, urls=urls, services=children, **flower)


def shown(page: Page | None, given: Any) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=80, highlight=False).print(screen.screen(given, page))
    return out.getvalue().splitlines()


def test_it_fits_80_by_24_and_shows_the_numbers_of_the_page() -> None:
    lines = shown(Page('celery_task_succeeded_total{task="a",queue="q"} 4321\n'), stack())
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert any("succeeded" in line and "4321" in line for line in lines)
    for title, *_ in (*screen.OUTCOMES, *screen.NOW):
        assert any(title in line for line in lines), title


def test_without_a_page_it_shows_where_things_are() -> None:
    assert any("http://127.0.0.1:9808/metrics" in line for line in shown(None, stack()))


def test_it_says_how_to_get_into_flower() -> None:
    assert "http://127.0.0.1:5555  user demo, password 0a1b2c3d" in screen.places(stack())
    assert "CELERYSCOPE_FLOWER_AUTH=demo:0a1b2c3d celeryscope control pool-grow worker\n" in screen.hints(stack())
    assert "pool-grow worker --flower-url http://127.0.0.1:40001" in screen.hints(stack(taken=True))


def test_it_says_where_the_metrics_are_when_the_port_was_taken() -> None:
    assert "port 9808 is taken" in screen.places(stack(taken=True))
    assert "is taken" not in screen.places(stack())
    assert "--url http://127.0.0.1:40000" in screen.hints(stack(taken=True))
