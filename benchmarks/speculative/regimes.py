"""What is screened: small nets on parts of real data, and the variants, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


def slim(classes: int, channels: int, norm: bool = False) -> nn.Module:
    """plain6 with half of its channels: convolutions 16-16-pool-32-32-pool-64-64, mean, one linear layer."""
    layers: list[nn.Module] = []
    inputs = channels
    for number, outputs in enumerate((16, 16, 32, 32, 64, 64)):
        if number in (2, 4):
            layers.append(nn.MaxPool2d(2))
        layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()] if norm else [nn.ReLU()]
        inputs = outputs
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


@dataclass(frozen=True)
class Regime:
    """``images`` of the training part. ``lr``: the highest of a one-cycle schedule. ``warmup``: exact mini-batches
    first; a probe every ``probes`` after them."""

    data: str
    size: int
    images: int
    batch: int
    epochs: int
    lr: float
    warmup: int = 50
    probes: int = 32
    norm: bool = False


REGIMES: Mapping[str, Regime] = {
    "mnist-1": Regime("mnist", 14, 3000, 1, 2, 0.003, 150, 64),
    "mnist-16": Regime("mnist", 14, 12000, 16, 3, 0.02, 150),
    "cifar-1": Regime("cifar10", 16, 4000, 1, 3, 0.002, 300, 64),
    "cifar-16": Regime("cifar10", 16, 10000, 16, 5, 0.02, 300),
    "cifar-64": Regime("cifar10", 16, 10000, 64, 10, 0.05, 150),
    "cifar-64-norm": Regime("cifar10", 16, 10000, 64, 10, 0.1, 150, norm=True),
}
"""The published regime, batches of 1 to 16 and label memory, first; then larger batches."""

Variant = Mapping[str, Any]


def _controls() -> Iterator[tuple[str, Variant]]:
    for share in (100, 83, 66, 50):
        yield f"exact, {share} % of the epochs", {"kind": "exact", "epochs": share / 100}
    yield "a: lower part untrained", {"kind": "skip", "rate": 1.0}
    yield "b: lower part every second", {"kind": "skip", "rate": 0.5, "alternate": True}
    yield "d: one step late", {"kind": "delayed"}
    better = {"kind": "delayed", "clock": "1f1b", "correction": "predict+spike"}
    yield "d: one step late, 1f1b, predict+spike", better
    yield "d: a quarter of a step late, 1f1b, predict+spike", {**better, "accumulate": 4}
    yield "e: lower part by chance", {"kind": "skip", "rate": 0.5}
    for fill in ("zero", "last", "ema"):
        yield f"f: {fill} by chance", {"kind": "skip", "rate": 0.5, "fill": fill}
    yield "f: ema by chance, unbiased", {"kind": "skip", "rate": 0.5, "fill": "ema", "unbiased": True}
    yield "late: every second from half on", {"kind": "skip", "rate": 0.5, "alternate": True, "begin": 0.5}
    yield "late: frozen from 60 % on", {"kind": "skip", "rate": 1.0, "begin": 0.6}


def _speculative() -> Iterator[tuple[str, Variant]]:
    def named(form: str, predictor: str, threshold: float | None, controller: str = "") -> tuple[str, Variant]:
        parts = [form, predictor, "" if threshold is None else f"{threshold:g}", controller]
        fields = {"form": form, "predictor": predictor, "threshold": threshold, "controller": controller}
        return " ".join(filter(None, parts)), {"kind": "speculative", **fields}

    for threshold in (0.1, 0.25, 0.5, 1.0):
        yield named("faithful", "label-last", threshold)
        yield named("faithful", "zero", threshold)
    for threshold in (0.5, 1.0):
        yield named("faithful", "dithered:zero", threshold)
        yield named("faithful", "label-mean", threshold)
        yield named("cut", "zero", threshold)
        yield named("cut", "dithered:zero", threshold)
    yield named("faithful", "dithered:zero", 2.0)
    for predictor in ("label-last", "label-mean", "error-scaled", "per-sample", "linear", "network"):
        yield named("cut", predictor, 1.0)
    for predictor in ("label-mean", "linear"):
        yield named("cut", predictor, 0.5)
    for predictor in ("linear", "per-sample"):
        yield named("cut", f"dithered:{predictor}", 1.0)
    for predictor in ("random:0.5", "unbiased:zero:0.5", "unbiased:label-mean:0.5", "unbiased:linear:0.5"):
        yield named("cut", predictor, None)
    yield named("cut", "linear", 1.0, "auto")
    yield named("faithful", "label-last", 0.5, "auto")
    yield named("faithful", "zero", 0.5, "auto")


VARIANTS: Mapping[str, Variant] = {**dict(_controls()), **dict(_speculative())}
