"""Accepting nothing is sequential training, bit for bit: weights, statistics, optimizer state, losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from convoy.strategies.sequential import Sequential
from convoy.strategies.speculative import Speculative

SIZES = (6, 6, 5, 6, 6, 3)
PREDICTORS = [
    "label-last", "label-mean", "error-scaled", "per-sample", "linear", "network", "zero", "dithered:zero",
    "dithered:linear", "unbiased:label-mean:0",
]  # fmt: skip


@pytest.mark.parametrize("net", ["plain", "skip"])
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_a_threshold_of_zero(train: Any, images: Any, net: str, predictor: str) -> None:
    threshold = None if predictor.startswith("unbiased") else 0
    strategy = Speculative(predictor=predictor, threshold=threshold, warmup=1, controller="always:3")
    _exact(train, images(SIZES), net, strategy)


@pytest.mark.parametrize("net", ["plain", "skip"])
@pytest.mark.parametrize("predictor", ["label-last", "label-mean", "zero", "dithered:zero"])
def test_the_faithful_form_at_a_threshold_of_zero(train: Any, images: Any, net: str, predictor: str) -> None:
    fields: dict[str, Any] = {"form": "faithful", "predictor": predictor}
    _exact(train, images(SIZES), net, Speculative(threshold=0, warmup=1, controller="always:3", **fields))


def _exact(train: Any, data: Any, net: str, strategy: Speculative) -> None:
    expected, got = train(Sequential(), net, data), train(strategy, net, data)
    assert got.losses == expected.losses
    assert got.differs(expected) == []
    assert [m["mode"] for m in got.measures] == ["exact", "probe", *["speculate"] * 2, "probe", "speculate"]
    assert all(m["accepted"] == 0.0 for m in got.measures[1:])


@pytest.mark.parametrize("options", [{"clip": 0.1}, {"channels_last": False}])
def test_with_other_settings(train: Any, images: Any, options: dict[str, Any]) -> None:
    data = images(SIZES)
    strategy = Speculative(threshold=0, warmup=1, controller="always")
    for net in ("plain", "skip"):
        assert train(strategy, net, data, **options).differs(train(Sequential(), net, data, **options)) == []


def test_with_another_optimizer(train: Any, images: Any) -> None:
    def adam(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=1e-2)

    data, strategy = images(SIZES), Speculative(threshold=0, warmup=1, controller="always")
    assert (
        train(strategy, "skip", data, optimizer=adam).differs(train(Sequential(), "skip", data, optimizer=adam)) == []
    )


def test_a_warm_up_is_exact_and_speculation_is_not(train: Any, images: Any) -> None:
    data = images(SIZES)
    plain = train(Sequential(), "plain", data)
    warm = train(
        Speculative(predictor="label-mean", threshold=float("inf"), warmup=6, controller="always"), "plain", data
    )
    loose = train(
        Speculative(predictor="label-mean", threshold=float("inf"), warmup=3, controller="always"), "plain", data
    )
    assert warm.differs(plain) == []
    assert loose.losses[:4] == plain.losses[:4] and loose.losses[4:] != plain.losses[4:]
    assert [m.get("accepted") for m in loose.measures] == [None, None, None, 1.0, 1.0, 1.0]


def test_only_the_lower_part_is_speculated(train: Any, images: Any) -> None:
    """After one speculated mini-batch, the weights above the cut are those of exact training."""
    data = images((6, 6))
    exact = train(Sequential(), "plain", data)
    strategy = Speculative(cut=5, predictor="label-mean", threshold=float("inf"), warmup=1, controller="always")
    with pytest.raises(Exception, match="no cut after layer 5"):
        train(strategy, "plain", data)
    got = train(
        Speculative(cut=2, predictor="label-mean", threshold=float("inf"), warmup=1, controller="always"), "plain", data
    )
    assert got.plan.cut == "5"
    different = {name.split(".")[0] for name in got.model.state_dict() if name in got.differs(exact)}
    assert different == {"0", "2"}
