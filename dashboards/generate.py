"""The files that boards become: JSON for Grafana's provisioning, ConfigMaps for its Kubernetes sidecar, drawings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import yaml

from .board import Board, as_text, rendered
from .settings import DEFAULT_FOLDER
from .sketch import sketch

SIDECAR_LABEL = "grafana_dashboard"
"""What the sidecar of Grafana's Helm charts looks for, with the value "1"."""


def files(boards: Sequence[Board]) -> dict[str, str]:
    """Return the text of every file, by path below the output folder: boards/<uid>.json and kubernetes/."""
    texts = {board.uid: as_text(rendered(board)) for board in boards}
    return {
        **{f"boards/{uid}.json": text for uid, text in texts.items()},
        "kubernetes/grafana-dashboards.yml": config_maps(texts),
    }


def sketches(boards: Sequence[Board]) -> dict[str, str]:
    """Return a drawing of each board, as SVG, by file name."""
    return {f"{board.uid}.svg": sketch(board) for board in boards}


def config_maps(texts: dict[str, str]) -> str:
    """Return one ConfigMap a board, as YAML documents; `texts` are the boards' JSON by uid.

    The JSON is written without white space: a ConfigMap holds at most 1 MiB, and nobody reads it there.
    """
    documents = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": f"grafana-dashboard-{uid}",
                "labels": {SIDECAR_LABEL: "1", "app.kubernetes.io/part-of": "celeryscope"},
                "annotations": {"grafana_folder": DEFAULT_FOLDER},
            },
            "data": {f"{uid}.json": _compact(text)},
        }
        for uid, text in texts.items()
    ]
    return yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, width=120)


def _compact(text: str) -> str:
    model: Any = json.loads(text)
    return json.dumps(model, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
