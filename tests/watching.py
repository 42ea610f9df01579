"""Debian's Prometheus and Alertmanager for tests: on free ports, fast, asked over their APIs, always ended."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import yaml
from helpers import Process, free_port, system_command

FAST = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
PATIENCE = 90.0
"""Seconds in which a server must have started, on a busy machine."""


class Server:
    """A server with an HTTP API that takes its port as an option; another port is tried if somebody was quicker."""

    def __init__(self, folder: Path, command: str, says: str, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for attempt in range(5):
            port = free_port()
            argv = [system_command(command), f"--web.listen-address=127.0.0.1:{port}", *options]
            self.process = Process(argv, log=folder / f"{command}{attempt}.log", cwd=folder)
            try:
                self.process.wait_for(says, PATIENCE)
            except RuntimeError as error:
                if "address already in use" not in str(error):
                    raise
                continue
            self.address = f"127.0.0.1:{port}"
            self.client = httpx.Client(base_url=f"http://{self.address}", timeout=30)
            return
        raise RuntimeError(f"{command} does not start; see {folder}")

    def stop(self) -> None:
        self.client.close()
        self.process.stop()


class Alertmanager(Server):
    """An Alertmanager without peers, on the configuration file given."""

    def __init__(self, folder: Path, config: Path) -> None:
        options = [f"--config.file={config}", f"--storage.path={folder / 'data'}", "--cluster.listen-address="]
        super().__init__(folder, "prometheus-alertmanager", "Listening on", *options)


class Prometheus(Server):
    """A Prometheus that scrapes `jobs` every second and evaluates `rules` as often.

    `jobs` are addresses by name; more than one of a job have commas between them.
    """

    def __init__(
        self, folder: Path, jobs: Mapping[str, str], rules: Sequence[Path] = (), alertmanager: str = ""
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        targets = [{"static_configs": [{"targets": [alertmanager]}]}] if alertmanager else []
        config = {
            "global": FAST,
            "rule_files": [str(path) for path in rules],
            "alerting": {"alertmanagers": targets},
            "scrape_configs": [
                {"job_name": name, "static_configs": [{"targets": addresses.split(",")}]}
                for name, addresses in jobs.items()
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        options = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        # What fires before it knows its Alertmanager is dropped, and said again only after this delay.
        options.append("--rules.alert.resend-delay=1s")
        super().__init__(folder, "prometheus", "Server is ready to receive web requests", *options)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples of an instant query."""
        return self._ask("query", query=expression)

    def query_range(self, expression: str, *, minutes: float = 5, step: str = "5s") -> list[dict[str, Any]]:
        """Return the series of the last minutes."""
        now = time.time()
        return self._ask("query_range", query=expression, start=str(now - 60 * minutes), end=str(now), step=step)

    def values(self, expression: str) -> list[float]:
        """Return the values of an instant query that are numbers."""
        values = [float(sample["value"][1]) for sample in self.query(expression)]
        return [value for value in values if not math.isnan(value)]

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        return {sample["metric"]["alertname"] for sample in self.query('ALERTS{alertstate="firing"}')}

    def _ask(self, kind: str, **parameters: str) -> list[dict[str, Any]]:
        answer = self.client.post(f"/api/v1/{kind}", data=parameters).json()
        assert answer["status"] == "success", f"{parameters['query']}: {answer}"
        return list(answer["data"]["result"])


@contextmanager
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A webhook's address, and the list of what is posted to it; `path` is where to."""
    posted: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            posted.append({"path": self.path, **body})
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", posted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
