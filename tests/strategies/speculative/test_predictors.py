"""Each predictor on signals whose structure is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from convoy.errors import OptionError
from convoy.strategies.speculative.predictors import Predictor, Room
from convoy.strategies.speculative.registry import PREDICTORS, Choice

SHAPE, CLASSES = (4, 3, 2), 5
ROOM = Room(SHAPE, CLASSES, 10_000_000)


def sample(seed: int, n: int = 12) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Labels, signals without structure, and all that a predictor may ask for."""
    g = torch.Generator().manual_seed(seed)
    given = {
        "softmax": torch.softmax(2 * torch.randn(n, CLASSES, generator=g), 1),
        "activation": torch.randn(n, *SHAPE, generator=g).relu(),
        "image": torch.randn(n, 3, 6, 6, generator=g),
    }
    return torch.randint(0, CLASSES, (n,), generator=g), torch.randn(n, *SHAPE, generator=g), given


def taught(name: str, *lessons: Any) -> Predictor:
    predictor = PREDICTORS[name](ROOM)
    for labels, signal, given in lessons:
        predictor.learn(labels, signal, {want: given[want] for want in predictor.wants})
    return predictor


def test_label_last_is_the_signal_of_the_last_sample() -> None:
    labels, signal, given = sample(0)
    labels[3:] = torch.tensor([1, 2, 1, 1, 2, 1, 2, 1, 2])
    guess = taught("label-last", (labels, signal, given)).predict(torch.tensor([1, 2]), {})
    assert torch.equal(guess, signal[[10, 11]])


def test_label_mean_decays_and_keeps_labels_that_do_not_occur() -> None:
    ones, zeros = torch.ones(4, *SHAPE), torch.zeros(4, *SHAPE)
    same = torch.tensor([2, 2, 2, 2])
    predictor = taught("label-mean", (same, ones, {}), (torch.tensor([3, 3, 3, 3]), zeros, {}))
    assert torch.allclose(predictor.predict(torch.tensor([2]), {}), ones[:1])
    predictor.learn(same, zeros, {})
    assert torch.allclose(predictor.predict(torch.tensor([2]), {}), 0.9 * ones[:1])


def test_error_scaled_finds_a_signal_that_shrinks_with_the_error() -> None:
    g = torch.Generator().manual_seed(3)
    directions = torch.randn(CLASSES, *SHAPE, generator=g)
    lessons = []
    for seed in range(3):
        labels, _, given = sample(seed, 40)
        error = (1 - given["softmax"].gather(1, labels[:, None])).clamp(min=0.05)
        lessons.append((labels, directions[labels] * error[:, :, None, None], given))
    labels, _, given = sample(9, 40)
    guess = taught("error-scaled", *lessons).predict(labels, given)
    error = 1 - given["softmax"].gather(1, labels[:, None])
    torch.testing.assert_close(guess, directions[labels] * error[:, :, None, None], rtol=1e-4, atol=1e-5)


def test_linear_finds_a_linear_map() -> None:
    g = torch.Generator().manual_seed(3)
    a = torch.randn(CLASSES, 24, generator=g)

    def signal(labels: torch.Tensor, given: Any) -> torch.Tensor:
        q = given["softmax"] - torch.nn.functional.one_hot(labels, CLASSES)
        return (q @ a).reshape(-1, *SHAPE)

    lessons = [(labels, signal(labels, given), given) for labels, _, given in (sample(s, 60) for s in range(4))]
    labels, _, given = sample(9)
    guess, true = taught("linear", *lessons).predict(labels, given), signal(labels, given)
    assert (guess - true).norm() < 0.05 * true.norm()


@pytest.mark.parametrize("name", ["label-mean", "linear"])
def test_channels_last_changes_no_prediction(name: str) -> None:
    last = PREDICTORS[name](Room(SHAPE, CLASSES, 10_000_000, channels_last=True))
    first = taught(name, sample(0), sample(1))
    for labels, signal, given in (sample(0), sample(1)):
        last.learn(labels, signal.contiguous(memory_format=torch.channels_last), given)
    labels, _, given = sample(2)
    guess = last.predict(labels, given)
    torch.testing.assert_close(guess, first.predict(labels, given), rtol=1e-4, atol=1e-6)
    assert guess.is_contiguous(memory_format=torch.channels_last)


def test_network_learns_a_signal_that_depends_on_the_activation() -> None:
    def lesson(seed: int) -> Any:
        labels, _, given = sample(seed, 32)
        return labels, given["activation"] * 3.0 - 1.0, given

    predictor = taught("network", *(lesson(s) for s in range(400)))
    labels, true, given = lesson(999)
    error = (predictor.predict(labels, given) - true).norm() / true.norm()
    assert error < 0.3
    mean = taught("label-mean", *(lesson(s) for s in range(50))).predict(labels, {})
    assert error < 0.5 * float((mean - true).norm() / true.norm())


def test_per_sample_knows_an_image_again_also_mirrored() -> None:
    labels, signal, given = sample(0)
    predictor = taught("per-sample", (labels, signal, given), sample(1))
    order = torch.tensor([5, 2, 7])
    seen = predictor.predict(labels[order], {"image": given["image"][order]})
    assert torch.equal(seen, signal[order].bfloat16().float())
    mirrored = predictor.predict(labels[order], {"image": given["image"][order].flip(-1)})
    assert torch.equal(mirrored, seen.flip(-1))
    new_labels, _, new = sample(2)
    assert torch.equal(predictor.predict(new_labels, new), predictor.mean.store[new_labels])


def test_per_sample_forgets_who_came_first_where_memory_is_bounded() -> None:
    kind = PREDICTORS["per-sample"]
    room = Room(SHAPE, CLASSES, 10 * 2 * 24 + CLASSES * 97)
    predictor = kind(room)
    lessons = [sample(s, 4) for s in range(5)]
    for labels, signal, given in lessons:
        predictor.learn(labels, signal, given)
    assert kind.bytes(room) == room.limit_bytes and len(predictor.keys) == 10 and len(predictor.ring) == 10
    labels, signal, given = lessons[-1]
    assert torch.equal(predictor.predict(labels, given), signal.bfloat16().float())
    labels, signal, given = lessons[0]
    assert not torch.equal(predictor.predict(labels, given), signal.bfloat16().float())


@pytest.mark.parametrize("name", sorted(PREDICTORS))
def test_state_goes_through_a_copy(name: str) -> None:
    """A restored predictor predicts, learns and predicts the same bits; the state is not that of the living one."""
    first, second, probe = sample(0), sample(1), sample(2)
    predictor, other = taught(name, first), PREDICTORS[name](ROOM)
    state = predictor.state()
    for p in (predictor, other):
        if p is other:
            p.restore(state)
        p.learn(second[0], second[1], second[2])
    assert torch.equal(predictor.predict(probe[0], probe[2]), other.predict(probe[0], probe[2]))


@pytest.mark.parametrize("name", sorted(set(PREDICTORS) - {"per-sample"}))
def test_memory_is_what_was_said(name: str) -> None:
    predictor = taught(name, sample(0))

    def held(value: Any) -> int:
        if isinstance(value, torch.Tensor):
            return value.numel() * value.element_size()
        return sum(map(held, value)) if isinstance(value, list) else 0

    assert held(list(predictor.state().values())) <= PREDICTORS[name].bytes(ROOM) + 8


@pytest.mark.parametrize(
    ("text", "said"),
    [("label-men", "did you mean label-mean"), ("unbiased:zer:0.5", "did you mean zero"), ("random:1", "a share of 1"),
     ("unbiased:zero:x", "a share of x"), ("nonsense", "one of: label-last.* dithered:NAME, random:X, unbiased:NAME:X"),
     ("random", "does not say the share.*random:0.5"), ("random:", "does not say the share"),
     ("unbiased:linear", "does not say the share.*unbiased:linear:0.5"), ("unbiased", "write unbiased:NAME:X"),
     ("unbiased::0.5", "write unbiased:NAME:X"), ("", "'' is unknown"), ("dithered", "write dithered:NAME"),
     ("dithered:zer", "did you mean zero"), ("dithered:", "does not say whose prediction")],
)  # fmt: skip
def test_what_is_no_predictor(text: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Choice.parse(text)
