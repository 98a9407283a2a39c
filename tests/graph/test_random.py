"""Keyed draws: what they depend on, what they look like, what they leave alone."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convoy.errors import InternalError, ModelError
from convoy.graph.random import Draws, Key, Keyed, current_key, keyed, stable_seed


def draw(call: Callable[[], Tensor], *, name: str = "drop", seed: int = 0, batch: int = 0, part: int = 0) -> Tensor:
    with keyed(seed, batch, part), Draws(name):
        return call()


def dropped() -> Tensor:
    return F.dropout(torch.ones(64), 0.5)


def test_a_draw_depends_on_every_part_of_the_key_and_on_nothing_else() -> None:
    first = draw(dropped)
    torch.manual_seed(99)
    assert torch.equal(first, draw(dropped))
    for other in ({"name": "other"}, {"seed": 1}, {"batch": 1}, {"part": 1}):
        assert not torch.equal(first, draw(dropped, **other))  # type: ignore[arg-type]
    with keyed(0, 0, replica=1), Draws("drop"):
        assert not torch.equal(first, dropped())


def test_the_seed_is_the_same_on_every_machine() -> None:
    assert stable_seed(Key(0, 0, 0, 0), "drop") == 3573685879026839336


def test_the_key_is_of_the_thread_and_nests() -> None:
    seen: list[object] = []

    def other() -> None:
        try:
            current_key()
        except InternalError as error:
            seen.append(str(error))

    with keyed(1, 2, 3):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        with keyed(4, 5):
            assert current_key() == Key(4, 5, 0, 0)
        assert current_key() == Key(1, 2, 3, 0)
    assert len(seen) == 1 and "outside of keyed" in str(seen[0])


def test_drawing_without_a_key_is_a_bug_but_not_drawing_is_fine() -> None:
    layer = Keyed(nn.Dropout(0.5), "drop")
    with pytest.raises(InternalError, match="outside of keyed"):
        layer(torch.ones(3))
    layer.eval()
    assert torch.equal(layer(torch.ones(3)), torch.ones(3))
    layer.train()
    layer.inner.p = 0.0
    assert torch.equal(layer(torch.ones(3)), torch.ones(3))


def test_the_global_generator_is_not_touched() -> None:
    before = torch.get_rng_state()
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for call in CALLS.values():
        draw(lambda call=call: call(x))  # type: ignore[misc]
    assert torch.equal(before, torch.get_rng_state())


CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.dropout(x, 0.5),
    "dropout1d": lambda x: F.dropout1d(x[0], 0.5),
    "dropout2d": lambda x: F.dropout2d(x, 0.5),
    "dropout3d": lambda x: F.dropout3d(x, 0.5),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.5, True),
    "feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x, 0.5, True),
    "rrelu": lambda x: F.rrelu(x, training=True),
    "torch.dropout": lambda x: torch.dropout(x, 0.5, True),
    "aten": lambda x: torch.ops.aten.dropout.default(x, 0.5, True),
    "rand": lambda x: torch.rand(5),
    "rand of a size": lambda x: torch.rand((x.shape[0], 1, 1, 1), dtype=x.dtype, device=x.device),
    "randn": lambda x: torch.randn(5),
    "randint": lambda x: torch.randint(0, 1000, (5,)),
    "randperm": lambda x: torch.randperm(50),
    "rand_like": torch.rand_like,
    "randn_like": torch.randn_like,
    "randint_like": lambda x: torch.randint_like(x, 3, 1000),
    "bernoulli": lambda x: torch.bernoulli(torch.full_like(x, 0.5)),
    "method bernoulli_": lambda x: torch.empty_like(x).bernoulli_(0.5),
    "normal": lambda x: torch.normal(torch.zeros(5), 1.0),
    "multinomial": lambda x: torch.multinomial(torch.ones(50), 20),
    "uniform_": lambda x: torch.empty(5).uniform_(1, 2),
    "gumbel": lambda x: F.gumbel_softmax(x, hard=True),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_random_function_is_keyed(name: str) -> None:
    x = torch.randn(2, 3, 4, 4)
    call = CALLS[name]
    first = draw(lambda: call(x))
    assert torch.equal(first, draw(lambda: call(x)))
    assert any(not torch.equal(first, draw(lambda: call(x), batch=b)) for b in (1, 2, 3))
    with keyed(0, 0), Draws("drop"):
        assert first.shape == call(x).shape
        assert not torch.equal(first, call(x)), "two draws of one node differ"


def test_dropout_keeps_the_share_and_the_mean() -> None:
    x = torch.ones(200_000)
    y = draw(lambda: F.dropout(x, 0.3))
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert y.mean().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(draw(lambda: F.dropout(x, 1.0)), torch.zeros_like(x))


def test_dropout_writes_in_place_when_asked() -> None:
    x = torch.ones(20)
    y = draw(lambda: F.dropout(x, 0.5, inplace=True))
    assert y.data_ptr() == x.data_ptr() and torch.equal(y, draw(lambda: F.dropout(torch.ones(20), 0.5)))


def test_the_gradient_is_the_mask() -> None:
    x = torch.full((50,), 3.0, requires_grad=True)
    y = draw(lambda: F.dropout(x, 0.4))
    y.sum().backward()
    assert torch.equal(x.grad, y.detach() / 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("call", [F.dropout2d, F.feature_alpha_dropout])
def test_whole_channels_are_dropped(call: Callable[..., Tensor]) -> None:
    y = draw(lambda: call(torch.ones(5, 8, 4, 4), 0.5, True))
    assert all(channel.unique().numel() == 1 for channel in y.flatten(0, 1))
    assert y.unique().numel() == 2


def test_alpha_dropout_keeps_mean_and_variance() -> None:
    x = torch.randn(400_000)
    y = draw(lambda: F.alpha_dropout(x, 0.2, True))
    assert y.mean().item() == pytest.approx(0, abs=0.01) and y.var().item() == pytest.approx(1, abs=0.02)


def test_rrelu_draws_slopes_for_the_negative_part_only() -> None:
    x = torch.tensor([-1.0, 2.0]).repeat(1000)
    y = draw(lambda: F.rrelu(x, 0.1, 0.3, training=True))
    assert torch.equal(y[1::2], x[1::2])
    assert y[::2].min() >= -0.3 and y[::2].max() <= -0.1 and y[::2].unique().numel() > 100


@pytest.mark.parametrize("causal", [False, True])
def test_attention_with_dropout_is_attention(causal: bool) -> None:
    q, k, v = torch.randn(3, 2, 4, 5, 8).unbind()
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    # So little is dropped that nothing is: what remains is the arithmetic.
    got = draw(lambda: F.scaled_dot_product_attention(q, k, v, dropout_p=1e-12, is_causal=causal))
    torch.testing.assert_close(got, expected)
    mean = torch.stack(
        [draw(lambda: F.scaled_dot_product_attention(q, k, v, dropout_p=0.2), batch=b) for b in range(600)]
    ).mean(0)
    torch.testing.assert_close(mean, F.scaled_dot_product_attention(q, k, v), atol=0.25, rtol=0)


def test_what_draws_inside_a_kernel_is_refused() -> None:
    with pytest.raises(ModelError, match="fractional_max_pool2d in 'drop' draws random numbers inside a fused kernel"):
        draw(lambda: F.fractional_max_pool2d(torch.randn(1, 1, 8, 8), 2, output_size=3))


def test_probabilities_out_of_range() -> None:
    with pytest.raises(ModelError, match=r"between 0 and 1, but got 1\.5"):
        draw(lambda: F.dropout(torch.ones(3), 1.5))
    assert draw(lambda: F.dropout(torch.ones(1), 0.0)).item() == 1.0
