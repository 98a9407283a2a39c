"""Tables: rows as HTML, and plain values (plans, configurations) as nested tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from convoy.drawing.style import text


def html_table(head: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str = "") -> str:
    """Rows under a head. Cells that are numbers (or begin as one) stand to the right."""
    numeric = [bool(rows) and all(_numeric(row[i]) for row in rows) for i in range(len(head))]
    out = ["<table>"]
    if caption:
        out.append(f"<caption>{text(caption)}</caption>")
    if any(head):
        cells = (f'<th scope="col"{_side(numeric[i])}>{text(name)}</th>' for i, name in enumerate(head))
        out.append(f"<thead><tr>{''.join(cells)}</tr></thead>")
    out.append("<tbody>")
    for row in rows:
        cells = (f"<td{_side(numeric[i])}>{text(shown(cell))}</td>" for i, cell in enumerate(row))
        out.append(f"<tr>{''.join(cells)}</tr>")
    return "".join([*out, "</tbody></table>"])


def csv_text(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The same as comma-separated values; None is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([["" if cell is None else cell for cell in row] for row in rows])
    return out.getvalue()


def value_tables(values: Mapping[str, Any], *, title: str = "") -> str:
    """Plain values as tables: names beside values, and a table of its own for each list of mappings."""
    own, lists, inner = [], [], []
    for name, value in values.items():
        if isinstance(value, Mapping):
            inner.append((name, value))
        elif isinstance(value, (list, tuple)) and value and all(isinstance(item, Mapping) for item in value):
            lists.append((name, value))
        else:
            own.append((words(name), value))
    out = [html_table(("", ""), own, caption=title)] if own else []
    for name, items in lists:
        keys = list(dict.fromkeys(key for item in items for key in item))
        rows = [[item.get(key) for key in keys] for item in items]
        out.append(html_table([words(key) for key in keys], rows, caption=words(name)))
    for name, value in inner:
        out.append(value_tables(value, title=words(name)))
    return "".join(out)


def words(name: str) -> str:
    """``forward_seconds`` → ``forward seconds``."""
    return str(name).replace("_", " ")


def shown(value: object) -> str:
    """A value for a person: numbers with four digits, lists with commas, – for nothing."""
    if value is None or value == "" or (isinstance(value, (list, tuple, Mapping)) and not value):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{words(key)} {shown(item)}" for key, item in value.items())
    return str(value)


def _numeric(cell: object) -> bool:
    if cell is None or (isinstance(cell, (int, float)) and not isinstance(cell, bool)):
        return True
    first = str(cell).strip()[:1]
    return not first or first in "0123456789-+.–"


def _side(numeric: bool) -> str:
    return ' class="number" style="text-align:right"' if numeric else ""
