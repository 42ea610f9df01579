"""A board as a drawing (pure): where each panel stands, what kind it is, and the question it answers, as SVG."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from html import escape

from .board import COLUMNS, Board
from .palette import BLUE, GREEN, ORANGE, SKY, VERMILION
from .panels import Tile

COLUMN, UNIT, GAP, MARGIN, HEAD = 42, 27, 6, 12, 64
WIDTH = COLUMNS * COLUMN + 2 * MARGIN
INK, FAINT, PAPER, EDGE = "#1f2430", "#6b7280", "#ffffff", "#c9ced6"
VIRIDIS = ("#440154", "#31688e", "#35b779", "#fde725")

Box = tuple[float, float, float, float]
"""Left, top, width, height in pixels."""


def sketch(board: Board) -> str:
    """Return the drawing of a board; the same board gives the same text."""
    bottom = max(panel.gridPos.y + panel.gridPos.h for panel in board.panels)
    height = HEAD + bottom * UNIT + MARGIN
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif" role="img" '
        f'aria-label="{escape(board.title)}: layout of the board">'
    )
    lines = [
        opening,
        f'<rect width="{WIDTH}" height="{height}" fill="#f2f4f7"/>',
        _text(MARGIN, 24, board.title, size=17, weight=700),
        _text(MARGIN, 42, board.description, size=12, color=FAINT),
        *_variables(board),
    ]
    for panel in board.panels:
        place = panel.gridPos
        x, y = MARGIN + place.x * COLUMN, HEAD + place.y * UNIT
        if isinstance(panel, Tile):
            lines += _panel(panel, (x, y, place.w * COLUMN - GAP, place.h * UNIT - GAP))
        else:
            lines.append(_text(x, y + 17, f"▾ {panel.title}", size=13, weight=700))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _variables(board: Board) -> Iterator[str]:
    shown = [variable.name for variable in board.templating.list if not variable.hide]
    x = float(WIDTH - MARGIN)
    for name in reversed(shown):
        width = len(name) * 7 + 22
        x -= width
        yield f'<rect x="{x:g}" y="8" width="{width - 6}" height="20" rx="3" fill="{PAPER}" stroke="{EDGE}"/>'
        yield _text(x + 6, 22, f"{name} ▾", size=11, color=FAINT)


def _panel(tile: Tile, box: Box) -> Iterator[str]:
    x, y, width, height = box
    yield f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" fill="{PAPER}" stroke="{EDGE}"/>'
    yield _text(x + 8, y + 16, tile.title, size=11.5, weight=600)
    lines = textwrap.wrap(tile.asks, max(12, int((width - 14) / 5.3)))
    for number, line in enumerate(lines):
        yield _text(x + 8, y + 30 + 12 * number, line, size=10.5, color=FAINT, style="italic")
    top = y + 30 + 12 * len(lines)
    room = y + height - top - 8
    if room > 8:
        yield from GLYPHS[tile.kind]((x + 10, top, width - 20, room))


def _text(x: float, y: float, text: str, *, size: float, weight: int = 400, color: str = INK, style: str = "") -> str:
    slant = f' font-style="{style}"' if style else ""
    face = f'font-size="{size:g}" font-weight="{weight}" fill="{color}"{slant}'
    return f'<text x="{x:g}" y="{y:g}" {face}>{escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}" opacity="0.8"/>'


def _lines(box: Box) -> Iterator[str]:
    x, y, width, height = box
    for color, shape in ((BLUE, (6, 5, 6, 4, 3, 4, 2, 3)), (ORANGE, (8, 8, 7, 8, 6, 7, 7, 6))):
        points = " ".join(
            f"{x + width * number / (len(shape) - 1):.1f},{y + height * value / 9:.1f}"
            for number, value in enumerate(shape)
        )
        yield f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.6" opacity="0.75"/>'


def _number(box: Box) -> Iterator[str]:
    x, y, width, height = box
    if height >= 10:
        size = min(height, 30)
        yield _rect(x, y + height - size, width, size, GREEN)


def _rows(box: Box) -> Iterator[str]:
    x, y, width, height = box
    for number in range(int(height // 14)):
        yield _rect(x, y + 14 * number, width, 11, EDGE if number == 0 else "#eef1f4")
        if number:
            yield _rect(x + 4, y + 14 * number + 4, width * (0.3 - 0.04 * (number % 3)), 3, BLUE)


def _cells(box: Box) -> Iterator[str]:
    x, y, width, height = box
    columns, rows = int(width // 16), max(2, int(height // 12))
    for column in range(columns):
        for row in range(rows):
            distance = abs(row - rows / 2 - (column * 7 % 5 - 2) / 2)
            shade = VIRIDIS[max(0, 3 - int(distance * 6 / rows))]
            w, h = width / columns, height / rows
            yield _rect(x + column * w, y + row * h, w - 1, h - 1, shade)


def _lanes(box: Box) -> Iterator[str]:
    x, y, width, height = box
    for number in range(int(height // 16)):
        cut = width * (0.35 + 0.2 * (number * 2 % 3))
        yield _rect(x, y + 16 * number, cut, 12, GREEN)
        yield _rect(x + cut + 2, y + 16 * number, width - cut - 2, 12, VERMILION if number == 1 else GREEN)


def _bars(box: Box) -> Iterator[str]:
    x, y, width, height = box
    for number in range(int(height // 15)):
        yield _rect(x, y + 15 * number, width, 10, "#eef1f4")
        yield _rect(x, y + 15 * number, width * (0.9, 0.7, 0.55, 0.4, 0.3)[number % 5], 10, SKY)


def _words(box: Box) -> Iterator[str]:
    x, y, width, height = box
    for number in range(int(height // 12)):
        yield _rect(x, y + 12 * number, width * (1, 0.9, 0.95, 0.5)[number % 4], 4, EDGE)


GLYPHS: dict[str, Callable[[Box], Iterator[str]]] = {
    "bargauge": _bars,
    "heatmap": _cells,
    "stat": _number,
    "state-timeline": _lanes,
    "table": _rows,
    "text": _words,
    "timeseries": _lines,
}
