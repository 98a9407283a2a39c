"""Curves: a frozen value and the SVG of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from convoy.drawing.scale import Scale, label, span, ticks
from convoy.drawing.style import FAINT, INK, RULE, colour, dash, text

WIDTH, HEIGHT = 520, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 12, 42
_LEGEND = 18  # height of a line of the legend
_LETTER = 6.7  # width of a letter of the legend, about


@dataclass(frozen=True, slots=True)
class Line:
    """A curve; None and numbers that are not finite in ``y`` leave a gap. ``family``: the colour it has (its place in
    the chart when None); ``faint`` draws it thin, for one of many; ``points`` marks every value."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    family: int | None = None
    faint: bool = False
    points: bool = False

    def known(self) -> list[tuple[float, float]]:
        """The values that there are."""
        pairs = zip(self.x, self.y, strict=True)
        return [(x, y) for x, y in pairs if y is not None and math.isfinite(y) and math.isfinite(x)]


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves over one axis. ``percent``: values are shares of 1. ``zero``: the value axis begins at 0, ``from_zero``:
    the other one. ``whole``: there is nothing between 1 and 2. ``marks``: (x, what happened there)."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    percent: bool = False
    zero: bool = False
    from_zero: bool = False
    whole: bool = False
    marks: tuple[tuple[float, str], ...] = ()

    @property
    def empty(self) -> bool:
        return not any(line.known() for line in self.lines)

    def colour_of(self, index: int) -> int:
        family = self.lines[index].family
        return index if family is None else family


def chart_svg(chart: Chart) -> str:
    """The chart as an SVG element that stands for itself; says so where there is nothing to draw."""
    names = [(i, line) for i, line in enumerate(chart.lines) if not line.faint and line.known()]
    legend = _legend(chart, names) if len(names) > 1 else []
    height = HEIGHT + _LEGEND * (legend[-1][0] + 1 if legend else 0)
    body = [_open(WIDTH, height, chart.title, _describe(chart))]
    if chart.empty:
        middle = f'x="{WIDTH / 2}" y="{HEIGHT / 2}"'
        body.append(f'<text {middle} text-anchor="middle" style="fill:{FAINT}">no values</text>')
        return "".join([*body, "</svg>"])
    known = [pair for line in chart.lines for pair in line.known()]
    x_low, x_high = span((x for x, _ in known), zero=chart.from_zero)
    y_low, y_high = span((y for _, y in known), zero=chart.zero, margin=0.06)
    x = Scale(x_low, x_high, _LEFT, WIDTH - _RIGHT)
    y = Scale(y_low, y_high, HEIGHT - _BOTTOM, _TOP)
    body += _axes(chart, x, y)
    for place, mark in chart.marks:
        if x_low <= place <= x_high:
            body.append(
                f'<g><title>{text(mark)}</title><line x1="{x(place):.1f}" x2="{x(place):.1f}" y1="{_TOP}" '
                f'y2="{HEIGHT - _BOTTOM}" stroke-dasharray="3 3" style="stroke:{FAINT}"/></g>'
            )
    for index, line in enumerate(chart.lines):
        body.append(_curve(line, chart.colour_of(index), x, y))
    for row, left, index, name in legend:
        body.append(_entry(chart.colour_of(index), name, left, HEIGHT + row * _LEGEND))
    return "".join([*body, "</svg>"])


def _open(width: float, height: float, title: str, description: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'style="max-width:{width * 1.6:g}px;width:100%;font:12px system-ui,sans-serif">'
        f"<title>{text(title)}</title><desc>{text(description)}</desc>"
    )


def _describe(chart: Chart) -> str:
    """The chart in words, for those who do not see it."""
    parts = []
    for line in chart.lines:
        known = line.known()
        if known and not line.faint:
            first, last = (label(round(y, 6), percent=chart.percent) for _, y in (known[0], known[-1]))
            parts.append(f"{line.name} from {first} to {last}")
    return f"{chart.y_label} over {chart.x_label}: " + "; ".join(parts)


def _axes(chart: Chart, x: Scale, y: Scale) -> list[str]:
    out = []
    for value in ticks(y.low, y.high):
        at = f"{y(value):.1f}"
        out.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at}" y2="{at}" style="stroke:{RULE}"/>')
        shown = label(value, percent=chart.percent)
        out.append(f'<text x="{_LEFT - 6}" y="{at}" dy="4" text-anchor="end" style="fill:{FAINT}">{shown}</text>')
    bottom = HEIGHT - _BOTTOM
    for value in ticks(x.low, x.high, 6, whole=chart.whole):
        at = f"{x(value):.1f}"
        out.append(f'<text x="{at}" y="{bottom + 16}" text-anchor="middle" style="fill:{FAINT}">{label(value)}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    out.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}" style="stroke:{FAINT}"/>')
    out.append(
        f'<text x="{middle:g}" y="{bottom + 34}" text-anchor="middle" style="fill:{INK}">{text(chart.x_label)}</text>'
    )
    return out


def _curve(line: Line, family: int, x: Scale, y: Scale) -> str:
    """The pieces between gaps; a value alone is a dot."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for at, value in zip(line.x, line.y, strict=True):
        if value is not None and math.isfinite(value) and math.isfinite(at):
            pieces[-1].append((x(at), y(value)))
        elif pieces[-1]:
            pieces.append([])
    style = f"stroke:{colour(family)};fill:none"
    weight = "1" if line.faint else "2"
    fade = ' opacity="0.45"' if line.faint else ""
    out = []
    for piece in pieces:
        if len(piece) > 1:
            path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in piece)
            pattern = "" if line.faint else dash(family)
            out.append(f'<path d="{path}" stroke-width="{weight}"{pattern}{fade} style="{style}"/>')
        if len(piece) == 1 or line.points:
            out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.6" style="fill:{colour(family)}"/>' for a, b in piece]
    return "".join(out)


def _legend(chart: Chart, names: Sequence[tuple[int, Line]]) -> list[tuple[int, float, int, str]]:
    """Row, left edge, line and name of every entry, broken into rows."""
    placed, row, left = [], 0, float(_LEFT)
    for index, line in names:
        name = line.name if len(line.name) <= 60 else line.name[:59] + "…"
        width = 34 + len(name) * _LETTER
        if left > _LEFT and left + width > WIDTH - _RIGHT:
            row, left = row + 1, float(_LEFT)
        placed.append((row, left, index, name))
        left += width
    return placed


def _entry(family: int, name: str, left: float, top: float) -> str:
    return (
        f'<line x1="{left:.1f}" x2="{left + 22:.1f}" y1="{top + 6}" y2="{top + 6}" stroke-width="2"{dash(family)} '
        f'style="stroke:{colour(family)}"/>'
        f'<text x="{left + 27:.1f}" y="{top + 10}" style="fill:{INK}">{text(name)}</text>'
    )
