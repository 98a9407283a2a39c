"""Who did what when: lanes over time, with the waits between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convoy.drawing.scale import Scale, label, ticks
from convoy.drawing.style import FAINT, INK, RULE, colour, text

WIDTH = 1000
_ROW, _GAP, _TOP, _LEFT, _RIGHT = 30, 10, 8, 92, 12


@dataclass(frozen=True, slots=True)
class Span:
    """Something a lane did from ``start`` to ``end`` (seconds). ``family`` is its colour, ``title`` what a pointer
    over it shows."""

    lane: str
    start: float
    end: float
    name: str
    title: str
    family: int


@dataclass(frozen=True, slots=True)
class Lanes:
    """The spans that touch [start, end], drawn from ``start`` on. ``families``: (colour, meaning)."""

    title: str
    start: float
    end: float
    spans: tuple[Span, ...]
    families: tuple[tuple[int, str], ...] = ()

    def lanes(self) -> list[str]:
        return sorted({span.lane for span in self.spans})

    def waits(self, lane: str) -> list[tuple[float, float]]:
        """The stretches of [start, end] in which the lane did nothing."""
        found, reached = [], self.start
        for span in sorted((s for s in self.spans if s.lane == lane), key=lambda s: s.start):
            if span.start > reached:
                found.append((reached, min(span.start, self.end)))
            reached = max(reached, span.end)
        if reached < self.end:
            found.append((reached, self.end))
        return [(a, b) for a, b in found if b > a]

    def busy(self, lane: str) -> float:
        """The share of [start, end] in which the lane did something."""
        length = self.end - self.start
        return 1 - sum(b - a for a, b in self.waits(lane)) / length if length > 0 else 0.0


def rows_of(spans: Sequence[Span]) -> list[list[Span]]:
    """The spans of one lane in as few rows as keep them from overlapping (a pool of workers does several at once)."""
    rows: list[list[Span]] = []
    for span in sorted(spans, key=lambda s: (s.start, s.end)):
        row = next((row for row in rows if row[-1].end <= span.start + 1e-9), None)
        if row is None:
            rows.append([span])
        else:
            row.append(span)
    return rows


def lanes_svg(lanes: Lanes) -> str:
    """The lanes as an SVG element: bars for what was done, hatching for waiting, milliseconds below."""
    names = lanes.lanes()
    if not names or lanes.end <= lanes.start:
        return ""
    packed = {lane: rows_of([span for span in lanes.spans if span.lane == lane]) for lane in names}
    x = Scale(lanes.start, lanes.end, _LEFT, WIDTH - _RIGHT)
    body, top = [], float(_TOP)
    for lane in names:
        rows = packed[lane]
        body.append(f'<text x="{_LEFT - 8}" y="{top + _ROW / 2 + 4:g}" text-anchor="end" style="fill:{INK}">')
        body.append(f"{text(lane)}</text>")
        for begin, end in lanes.waits(lane):
            body.append(_rect(x, begin, end, top, len(rows) * _ROW, 'fill="url(#waits)"'))
        for number, row in enumerate(rows):
            for span in row:
                body.append(_bar(lanes, x, span, top + number * _ROW))
        top += len(rows) * _ROW + _GAP
    for value in ticks(0, (lanes.end - lanes.start) * 1e3, 8):
        at = f"{x(lanes.start + value / 1e3):.1f}"
        body.append(f'<line x1="{at}" x2="{at}" y1="{_TOP}" y2="{top:g}" style="stroke:{RULE}" opacity="0.6"/>')
        body.append(f'<text x="{at}" y="{top + 14:g}" text-anchor="middle" style="fill:{FAINT}">{label(value)}</text>')
    body.append(f'<text x="{_LEFT}" y="{top + 32:g}" style="fill:{INK}">milliseconds</text>')
    body += _key(lanes.families, top + 32)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 42:g}" role="img" '
        f'style="width:100%;min-width:680px;font:12px system-ui,sans-serif"><title>{text(lanes.title)}</title>'
        f"<desc>{text(describe(lanes))}</desc>"
        '<defs><pattern id="waits" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        f'<line x1="0" y1="0" x2="0" y2="6" stroke-width="1.5" style="stroke:{RULE}"/></pattern></defs>'
    )
    return "".join([head, *body, "</svg>"])


def describe(lanes: Lanes) -> str:
    """The lanes in words."""
    shares = ", ".join(f"{lane} worked {lanes.busy(lane):.0%}" for lane in lanes.lanes())
    return f"{(lanes.end - lanes.start) * 1e3:.1f} ms: {shares}"


def _rect(x: Scale, begin: float, end: float, top: float, height: float, paint: str) -> str:
    left, right = x(begin), x(end)
    return f'<rect x="{left:.2f}" y="{top:g}" width="{max(right - left, 0.4):.2f}" height="{height:g}" {paint}/>'


def _bar(lanes: Lanes, x: Scale, span: Span, top: float) -> str:
    begin, end = max(span.start, lanes.start), min(span.end, lanes.end)
    paint = f'rx="2" style="fill:{colour(span.family)}"'
    rect = _rect(x, begin, end, top + 2, _ROW - 4, paint)
    width = x(end) - x(begin)
    name = ""
    if width > len(span.name) * 7 + 4:
        middle = (x(begin) + x(end)) / 2
        name = (
            f'<text x="{middle:.1f}" y="{top + _ROW / 2 + 4:g}" text-anchor="middle" '
            f'style="fill:var(--on,#fff)">{text(span.name)}</text>'
        )
    return f"<g><title>{text(span.title)}</title>{rect}{name}</g>"


def _key(families: Sequence[tuple[int, str]], top: float) -> list[str]:
    out, left = [], _LEFT + 110.0
    for family, meaning in [*families, (-1, "waits")]:
        paint = 'fill="url(#waits)"' if family < 0 else f'rx="2" style="fill:{colour(family)}"'
        out.append(f'<rect x="{left:g}" y="{top - 10:g}" width="14" height="12" {paint}/>')
        out.append(f'<text x="{left + 19:g}" y="{top:g}" style="fill:{INK}">{text(meaning)}</text>')
        left += 34 + len(meaning) * 6.8
    return out
