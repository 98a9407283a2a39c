"""Rounds A B C … A B C, ratios within a round, medians and spread, and how noisy the machine was."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from common.contender import Contender

Rounds = list[dict[str, dict[str, Any]]]
"""Per round: contender → what it measured. A contender that failed is missing from then on."""


def run_rounds(
    contenders: Sequence[Contender],
    rounds: int,
    steps: int | Mapping[str, int],
    around: Callable[[int], None] = lambda _: None,
) -> Rounds:
    """``rounds`` times every contender in turn; every other round in reverse order, so that no one always follows the
    same one. ``around`` is called with the number of the round before it."""
    measured: Rounds = []
    for number in range(rounds):
        around(number)
        answers: dict[str, dict[str, Any]] = {}
        for contender in contenders if number % 2 == 0 else reversed(contenders):
            answer = contender.measure(steps if isinstance(steps, int) else steps[contender.name])
            if answer is not None:
                answers[contender.name] = answer
        line = "  ".join(f"{name} {a['seconds'] * 1e3:.1f}" for name, a in answers.items())
        print(f"round {number + 1}/{rounds}, ms a step:  {line}", file=sys.stderr, flush=True)
        measured.append(answers)
    return measured


def spread(values: Iterable[float], digits: int = 4) -> dict[str, float] | None:
    """Median, min and max; None where there is nothing."""
    known = list(values)
    if not known:
        return None
    return {k: round(v, digits) for k, v in (("median", median(known)), ("min", min(known)), ("max", max(known)))}


def seconds(measured: Rounds, name: str) -> list[float]:
    return [answers[name]["seconds"] for answers in measured if name in answers]


def ratios(measured: Rounds, base: str, name: str) -> list[float]:
    """How many times faster ``name`` is than ``base``, round by round."""
    return [a[base]["seconds"] / a[name]["seconds"] for a in measured if base in a and name in a]


class Noise:
    """What else went on: load before and after, and the shares of time stolen by the host and lost to idling."""

    def __init__(self) -> None:
        self._load, self._ticks, self._time = _load(), _ticks(), time.time()

    def report(self) -> dict[str, Any]:
        ticks = _ticks()
        result: dict[str, Any] = {"load_before": self._load, "load_after": _load()}
        if ticks and self._ticks:
            passed = {name: ticks[name] - self._ticks[name] for name in ticks}
            total = sum(passed.values()) or 1
            result |= {"steal_percent": round(100 * passed["steal"] / total, 2)}
            result |= {"idle_percent": round(100 * passed["idle"] / total, 2)}
        return result | {"seconds": round(time.time() - self._time, 1)}


def _load() -> list[float] | None:
    return [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None


def _ticks() -> dict[str, int]:
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return {}
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    return dict(zip(names, map(int, fields), strict=False))


def machine() -> dict[str, Any]:
    """Enough to know the machine's kind."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return {"cores": os.cpu_count(), "cpu": model, "python": platform.python_version()}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the first column left, the others right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join("–" if cell is None else str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def shown(values: Mapping[str, float] | None, digits: int = 2, factor: float = 1.0) -> str:
    """``1.88 (1.85–1.91)``."""
    if values is None:
        return "–"
    middle, low, high = (f"{values[k] * factor:.{digits}f}" for k in ("median", "min", "max"))
    return f"{middle} ({low}–{high})"


def command() -> str:
    here = Path(sys.argv[0]).resolve()
    return " ".join(["python", str(Path(*here.parts[here.parts.index("benchmarks") :])), *sys.argv[1:]])


def finish(result: Mapping[str, Any]) -> None:
    """The one JSON line, last."""
    sys.stdout.flush()
    print(json.dumps({"command": command(), "machine": machine(), **result}, allow_nan=False), flush=True)
