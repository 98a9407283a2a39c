"""How far is what convoy predicts from what comes? Time of a step and peak of the activations.

    python benchmarks/forecast/run.py
    python benchmarks/forecast/run.py --nets resnet20,vgg16 --batch 128 --rounds 5 --steps 20

Each network as a pipeline of two stages with automatic cuts, in three variants, in a process of its own. A round plans
(``convoy.plan``, so that every round is a forecast of its own) and then trains with the cuts of that plan; predicted
and measured stand side by side, as do a sequential step on one thread and on all. The error of a round is measured over
predicted - 1; given are the median over the rounds and the worst. Peaks count every storage that a forward pass makes
(the memory benchmark's ledger); either worker is held back once, and the highest counts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "memory"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common.contender import Contender
from common.rounds import Noise, finish, table
from torch import Tensor, nn
from tracker import Ledger, Tracked

import convoy
from convoy.models import build
from convoy.strategies.base import Settings
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.pipelined.program import PipelineProgram
from convoy.strategies.pipelined.step import PipelinedStep
from convoy.strategies.sequential import Sequential

NETS = ("lenet5", "alexnet", "vgg16", "resnet20", "resnet56", "hf-resnet")
VARIANTS: dict[str, dict[str, Any]] = {
    "registers": {},
    "1f1b": {"clock": "1f1b"},
    "1f1b, accumulate 4": {"clock": "1f1b", "accumulate": 4},
}
HOLD_BACK = 0.03  # seconds an action of the slower worker waits, for the peaks
SETTLE = 4  # batches a pipeline is given before its steps count


def made(net: str, batch: int) -> tuple[nn.Module, Callable[[Any, Tensor], Tensor], Any, Tensor]:
    """Model, loss, x and y."""
    channels, size = (1, 28) if net == "lenet5" else (3, 32)
    x, y = torch.randn(batch, channels, size, size), torch.randint(0, 10, (batch,))
    if net != "hf-resnet":
        return build(net, channels=channels, image_size=size, seed=0).train(), nn.functional.cross_entropy, x, y
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128], depths=[2, 2, 2], layer_type="basic", num_labels=10
    )
    model = ResNetForImageClassification(config).train()
    return model, lambda output, target: nn.functional.cross_entropy(output.logits, target), {"pixel_values": x}, y


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)


class Forecast:
    """A session: plans and measures one network, all variants in turn."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        torch.set_num_threads(options["threads"])
        self._net, self._batch, self._threads = options["net"], options["batch"], options["threads"]

    def info(self) -> Mapping[str, Any]:
        return {"threads": self._threads}

    def measure(self, steps: int) -> Mapping[str, Any]:
        """One round. ``seconds`` is the whole round's."""
        began = time.perf_counter()
        rows: dict[str, Any] = {}
        for name, fields in VARIANTS.items():
            model, loss, x, y = made(self._net, self._batch)
            asked = Pipelined(stages=2, **fields)
            plan: Any = convoy.plan(model, (x, y), asked, self._threads, loss=loss, optimizer=optimizer_of(model))
            rows[name] = {
                "predicted": plan.step_seconds,
                "measured": self._pipeline(plan, fields, steps),
                "cuts": list(plan.cuts),
                "predicted_peak_bytes": plan.activation_bytes
                - (plan.delays[0] + 1) * _bytes(x) // plan.accumulate,  # the images are not counted
            }
            if name == "registers":
                for label, predicted, threads in (
                    ("sequential, one thread", plan.sequential_seconds, 1),
                    ("sequential, all threads", plan.everyone_seconds, self._threads),
                ):
                    rows[label] = {"predicted": predicted, "measured": self._sequential(threads, steps)}
            if steps <= 0:
                continue
            peaks = [self._peak(plan, fields, slow) for slow in (None, 1, 2)]
            rows[name]["measured_peak_bytes"] = max(peaks)
        return {"seconds": time.perf_counter() - began, "rows": rows}

    def _pipeline(self, plan: Any, fields: Mapping[str, Any], steps: int) -> float:
        """Seconds between two updates of the first stage, once the pipeline is full."""
        model, loss, x, y = made(self._net, self._batch)
        strategy = Pipelined(cuts=plan.cuts, **fields)
        settings = Settings(threads=self._threads)
        ends: list[float] = []

        def watch(event: Any) -> None:
            if event.kind == "action" and event.data["kind"] == "U" and event.data["subject"] == "1":
                ends.append(event.end)

        with strategy.bind(model, loss, optimizer_of(model), settings=settings, sink=watch) as step:
            for _ in range(SETTLE + steps):
                step(x, y)
        kept = ends[SETTLE - 1 : len(ends) - 1]  # the last update has no company
        return (kept[-1] - kept[0]) / (len(kept) - 1)

    def _sequential(self, threads: int, steps: int) -> float:
        model, loss, x, y = made(self._net, self._batch)
        seconds = []
        with Sequential().bind(model, loss, optimizer_of(model), settings=Settings(threads=threads)) as step:
            for _ in range(2 + steps):
                start = time.perf_counter()
                step(x, y)
                seconds.append(time.perf_counter() - start)
        return median(seconds[2:])

    def _peak(self, plan: Any, fields: Mapping[str, Any], slow: int | None) -> int:
        model, loss, x, y = made(self._net, self._batch)
        model = model.to(memory_format=torch.channels_last)
        optimizer, ledger = optimizer_of(model), Ledger()
        ledger.watch(model)

        def hold_back(lane: str, action: Any) -> None:
            if lane == f"worker {slow}":
                time.sleep(HOLD_BACK)

        strategy, settings = Pipelined(cuts=plan.cuts, **fields), Settings(threads=self._threads)
        with (
            actions_tracked(ledger),
            PipelinedStep(strategy, model, loss, optimizer, settings, None, disturb=hold_back) as step,
        ):
            for number in range(8):
                if number == 3:
                    ledger.begin()
                step(x, y)
        return ledger.peaks(optimizer)[1][0]


@contextmanager
def actions_tracked(ledger: Ledger) -> Iterator[None]:
    plain: Callable[..., int] = PipelineProgram.run

    def tracked(self: PipelineProgram, action: Any, store: Any) -> int:
        if action.kind == "U":  # what an optimizer needs for a moment is as large as the weights, and no activation
            return plain(self, action, store)
        with Tracked(ledger, f"{action.kind}{action.subject}"):
            return plain(self, action, store)

    PipelineProgram.run = tracked  # type: ignore[method-assign]
    try:
        yield
    finally:
        PipelineProgram.run = plain  # type: ignore[method-assign]


def _bytes(x: Any) -> int:
    return sum(t.nbytes for t in (x.values() if isinstance(x, dict) else [x]))


def summary(rounds: list[Mapping[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name in rounds[0]["rows"]:
        rows = [answer["rows"][name] for answer in rounds]
        errors = [row["measured"] / row["predicted"] - 1.0 for row in rows]
        result[name] = {
            "predicted_seconds": round(median(row["predicted"] for row in rows), 6),
            "measured_seconds": round(median(row["measured"] for row in rows), 6),
            "error": round(median(errors), 4),
            "worst_error": round(max(errors, key=abs), 4),
        }
        if "measured_peak_bytes" in rows[0]:
            peaks = [row["measured_peak_bytes"] / row["predicted_peak_bytes"] - 1.0 for row in rows]
            result[name] |= {
                "predicted_peak_bytes": rows[-1]["predicted_peak_bytes"],
                "measured_peak_bytes": rows[-1]["measured_peak_bytes"],
                "peak_error": round(median(peaks), 4),
                "cuts": [row["cuts"] for row in rows],
            }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    noise = Noise()
    nets: dict[str, Any] = {}
    for net in options.nets.split(","):
        contender = Contender(net, Forecast, {"net": net, "batch": options.batch, "threads": options.threads})
        contender.start()
        rounds = []
        for number in range(options.rounds):
            answer = contender.measure(options.steps, timeout_seconds=1800.0)
            if answer is not None:
                rounds.append(answer)
                print(f"{net}, round {number + 1}/{options.rounds}", file=sys.stderr, flush=True)
        contender.stop()
        nets[net] = summary(rounds) if rounds else {"error": contender.error}
    cells = []
    for net, rows in nets.items():
        for name, row in rows.items():
            if name == "error":
                cells.append((net, f"failed: {row}", *[None] * 6))
                continue
            peak = [
                f"{row[k] / 1e6:.1f}" if k in row else None for k in ("predicted_peak_bytes", "measured_peak_bytes")
            ]
            cells.append(
                (
                    net,
                    name,
                    f"{row['predicted_seconds'] * 1e3:.1f}",
                    f"{row['measured_seconds'] * 1e3:.1f}",
                    f"{row['error']:+.0%} ({row['worst_error']:+.0%})",
                    *peak,
                    f"{row['peak_error']:+.0%}" if "peak_error" in row else None,
                )
            )
    head = ("network", "how", "predicted ms", "measured ms", "off (worst)", "predicted MB", "measured MB", "off")
    print(table(head, cells))
    known = [row for rows in nets.values() for row in rows.values() if isinstance(row, dict)]
    result: dict[str, Any] = {"benchmark": "forecast", "batch": options.batch, "rounds": options.rounds, "nets": nets}
    for key in ("error", "peak_error"):
        values = [abs(row[key]) for row in known if key in row]
        if values:
            result[f"mean_{key}"] = round(sum(values) / len(values), 4)
            result[f"greatest_{key}"] = max(values)
            print(f"{key.replace('_', ' ')}: {sum(values) / len(values):.1%} on average, {max(values):.1%} at worst")
    finish(result | {"noise": noise.report(), "torch": torch.__version__})


if __name__ == "__main__":
    main()
