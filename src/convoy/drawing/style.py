"""Colours and escaping that all drawings share.

The first six colours are those of Okabe and Ito, which people with the common colour deficiencies tell apart; lines
differ in their dashes too. Every colour is a CSS variable with a value for pages that do not set it.
"""

from __future__ import annotations

from html import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#6b6b6b", "#8c4a2f", "#a8b400")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 3", "5 2 1 2", "1 2", "9 3 2 3 2 3", "4 4", "14 3 2 3")


def colour(index: int) -> str:
    """The CSS value of the colour of series ``index``."""
    place = index % len(COLOURS)
    return f"var(--c{place},{COLOURS[place]})"


def dash(index: int) -> str:
    """The attribute that tells line ``index`` from the others without its colour."""
    pattern = DASHES[index % len(DASHES)]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


INK = "var(--ink,#222)"
FAINT = "var(--faint,#767676)"
RULE = "var(--rule,#ddd)"


def text(value: object) -> str:
    """``value`` for HTML and SVG, also inside attributes; control characters, which XML forbids, become blanks."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else " " for c in str(value))
    return escape(shown, quote=True)
