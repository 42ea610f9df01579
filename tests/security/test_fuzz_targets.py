"""Hostile input of every kind: what was found once, and what hypothesis makes of it (in depth: fuzz/run.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from security.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "fuzz" / "corpus"
SEEDS = {name: [path.read_bytes() for path in sorted((CORPUS / name).iterdir())] for name in TARGETS}
WORDS = [
    json.loads(f'"{line[1:-1]}"', strict=False).encode("utf-8", "replace")
    for line in (CORPUS.parent / "words.dict").read_text().splitlines()
]
HOSTILE = [None, True, -1, 0, 2**63, 10**400, 1e308, -1e308, 1e-300, 0.0, "", "x", "9999-12-31T23:59:59-23:59", [], {},
           [[]], {"a": {"a": []}}, "\ud800", '<!channel>\n"}', "a" * 5_000, "²", "nan", {"": 1}]  # fmt: skip

kinds = pytest.mark.parametrize("kind", sorted(TARGETS))
many = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found_once_stays_mended(path: Path) -> None:
    """Each input of the corpus is taken, or refused by the error that is declared for it."""
    TARGETS[path.parent.name](path.read_bytes())


@kinds
def test_each_target_has_a_corpus(kind: str) -> None:
    """A fuzzer without examples of what is right finds out about JSON's brackets, and about nothing behind them."""
    assert len(SEEDS[kind]) >= 4


@kinds
@given(data=st.data())
@many
def test_no_bytes_break_a_promise(kind: str, data: st.DataObject) -> None:
    """Bytes of all kinds, and inputs of the corpus that were cut, spliced and strewn with words of the format."""
    raw = data.draw(st.binary(max_size=300) | st.sampled_from(SEEDS[kind]))
    for _ in range(data.draw(st.integers(0, 4))):
        start = data.draw(st.integers(0, len(raw)))
        end = data.draw(st.integers(start, min(len(raw), start + 40)))
        piece = data.draw(st.sampled_from(WORDS) | st.binary(max_size=8) | st.sampled_from([raw[start:end] * 2, b""]))
        raw = raw[:start] + piece + raw[end:]
    TARGETS[kind](raw)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inside for place in _places(item, (*path, key)))]


def _with(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    changed = value.copy()
    changed[path[0]] = _with(value[path[0]], path[1:], new)
    return changed


def _read(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


@pytest.mark.parametrize("kind", ["events", "outbox", "flower", "management", "inspection", "slack"])
@given(data=st.data())
@many
def test_no_json_of_another_shape_breaks_a_promise(kind: str, data: st.DataObject) -> None:
    """Right answers in which a few values, anywhere, are of other kinds and sizes than anybody would expect."""
    status = b"" if kind in {"events", "outbox", "inspection"} else b"\0"
    seeds = [value for raw in SEEDS[kind] if (value := _read(raw[len(status) :])) is not None]
    value = data.draw(st.sampled_from(seeds))
    for _ in range(data.draw(st.integers(1, 3))):
        value = _with(value, data.draw(st.sampled_from(_places(value))), data.draw(st.sampled_from(HOSTILE)))
    TARGETS[kind](status + json.dumps(value).encode())


@given(data=st.data())
@many
def test_no_state_of_another_shape_breaks_a_promise(data: st.DataObject) -> None:
    """A saved state, checksum and all, in which a few values are of other kinds: taken back, or refused as a whole."""
    import msgspec

    value = msgspec.msgpack.decode((CORPUS / "state" / "pipeline.msgpack").read_bytes())
    hostile = [thing for thing in HOSTILE if thing not in (10**400, "\ud800")] + [float("nan"), float("inf"), b"\xff"]
    for _ in range(data.draw(st.integers(1, 2))):
        value = _with(value, data.draw(st.sampled_from(_places(value))), data.draw(st.sampled_from(hostile)))
    TARGETS["state"](msgspec.msgpack.encode(value))
