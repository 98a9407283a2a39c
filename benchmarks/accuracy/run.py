"""Does a strategy train as well as the plain loop? Test accuracy after every epoch, same seed, same data order.

    python benchmarks/accuracy/run.py --net resnet20 --data cifar10:DIR --ppv 7 --epochs 5 --out results/resnet20-ppv7

One variant a call. The run keeps checkpoints under ``--work`` and goes on where it stopped; the result is a small JSON
file, and its content the last line printed.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convoy.data import open_data
from convoy.graph.capture import capture
from convoy.graph.split import cut_after_layer, split
from convoy.models import PUBLISHED_PPV, build
from convoy.strategies.base import Settings, Strategy
from convoy.strategies.hybrid import Hybrid
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.sequential import Sequential
from convoy.training.evaluation import autocast, evaluate
from convoy.training.trainer import Trainer


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="resnet20")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--strategy", choices=("sequential", "pipelined"), default="pipelined")
    parser.add_argument("--ppv", help="layer numbers, such as 7,13,17; 'published' for its own; none: one stage")
    parser.add_argument("--sequential-first", type=int, default=0, help="so many epochs before the pipeline begins")
    parser.add_argument("--sequential-from", type=int, default=0, help="the epoch from which the run is sequential")
    parser.add_argument("--clock", default="registers")
    parser.add_argument("--slack", type=int, default=0)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--correction")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1, help="the highest rate of the one-cycle schedule")
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--channels-last", action="store_true", help="memory format of images: other rounding, faster")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="bfloat16: autocast")
    parser.add_argument("--warmup", type=float, default=0.3, help="share of the run in which the rate rises")
    parser.add_argument("--momentum", default="0.9", help="0.8,0.9: one a stage, the rate of each times (1 - m)/0.1")
    parser.add_argument("--recalibrate", action="store_true", help="also test with BatchNorm's estimates made anew")
    parser.add_argument("--limit", type=int, default=None, help="use only so many training images")
    parser.add_argument("--out", type=Path, required=True, help="result file without ending, under this folder")
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy"), help="where checkpoints go")
    return parser.parse_args()


def placement(options: argparse.Namespace) -> list[int]:
    """The pipeline placement vector asked for."""
    if options.ppv == "published":
        return list(PUBLISHED_PPV[options.net])
    return [int(p) for p in (options.ppv or "").split(",") if p]


def strategy(options: argparse.Namespace) -> Strategy:
    if options.strategy == "sequential":
        return Sequential()
    fields: dict[str, Any] = {
        "clock": options.clock,
        "slack": options.slack,
        "accumulate": options.accumulate,
        "correction": options.correction,
        "engine": options.engine,
    }
    if options.ppv is None:
        return Pipelined(stages=1, **fields)
    pipelined = Pipelined(ppv=placement(options), **fields)
    if options.sequential_first:
        return Hybrid(Sequential(), pipelined, switch=options.sequential_first)
    if options.sequential_from:
        return Hybrid(pipelined, Sequential(), switch=options.sequential_from)
    return pipelined


def parameter_groups(model: nn.Module, options: argparse.Namespace, example: torch.Tensor) -> list[dict[str, Any]]:
    """One group, or one a stage with its own momentum and a rate of the same effect, lr · (1 - m) / 0.1."""
    momenta = [float(m) for m in options.momentum.split(",")]
    if len(momenta) == 1:
        return [{"params": list(model.parameters()), "lr": options.lr, "momentum": momenta[0]}]
    graph = capture(copy.deepcopy(model), (example,))
    segments = split(graph, [cut_after_layer(graph, layer) for layer in placement(options)])
    named = dict(model.named_parameters())
    return [
        {"params": [named[name] for name in segment.parameters], "lr": options.lr * (1 - m) / 0.1, "momentum": m}
        for segment, m in zip(segments, momenta, strict=True)
    ]


def recalibrated(model: nn.Module, train: Iterable[Any], validation: Iterable[Any], settings: Settings) -> float:
    """Test accuracy where BatchNorm's running estimates are the mean over 100 batches with the final weights."""
    model = copy.deepcopy(model)
    with autocast(torch.device("cpu"), settings):
        torch.optim.swa_utils.update_bn(islice(train, 100), model)
    threads = settings.threads or torch.get_num_threads()
    evaluation = evaluate(model, nn.functional.cross_entropy, validation, settings, threads)
    return evaluation.accuracy or 0.0


def main() -> None:
    options = arguments()
    data = open_data(options.data, batch_size=options.batch_size, seed=options.seed, limit=options.limit)
    channels, image_size = data.sample_shape[0], data.sample_shape[1]
    torch.manual_seed(options.seed)
    model = build(options.net, classes=len(data.classes), channels=channels, image_size=image_size)
    groups = parameter_groups(model, options, torch.zeros(2, *data.sample_shape))
    optimizer = torch.optim.SGD(groups, lr=options.lr, momentum=0.9, weight_decay=options.weight_decay, fused=True)
    steps = options.epochs * len(data.train)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [group["lr"] for group in groups],
        total_steps=steps,
        pct_start=options.warmup,
        cycle_momentum=False,
    )
    settings = Settings(
        seed=options.seed,
        threads=options.threads,
        total_steps=steps,
        channels_last=options.channels_last,
        precision=options.precision,
    )
    name = options.out.name
    begun = any((options.work / name / "checkpoints").glob("*"))
    if not begun:
        shutil.rmtree(options.work / name, ignore_errors=True)  # stopped before its first checkpoint
    trainer = Trainer(
        model,
        nn.functional.cross_entropy,
        optimizer,
        scheduler=schedule,
        scheduler_interval="batch",
        strategy=strategy(options),
        settings=settings,
        run_dir=options.work,
        name=name,
        save_every="epoch",
    )
    if begun:
        trainer.load(options.work / name)
    history = trainer.fit(data.train, data.validation, epochs=options.epochs)
    result: dict[str, Any] = {
        "command": "python benchmarks/accuracy/run.py " + " ".join(sys.argv[1:]),
        "variant": name,
        "seed": options.seed,
        "accuracy": [round(100 * (record.validation_accuracy or 0.0), 2) for record in history],
        "train_loss": [round(record.train_loss, 4) for record in history],
        "seconds": [round(record.seconds, 1) for record in history],
        "torch": torch.__version__,
    }
    if options.recalibrate:
        result["recalibrated"] = round(100 * recalibrated(model, data.train, data.validation, settings), 2)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_name(f"{options.out.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
