"""A stand-in for Grafana: its HTTP API for folders and boards, over a real connection."""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "glsa_secret-of-a-service-account"


@dataclass
class FakeGrafana:
    """Grafana's HTTP API over a real connection: folders and boards by uid; `refuse` answers a path with a status."""

    folders: dict[str, str] = field(default_factory=dict)
    boards: dict[str, dict[str, Any]] = field(default_factory=dict)
    into: dict[str, str] = field(default_factory=dict)
    refuse: dict[str, list[int]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, method: str, path: str, body: Any, token: str) -> tuple[int, Any]:
        self.asked.append(f"{method} {path}")
        path = path.removeprefix("/grafana/").partition("?")[0]
        if self.refuse.get(path):
            return self.refuse[path].pop(0), {"message": "so it is"}
        if path == "api/health":
            return 200, {"database": "ok", "version": "12.1.0"}
        if token != f"Bearer {TOKEN}":
            return 401, {"message": "Invalid API key"}
        return getattr(self, f"{method.lower()}_{path.split('/')[1]}")(path, body)

    def get_folders(self, path: str, body: Any) -> tuple[int, Any]:
        return 200, [{"uid": uid, "title": title} for title, uid in self.folders.items()]

    def post_folders(self, path: str, body: Any) -> tuple[int, Any]:
        self.folders[body["title"]] = f"folder{len(self.folders)}"
        return 200, {"uid": self.folders[body["title"]], "title": body["title"]}

    def get_dashboards(self, path: str, body: Any) -> tuple[int, Any]:
        stored = self.boards.get(path.rpartition("/")[2])
        return (200, {"dashboard": stored}) if stored else (404, {"message": "Dashboard not found"})

    def post_dashboards(self, path: str, body: Any) -> tuple[int, Any]:
        board, uid = body["dashboard"], body["dashboard"]["uid"]
        assert "id" in board
        if uid in self.boards and not body["overwrite"]:
            return 412, {"message": "The dashboard has been changed by someone else"}
        self.boards[uid] = {**board, "id": len(self.boards) + 1, "version": 1}
        self.into[uid] = body["folderUid"]
        return 200, {"uid": uid, "url": f"/grafana/d/{uid}/slug", "status": "success"}


def handler(grafana: FakeGrafana) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, said = grafana.answer(self.command, self.path, body, self.headers.get("Authorization", ""))
            text = said.encode() if isinstance(said, str) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = answer

        def log_message(self, *args: object) -> None:
            pass

    return Handler


@contextlib.contextmanager
def serving() -> Iterator[FakeGrafana]:
    """Start one on a free port, below a path as behind a proxy, and end it."""
    grafana = FakeGrafana()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(grafana))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    grafana.url = f"http://127.0.0.1:{server.server_port}/grafana"
    try:
        yield grafana
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
