"""How the nodes of a run stand, as text for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_HEAD = ("node", "samples/s", "share", "lag", "waited", "Q", "pushes", "refused", "")


def node_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a node from the rows of a ``nodes`` event; what a column lacks everywhere is left out."""
    lines = [
        (
            str(row["node"]),
            "" if row["samples_per_second"] is None else f"{row['samples_per_second']:.0f}",
            f"{row['share']:.1%}",
            str(row["lag"]),
            f"{row['waited']:.1%}",
            "" if row["quality"] is None else f"{row['quality']:.1%}",
            str(row["pushes"]),
            str(row["refused"]) if row["refused"] else "",
            "" if row["state"] == "live" else str(row["state"]),
        )
        for row in rows
    ]
    used = [c for c in range(len(_HEAD)) if any(line[c] for line in lines)]
    widths = {c: max(len(_HEAD[c]), *(len(line[c]) for line in lines)) for c in used}
    return "\n".join("  ".join(f"{line[c]:>{widths[c]}}" for c in used).rstrip() for line in (_HEAD, *lines))
