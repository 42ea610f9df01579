"""What may be written to a terminal or into a log: text from elsewhere without the characters that command either."""

from __future__ import annotations

# Control characters but for newline and tab: ESC and U+009B begin orders to a terminal, CR hides what stood before it.
# And what turns the direction of writing around: it shows another name than the one that is meant.
_CONTROLS = [*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_REPLACED = dict.fromkeys(_CONTROLS, "\N{REPLACEMENT CHARACTER}")


def printable(text: str) -> str:
    """Return `text` with such characters replaced; newlines and tabs stay."""
    return text if text.isprintable() else text.translate(_REPLACED)
