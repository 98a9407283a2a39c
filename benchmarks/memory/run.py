"""How much more memory do activations take in a pipeline than in sequential training? Measured, exactly.

    python benchmarks/memory/run.py
    python benchmarks/memory/run.py --nets resnet20 --explain 12

For the publication's four networks and placements at batch 128: the peak of live bytes in sequential training, and in
pipelines on real threads. Everything counts but weights, their gradients, optimizer state and the images: activations
and the gradients on their way back; "activations alone" is the peak without the latter. Where the workers stand
relative to each other decides the peak, so each pipeline runs as it comes, with either worker held back, and inline;
the highest counts. "Expected" is the sum of d_i * A_i, with A_i the bytes of the distinct storages that autograd saves
at stage i and of what the stage hands over (the content of the pipeline register), where it has not saved that itself;
with accumulation it is the sum of (d_i + 1) * A_i / accumulate against the peak. "Of saved" takes as A_i what autograd
saves at the stage and nothing else. With --rss also the whole process's resident memory.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common.rounds import Noise, finish, table
from torch import Tensor, nn
from tracker import Ledger, Tracked

from convoy.graph.capture import capture
from convoy.graph.cost import measure
from convoy.graph.split import crossing, cut_after_layer
from convoy.models import PUBLISHED_PPV, build
from convoy.models.published import PUBLISHED_MEMORY
from convoy.strategies.base import Settings
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.pipelined.program import PipelineProgram
from convoy.strategies.pipelined.step import PipelinedStep
from convoy.strategies.sequential import Sequential

MIB = 2**20
BAR = 1.05
VARIANTS: dict[str, dict[str, Any]] = {
    "registers": {},
    "1f1b": {"clock": "1f1b"},
    "1f1b, accumulate 4": {"clock": "1f1b", "accumulate": 4},
}
HOLD_BACK = 0.05  # seconds an action of the slower worker waits


def shape_of(net: str) -> tuple[int, int, int]:
    return (1, 28, 28) if net == "lenet5" else (3, 32, 32)


def made(net: str, batch: int) -> tuple[nn.Module, torch.optim.Optimizer, Tensor, Tensor]:
    channels, size, _ = shape_of(net)
    model = build(net, channels=channels, image_size=size, seed=0).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)
    x = torch.randn(batch, *shape_of(net)).to(memory_format=torch.channels_last)
    return model, optimizer, x, torch.randint(0, 10, (batch,))


def stage_activations(net: str, batch: int) -> tuple[list[int], list[int], int]:
    """What autograd saves at the stages of the published placement, what they hand over without having saved it, and
    what the whole model saves; without the images, which the first stage keeps."""
    model, _, x, y = made(net, batch)
    graph = capture(model, (x,), {})
    profile = measure(graph, (x,), {}, loss=nn.functional.cross_entropy, target=y, budget_seconds=0.1)
    edges = [0, *(cut_after_layer(graph, p) for p in PUBLISHED_PPV[net]), len(graph.nodes)]
    found = [profile.saved_bytes(a, b) for a, b in itertools.pairwise(edges)]
    handed = []
    for a, b in itertools.pairwise(edges):
        register = sum(graph.by_name[name].output_bytes for name in crossing(graph, b)) if b < len(graph.nodes) else 0
        on_both_sides = found[len(handed)] + profile.saved_bytes(b, edges[-1]) - profile.saved_bytes(a, edges[-1])
        handed.append(max(0, register - on_both_sides))
    found[0] -= x.nbytes
    return found, handed, profile.saved_bytes(0, len(graph.nodes)) - x.nbytes


Peak: TypeAlias = "tuple[int, Counter[tuple[str, str]]]"


def train(step: Any, x: Tensor, y: Tensor, steps: int, ledger: Ledger | None = None) -> None:
    """``steps`` steps on fresh copies of the batch; the peak counts from the fourth."""
    for number in range(steps):
        if ledger is not None and number == 3:
            ledger.begin()
        step(x.clone(), y)


def sequential_peak(net: str, batch: int, steps: int) -> list[Peak]:
    model, optimizer, x, y = made(net, batch)
    ledger = Ledger()
    ledger.watch(model)
    settings = Settings(threads=1)
    with Sequential().bind(model, nn.functional.cross_entropy, optimizer, settings=settings) as step:

        def tracked(x: Tensor, y: Tensor) -> None:
            with Tracked(ledger, "sequential"):
                step(x, y)

        train(tracked, x, y, steps, ledger)
    return ledger.peaks(optimizer)


def pipelined_peak(net: str, batch: int, steps: int, fields: dict[str, Any], slow: int | None) -> list[Peak]:
    """``slow``: the worker that is held back."""
    model, optimizer, x, y = made(net, batch)
    ledger = Ledger()
    ledger.watch(model)
    plain: Callable[..., int] = PipelineProgram.run

    def tracked(self: PipelineProgram, action: Any, store: Any) -> int:
        with Tracked(ledger, f"{action.kind}{action.subject}"):
            return plain(self, action, store)

    def hold_back(lane: str, action: Any) -> None:
        if lane == f"worker {slow}":
            time.sleep(HOLD_BACK)

    strategy = Pipelined(ppv=PUBLISHED_PPV[net], **fields)
    PipelineProgram.run = tracked  # type: ignore[method-assign]
    try:
        with PipelinedStep(
            strategy, model, nn.functional.cross_entropy, optimizer, Settings(threads=2), None, disturb=hold_back
        ) as step:
            train(step, x, y, steps, ledger)
            step.drain()
    finally:
        PipelineProgram.run = plain  # type: ignore[method-assign]
    return ledger.peaks(optimizer)


def resident_bytes(net: str, batch: int, steps: int, fields: dict[str, Any] | None) -> int:
    """Highest resident memory of this process while it trains, over what it had before. In a process of its own."""
    import resource

    model, optimizer, x, y = made(net, batch)
    strategy = Sequential() if fields is None else Pipelined(ppv=PUBLISHED_PPV[net], **fields)
    before = _resident_now()
    settings = Settings(threads=1 if fields is None else 2)
    with strategy.bind(model, nn.functional.cross_entropy, optimizer, settings=settings) as step:
        train(step, x, y, steps)
        step.drain()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def _resident_now() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def measure_net(net: str, options: argparse.Namespace) -> dict[str, Any]:
    batch, steps = options.batch, options.steps
    saved, handed, whole = stage_activations(net, batch)
    activations = [s + h for s, h in zip(saved, handed, strict=True)]
    weights = sum(p.nbytes for p in made(net, 1)[0].parameters())
    sequential = sequential_peak(net, batch, steps)
    explain(f"{net}, sequential", sequential[0][1], options.explain)
    published = PUBLISHED_MEMORY[net]
    result: dict[str, Any] = {
        "ppv": list(PUBLISHED_PPV[net]),
        "stage_activation_bytes": activations,
        "stage_saved_bytes": saved,
        "model_activation_bytes": whole,
        "weight_bytes": weights,
        "sequential_peak_bytes": sequential[0][0],
        "sequential_activations_peak_bytes": sequential[1][0],
        "published_increase_percent": published.increase_percent,
        "published_pipedream_percent": published.pipedream_increase_percent,
        "variants": {},
    }
    for name, fields in VARIANTS.items():
        if name not in options.variants.split(";"):
            continue
        gc.collect()
        peaks: dict[str, list[Peak]] = {}
        for how, engine, slow in (
            ("inline", "inline", None),
            ("threads", "threads", None),
            ("first slow", "threads", 1),
            ("last slow", "threads", len(activations)),
        ):
            peaks[how] = pipelined_peak(net, batch, steps, fields | {"engine": engine}, slow)
        highest = max(peaks, key=lambda how: peaks[how][0][0])
        explain(f"{net}, {name}, {highest}", peaks[highest][0][1], options.explain)
        row: dict[str, Any] = {"peak_bytes": {how: found[0][0] for how, found in peaks.items()}}
        row |= judge(name, peaks[highest][0][0], sequential[0][0], activations, whole + weights)
        row["of_saved"] = of_expected(judge(name, peaks[highest][0][0], sequential[0][0], saved, whole + weights))
        alone = max(found[1][0] for found in peaks.values())
        row["activations"] = {"peak_bytes": alone} | judge(name, alone, sequential[1][0], activations, whole + weights)
        result["variants"][name] = row
    if options.rss:
        pool = multiprocessing.get_context("spawn")
        for name, fields in {"sequential": None, **VARIANTS}.items():
            with pool.Pool(1) as one:
                amount = one.apply(resident_bytes, (net, batch, steps, fields))
            (result["variants"].setdefault(name, {}))["resident_bytes"] = amount
    return result


def judge(name: str, peak: int, sequential: int, activations: list[int], whole_and_weights: int) -> dict[str, Any]:
    fields = VARIANTS[name]
    parts = fields.get("accumulate", 1)
    last = len(activations)
    per_cut = 1 if fields.get("clock") == "1f1b" else 2
    delays = [per_cut * (last - i) for i in range(1, last + 1)]
    extra = peak - sequential
    row: dict[str, Any] = {"delays": delays, "extra_bytes": extra}
    row["extra_percent"] = round(100 * extra / whole_and_weights, 1)
    if parts == 1:
        expected = sum(d * a for d, a in zip(delays, activations, strict=True))
        row |= {"expected_extra_bytes": expected, "extra_of_expected": round(extra / expected, 4)}
        row["expected_percent"] = round(100 * expected / whole_and_weights, 1)
        row["reached"] = extra <= BAR * expected
    else:
        expected = sum((d + 1) * a / parts for d, a in zip(delays, activations, strict=True))
        row |= {"expected_peak_bytes": round(expected), "peak_of_expected": round(peak / expected, 4)}
        row["reached"] = peak <= BAR * expected
    return row


def of_expected(row: dict[str, Any]) -> float:
    """The extra over its expectation; with accumulation, where it may be negative, the peak over its."""
    return float(row["extra_of_expected"] if "extra_of_expected" in row else row["peak_of_expected"])


def explain(title: str, content: Counter[tuple[str, str]], rows: int) -> None:
    if not rows:
        return
    by_action: Counter[str] = Counter()
    for (where, _), amount in content.items():
        by_action[where] += amount
    print(f"\n{title}: {sum(content.values()) / MIB:.1f} MiB at the peak", file=sys.stderr)
    print("  " + "  ".join(f"{w} {n / MIB:.1f}" for w, n in by_action.most_common()), file=sys.stderr)
    for (where, what), amount in content.most_common(rows):
        print(f"  {amount / MIB:8.2f}  {where:10} {what}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(PUBLISHED_MEMORY))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8, help="steps of every run; the peak counts from the fourth")
    parser.add_argument("--variants", default=";".join(VARIANTS), help="joined by ;")
    parser.add_argument("--rss", action="store_true", help="also resident memory, each run in a process of its own")
    parser.add_argument("--explain", type=int, default=0, metavar="N", help="the N largest holders at every peak")
    options = parser.parse_args()
    noise = Noise()
    nets = {net: measure_net(net, options) for net in options.nets.split(",")}
    rows = []
    for net, result in nets.items():
        for name, row in result["variants"].items():
            if "extra_bytes" not in row:
                continue
            alone = row["activations"]
            rows.append(
                (
                    net,
                    name,
                    f"{result['sequential_peak_bytes'] / MIB:.1f}",
                    f"{max(row['peak_bytes'].values()) / MIB:.1f}",
                    f"{row['extra_bytes'] / MIB:+.1f}",
                    f"{of_expected(row):.3f}",
                    f"{of_expected(alone):.3f}",
                    f"{row['of_saved']:.3f}",
                    f"{row['extra_percent']:+.0f} %",
                    f"{result['published_increase_percent']} %" if name == "registers" else None,
                    f"{'yes' if row['reached'] else 'no'} / {'yes' if alone['reached'] else 'no'}",
                )
            )
    head = (
        "network",
        "pipeline",
        "sequential MiB",
        "pipelined MiB",
        "extra MiB",
        "of expected",
        "activations alone",
        "of saved",
        "increase",
        "published",
        f"within {BAR}",
    )
    print(table(head, rows))
    finish({"benchmark": "memory", "batch": options.batch, "nets": nets, "noise": noise.report()})


if __name__ == "__main__":
    main()
