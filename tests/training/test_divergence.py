import math
import warnings
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from convoy.errors import ConvoyWarning, Diverged
from convoy.events.event import Event
from convoy.strategies.base import Strategy
from convoy.strategies.sequential import Sequential
from convoy.training.checkpoint import names_in
from convoy.training.divergence import IN_A_ROW, LossCheck
from convoy.training.history import EpochRecord


def taken(losses, check=None):
    """The number of the loss at which the check stops; None where it takes them all."""
    check = check or LossCheck([])
    for number, loss in enumerate(losses):
        try:
            check.batch(loss, number, 1, 0.5)
        except Diverged as error:
            assert error.batch == number
            return number
    return None


CALM = [2.3, 2.4, 2.2, 2.3, 2.3]


def test_what_is_not_finite_stops_at_once():
    for value in (math.nan, math.inf, -math.inf):
        assert taken([*CALM, value]) == 5


def test_an_absurd_loss_stops_after_so_many_in_a_row():
    with pytest.raises(Diverged, match=r"the loss of batch 14 \(epoch 2\) is 3.9e\+21 at learning rate 0.5") as error:
        check = LossCheck(list(CALM))
        for number in range(5, 20):
            check.batch(3.9e21, number, 2, 0.5)
    assert "above 1e+04 for 10 mini-batches in a row, and about 2.3 at the beginning" in error.value.message
    assert "lower the learning rate" in error.value.hint


@pytest.mark.parametrize(
    "losses",
    [
        [*CALM, *[9e3] * 100],  # bad, and 4000 times the beginning: below the floor
        [*CALM, *([1e30] * (IN_A_ROW - 1) + [9e3]) * 10],  # overshoots, and comes back
        [0.0, 1e-9, 1e-9, 1e-9, 1e-9, *[9e3] * 100],  # begins with almost none
        [5e8, 4e8, 6e8, 5e8, 5e8, *[4e11] * 100],  # a loss of another scale, 800 times worse
        [1e12, 1e12, 3.0, 2.0, 1.0, *[1.0] * 100],  # begins with a bad guess
        [-2.0, -3.0, -2.0, -3.0, -1e6, *[-1e9] * 100],  # a likelihood, which improves
    ],
)
def test_a_run_that_is_merely_bad_goes_on(losses):
    assert taken(losses) is None


def test_a_loss_that_explodes_among_the_first_does_not_set_the_level():
    assert taken([2.3, 2.3, 2.3, 1e9, 1e15, *[1e15] * 20]) == 12


def test_the_level_at_the_beginning_is_that_of_the_run_that_is_resumed():
    first = []
    assert taken(CALM * 3, LossCheck(first)) is None and first == CALM
    assert taken([1e9] * 20, LossCheck(first)) == IN_A_ROW - 1
    assert taken([1e9] * 20) is None


def test_a_turn_counts_its_mini_batches_and_is_never_untrained():
    check = LossCheck(list(CALM))
    check.batch(1e20, 0, 1, 0.1, steps=6)
    with pytest.raises(Diverged, match="for 12 mini-batches"):
        check.batch(1e20, 1, 1, 0.1, steps=6)
    with pytest.raises(Diverged) as error:
        check.batch(math.nan, 0, 1, 0.1, steps=6)
    assert error.value.batch is None


def test_one_turn_is_not_in_a_row():
    check = LossCheck(list(CALM))
    for loss in (1e20, 2.0, 1e20):  # of a turn only the mean is known
        check.batch(loss, 0, 1, 0.1, steps=20)
    with pytest.raises(Diverged, match="for 40 mini-batches"):
        check.batch(1e20, 1, 1, 0.1, steps=20)


@pytest.mark.parametrize(("train", "data"), [(2.0, True), (1e9, False)])
def test_a_validation_loss_that_is_not_finite(train, data):
    check = LossCheck(list(CALM))
    check.validation(EpochRecord(epoch=1, train_loss=2.0))
    check.validation(EpochRecord(epoch=1, train_loss=2.0, validation_loss=1e30))
    with pytest.raises(Diverged, match=r"the validation loss after epoch 2 is nan at learning rate 0\.1") as error:
        check.validation(EpochRecord(epoch=2, train_loss=train, validation_loss=math.nan, lr=0.1))
    assert ("validation data" in error.value.hint) is data


# --- in the Trainer, whatever the strategy -----------------------------------------------------------------------


@dataclass(frozen=True)
class Suspected(Strategy):
    """Trains as ``Sequential`` does, with something to suspect."""

    name: ClassVar[str] = "suspected"
    suspects = "this strategy is to blame: try another"

    def bind(self, *args, **options):
        return Sequential().bind(*args, **options)


def test_a_validation_loss_stops_the_run_before_its_checkpoint(build, tmp_path):
    parts = build(strategy=Suspected(), run_dir=tmp_path, save_every="epoch")

    def break_it(event):
        if event.kind == "epoch" and event.data["epoch"] == 1:
            parts.validation.dataset.tensors[0][0].fill_(math.nan)

    parts.trainer._callbacks = (*parts.trainer._callbacks, break_it)
    with pytest.raises(Diverged, match="the validation loss after epoch 2 is nan") as error:
        parts.trainer.fit(parts.train, parts.validation, epochs=3)
    assert error.value.hint.startswith("this strategy is to blame: try another; lower the learning rate")
    assert len(parts.trainer.history) == 2 and names_in(parts.trainer.run_path / "checkpoints") == ["00000006"]
    assert parts.events[-1].data["status"] == "failed"


def test_an_absurd_loss_stops_the_run_and_names_the_strategy(build):
    parts = build(strategy=Suspected())
    absurd = False

    def loss(output, target):
        return nn.functional.cross_entropy(output, target) * (1e12 if absurd else 1.0)

    def explode(event):
        nonlocal absurd
        absurd = absurd or (event.kind == "step" and event.batch == 7)

    for group in parts.optimizer.param_groups:
        group["lr"] = 0.0
    parts.trainer._setup = replace(parts.trainer._setup, loss=loss)
    parts.trainer._callbacks = (*parts.trainer._callbacks, explode)
    with pytest.raises(Diverged, match=r"the loss of batch 17 \(epoch 3\) is .*e\+1. at learning rate 0,") as error:
        parts.trainer.fit(parts.train, epochs=9)
    assert "this strategy is to blame" in error.value.hint


# --- warnings ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Warning_(Strategy):
    name: ClassVar[str] = "warning"

    def bind(self, *args, sink=None, **options):
        sink(Event("warning", "correction", data={"message": "mind the step"}))
        return Sequential().bind(*args, sink=sink, **options)


def test_a_trainer_without_callbacks_and_sinks_warns_by_python(build):
    parts = build(strategy=Warning_())
    parts.trainer._callbacks = ()
    with pytest.warns(ConvoyWarning, match="mind the step") as caught:
        parts.trainer.fit(parts.train)
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("how", ["callbacks", "sinks"])
def test_who_listens_is_told_once(build, how):
    seen = []
    parts = build(strategy=Warning_(), **{how: [seen.append]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts.trainer.fit(parts.train)
    assert [event.data["message"] for event in seen if event.kind == "warning"] == ["mind the step"]
    assert torch.isfinite(parts.model.fc.weight).all()
