"""A page as a value, and the one HTML file that it becomes."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined, select_autoescape
from markupsafe import Markup

from convoy.drawing.chart import Chart, chart_svg
from convoy.drawing.style import DASHES
from convoy.drawing.table import csv_text, html_table


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing with the numbers behind it (``numbers``, CSV). ``live`` is what the page's script needs to make the
    curves of the numbers zoomable; None for a drawing that stays as it is."""

    title: str
    svg: Markup
    numbers: str
    note: str = ""
    live: str | None = None
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    html: Markup
    numbers: str
    note: str = ""
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Words:
    """Sentences; or, with ``code``, text as it is, that can be copied."""

    title: str
    lines: tuple[str, ...]
    code: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    key: str
    title: str
    parts: tuple[Figure | Table | Words, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """``status``: how it ended, in a word, and whether that is "good", "open" or "bad". ``headline``: sentences.
    ``tiles``: the few numbers that matter (name, value, remark). ``facts``: what ran, on what."""

    title: str
    status: tuple[str, str]
    headline: tuple[str, ...]
    tiles: tuple[tuple[str, str, str], ...]
    facts: tuple[tuple[str, str], ...]
    first: Figure | None
    sections: tuple[Section, ...]
    problems: tuple[str, ...] = ()
    made_by: str = field(default="")


def figure(chart: Chart, note: str = "", *, show_empty: bool = False) -> Figure | None:
    """The figure of a chart; None where it has no values."""
    if chart.empty and not show_empty:
        return None
    lines = [line for line in chart.lines if line.known()]
    merged: dict[float, list[float | None]] = {}
    for place, line in enumerate(lines):
        for x, y in line.known():
            merged.setdefault(x, [None] * len(lines))[place] = y
    rows = [[_short(x), *(None if y is None else _short(y) for y in merged[x])] for x in sorted(merged)]
    own = [chart.colour_of(chart.lines.index(line)) for line in lines]
    live = {
        "y": chart.y_label,
        "percent": chart.percent,
        "zero": chart.zero,
        "fromZero": chart.from_zero,
        "whole": chart.whole,
        "lines": [
            {"colour": family, "dash": "" if line.faint else DASHES[family % len(DASHES)], "faint": line.faint,
             "points": line.points}
            for family, line in zip(own, lines, strict=True)
        ],
        "marks": list(chart.marks),
    }  # fmt: skip
    numbers = csv_text([chart.x_label, *(line.name for line in lines)], rows)
    return Figure(chart.title, Markup(chart_svg(chart)), numbers, note, json.dumps(live))


def table(title: str, head: list[str], rows: list[list[Any]], note: str = "") -> Table | None:
    """The table; None where it has no rows."""
    if not rows:
        return None
    return Table(title, Markup(html_table(head, rows)), csv_text(head, rows), note, wide=sum(map(len, head)) > 50)


def section(key: str, title: str, *parts: Figure | Table | Words | None) -> Section | None:
    """The section with what there is of it; None where there is nothing."""
    there = tuple(part for part in parts if part is not None)
    return Section(key, title, there) if there else None


def render(page: Page) -> str:
    """The page as one HTML document that loads nothing."""
    environment = _environment()
    template = environment.from_string(_asset("assets/page.html"))
    return template.render(
        page=page,
        style=Markup(_asset("vendor/uPlot.min.css") + _asset("assets/page.css")),
        script=Markup(_asset("vendor/uPlot.iife.min.js") + "\n" + _asset("assets/page.js")),
        kind=lambda part: type(part).__name__,
    )


@functools.cache
def _environment() -> Environment:
    return Environment(autoescape=select_autoescape(default_for_string=True), undefined=StrictUndefined,
                       trim_blocks=True, lstrip_blocks=True)  # fmt: skip


@functools.cache
def _asset(name: str) -> str:
    return resources.files("convoy.report").joinpath(name).read_text(encoding="utf-8")


def _short(value: float) -> float | int:
    """Six digits are more than anybody reads, and keep the page small."""
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
