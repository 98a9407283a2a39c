"""What a strategy decided and predicts: plain data, printable, with a JSON round trip."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

from convoy.drawing.table import value_tables


@dataclass(frozen=True)
class Plan:
    """Base of all plans. Subclasses are frozen dataclasses of plain values, nested plans and tuples of them."""

    strategy: ClassVar[str] = ""

    def table(self) -> str:
        """The plan as text for a person."""
        rows = [(f.name, str(getattr(self, f.name))) for f in fields(self)]
        return columns(("field", "value"), rows)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, the strategy's name among them."""
        return {"strategy": self.strategy, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def _repr_html_(self) -> str:
        """The plan as tables, for notebooks."""
        return f"<div>{value_tables(self.to_dict())}</div>"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        built: Self = _build(cls, data)
        return built


def _build(kind: Any, value: Any) -> Any:
    """``value`` (from JSON) as an instance of ``kind``: dataclasses, tuples and optionals are restored."""
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        return kind(**{f.name: _build(hints[f.name], value[f.name]) for f in fields(kind) if f.name in value})
    if origin is tuple and value is not None:
        inner = get_args(kind)
        if len(inner) == 2 and inner[1] is Ellipsis:
            return tuple(_build(inner[0], v) for v in value)
        return tuple(_build(k, v) for k, v in zip(inner, value, strict=True))
    if origin in (Union, UnionType) and value is not None:
        inner = tuple(k for k in get_args(kind) if k is not type(None))
        return _build(inner[0], value) if len(inner) == 1 else value
    return value


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: text to the left, numbers to the right, a rule under the head."""
    widths = [max([len(head[i]), *(len(row[i]) for row in rows)]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        out = []
        for i, cell in enumerate(cells):
            numeric = all(_numeric(row[i]) for row in rows) and bool(rows)
            out.append(cell.rjust(widths[i]) if numeric else cell.ljust(widths[i]))
        return "  ".join(out).rstrip()

    return "\n".join([line(head), "  ".join("-" * w for w in widths), *(line(row) for row in rows)])


def _numeric(cell: str) -> bool:
    return not cell.strip() or cell.strip()[0] in "0123456789-+." or cell.strip() in ("–", "all")


def megabytes(count: float) -> str:
    """Bytes as ``12.3 MB`` (10**6 bytes), small ones as ``4.2 kB``."""
    if count < 1e5:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.2f} MB" if count < 1e7 else f"{count / 1e6:.1f} MB"
