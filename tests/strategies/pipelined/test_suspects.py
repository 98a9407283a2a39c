"""What a run that diverges is told about its pipeline: only what is in force, and could be otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convoy.errors import ConvoyWarning, Diverged
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.pipelined.suspects import suspects
from convoy.training.trainer import Trainer

FRESHER = "stale weights bear less: try "


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, f"{FRESHER}clock='1f1b' or accumulate=4"),
        ({"correction": "spike"}, "correction 'spike' changes the effective step: try without it"),
        ({"correction": "predict+spike"}, "correction 'spike' changes the effective step: try without it"),
        ({"correction": "dc-asgd"}, "correction 'dc-asgd' changes the effective step: try without it"),
        # These enlarge no step.
        ({"correction": "stash"}, f"{FRESHER}clock='1f1b' or accumulate=4"),
        ({"correction": "stage-lr"}, f"{FRESHER}clock='1f1b' or accumulate=4"),
        ({"correction": "pipemare", "clock": "1f1b"}, f"{FRESHER}accumulate=4"),
        ({"accumulate": 4}, f"{FRESHER}clock='1f1b'"),
        ({"accumulate": 2, "clock": "1f1b"}, f"{FRESHER}accumulate=4"),
        ({"accumulate": 8, "clock": "1f1b"}, None),
        ({"accumulate": 4, "clock": "1f1b", "correction": "stash"}, None),
        ({"accumulate": 4, "clock": "1f1b", "slack": 1}, f"{FRESHER}slack=0"),
        ({"placement": "split"}, f"{FRESHER}accumulate=4"),
        ({"stages": 1, "correction": "spike"}, None),
        ({"stages": "auto"}, f"{FRESHER}max_staleness=0.5"),
        ({"stages": "auto", "max_staleness": 0.5}, None),
    ],
)
def test_only_what_is_in_force_and_could_help_is_named(options: dict[str, Any], said: str | None) -> None:
    assert Pipelined(**options).suspects == said


def test_what_was_chosen_counts_as_in_force() -> None:
    chosen = Pipelined(cuts=["fc"], correction="predict+spike", clock="1f1b", accumulate=4)
    said = "correction 'spike' changes the effective step: try correction='none'"
    assert suspects(chosen, stages=2, automatic=True) == said
    assert suspects(chosen, stages=1, automatic=True) is None


# --- in a run ----------------------------------------------------------------------------------------------------


def half_square(output: Tensor, target: Tensor) -> Tensor:
    return ((output - target) ** 2).mean() / 2


def test_a_bound_step_knows_how_many_stages_there_are() -> None:
    model = nn.Sequential(nn.Linear(1, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with Pipelined(ppv=(), correction="spike", engine="inline").bind(model, half_square, optimizer) as step:
        assert step.suspects is not None  # not planned yet
        step(torch.ones(1, 1), torch.ones(1, 1))
        assert step.suspects is None


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"correction": "stash"}, f"{FRESHER}clock='1f1b' or accumulate=4; lower"),
        ({"correction": "stage-lr", "clock": "1f1b", "accumulate": 4}, "lower the learning rate"),
    ],
)
def test_the_hint_of_a_run(options: dict[str, Any], hint: str) -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e30, momentum=0.9)
    trainer = Trainer(model, half_square, optimizer, strategy=Pipelined(cuts=["1"], engine="inline", **options))
    batch = torch.ones(4, 1, dtype=torch.double)
    with pytest.raises(Diverged) as caught:
        trainer.fit([(batch, 2 * batch)] * 40)
    assert str(caught.value.hint).startswith(hint)


def test_without_a_sink_a_larger_step_is_a_warning_of_pythons() -> None:
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(4)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with Pipelined(cuts=["1", "2", "3"], correction="spike", engine="inline").bind(model, half_square, optimizer) as s:
        with pytest.warns(ConvoyWarning, match=r"multiplies the first response of stage 1 .* by 4\.7") as caught:
            s(torch.ones(1, 1), torch.ones(1, 1))
        assert [warning.filename for warning in caught] == [__file__]
