"""Fields of the strategy: what is refused, in one sentence with the value, and what follows from the others."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from convoy.errors import OptionError
from convoy.strategies.bilayered import BiLayered
from convoy.strategies.bilayered.course import Course
from convoy.strategies.bilayered.samples import Samples
from convoy.strategies.registry import make_strategy


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"nodes": 0}, "nodes is 0"),
        ({"nodes": "two"}, "nodes is 'two'"),
        ({"nodes": 2.5}, "nodes is 2.5"),
        ({"nodes": None}, "nodes is None"),
        ({"nodes": True}, "nodes is True"),
        ({"nodes": 5000}, "nodes is 5000, and one parameter server serves 256 at most"),
        ({"nodes": [1] * 257}, "nodes has 257 speeds"),
        ({"nodes": (1, 0)}, r"nodes is \[1, 0\]"),
        ({"nodes": ()}, r"nodes is \[\]"),
        ({"nodes": ("2", "1")}, r"nodes is \['2', '1'\]"),
        ({"nodes": (1, float("nan"))}, r"nodes is \[1, nan\]"),
        ({"nodes": (1e-300, 1)}, "over 1000 times as fast as another"),
        ({"update": "agvu"}, "update is 'agvu'"),
        ({"allocation": "odd"}, "allocation is 'odd'"),
        ({"update": None}, "update is None"),
        ({"batches": 0}, "batches is 0"),
        ({"batches": "x"}, "batches is 'x'"),
        ({"batches": True}, "batches is True"),
        ({"round": 0}, "round is 0"),
        ({"round": 1.5}, "round is 1.5"),
        ({"round": None}, "round is None"),
        ({"quality": "yes"}, "quality is 'yes'"),
        ({"quality": 1}, "quality is 1"),
        ({"insecure": "no", "engine": "ray"}, "insecure is 'no'"),
        ({"address": 6379, "engine": "ray"}, "address is 6379"),
        ({"round": "epoch"}, "round is 'epoch'"),
        ({"deltas": "int8"}, "deltas is 'int8'"),
        ({"inner": "half"}, "inner is 'half'"),
        ({"engine": "cloud"}, "engine is 'cloud'"),
        ({"update": "agwu", "quality": False}, "quality is off"),
        ({"update": "local-sgd", "quality": True}, "does not weigh by quality"),
        ({"engine": "inline", "address": "10.0.0.1:6379"}, "stays in this process"),
    ],
)
def test_values_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        BiLayered(**fields)
    assert caught.value.hint


def test_what_follows_from_the_fields() -> None:
    assert BiLayered(nodes=3).speeds == (1, 1, 1)
    assert BiLayered(nodes=[2, 1]).speeds == BiLayered(nodes=np.array([2, 1])).speeds == (2, 1)
    assert BiLayered(nodes=np.int64(2), batches=np.int64(2), round=np.int64(3)) == BiLayered(batches=2, round=3)
    assert BiLayered(update="sgwu").measures_quality
    assert not BiLayered(update="sgwu-mended").measures_quality
    assert BiLayered(update="agwu-mended", quality=True).measures_quality
    assert [BiLayered().batches_for(k) for k in (1, 2, 10)] == [1, 3, 4]
    assert BiLayered(allocation="even").batches_for(10) == 1


def test_allocation_batches_that_would_never_be_trained() -> None:
    for batches in range(1, 12):
        least = next(k for k in range(1, 20) if batches <= 2 * k - 1)
        assert BiLayered(batches=batches).batches_for(least) == batches
        if least > 1:
            message = re.escape(f"{batches} allocation batches need at least {least} epochs, not {least - 1}")
            with pytest.raises(OptionError, match=message):
                BiLayered(batches=batches).batches_for(least - 1)


def test_by_name() -> None:
    assert make_strategy("bilayered", nodes=4, update="sgwu") == BiLayered(nodes=4, update="sgwu")


# --- the order of samples and the course of hyper-parameters --------------------------------------------------------


def samples(count: int = 50, batch_size: int = 8, **options: Any) -> Samples:
    return Samples(lambda *_: iter(()), count, batch_size, seed=5, **{"shuffle": True, "held_out": False, **options})


def test_local_passes_split_the_plain_epoch_and_keep_its_order() -> None:
    made = samples()
    whole = made.order(((0, 50),), 2).tolist()
    first, second = made.order(((0, 20),), 2).tolist(), made.order(((20, 50),), 2).tolist()
    assert sorted(first + second) == sorted(whole) == list(range(50))
    assert [s for s in whole if s in set(first)] == first
    assert made.order(((0, 50),), 1).tolist() != whole
    assert samples(shuffle=False).order(((0, 50),), 2).tolist() == list(range(50))


def test_held_out_samples_are_in_no_local_pass() -> None:
    made = samples(held_out=True)
    assert (len(made.held_out), made.size) == (5, 45)
    assert not set(made.order(((0, 45),), 1).tolist()) & set(made.held_out.tolist())
    assert len(samples(30_000, held_out=True).held_out) == 1000


def test_a_last_sample_is_not_left_alone_but_where_the_plain_loop_does() -> None:
    sizes = lambda made, stop: [len(b) for b in made.minibatches(((0, stop),), 1, 0, stop)]  # noqa: E731
    assert sizes(samples(50), 17) == [8, 9]
    assert sizes(samples(17), 17) == [8, 8, 1]
    assert sizes(samples(50), 1) == [1]


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=9),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=10),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda n: 0.5**n),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [torch.optim.lr_scheduler.ConstantLR(o, 0.1, 3), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)],
            [4],
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*before.*optimizer.step.*")
def test_the_course_is_what_the_scheduler_will_say(make: Any) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    scheduler = make(optimizer)
    scheduler.step()
    before = scheduler.state_dict()["last_epoch"]
    course = Course(optimizer, scheduler, per_step=True).rows(range(8))
    told = [groups[0]["lr"] for count, groups in course for _ in range(count)]
    assert scheduler.state_dict()["last_epoch"] == before  # looked at, not stepped
    said = []
    for _ in range(8):
        said.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    assert told == said


def test_without_a_scheduler_per_step_all_rows_are_one() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    assert [count for count, _ in Course(optimizer, None, per_step=False).rows(range(5))] == [5]
