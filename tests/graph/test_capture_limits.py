"""What capturing refuses, and layers that draw, have no gradient or make their weights."""

from __future__ import annotations

import copy
import random
import threading
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.graph.captured import Model, assert_same_model, conv, images, run
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from convoy.errors import ModelError
from convoy.graph.capture import capture
from convoy.graph.random import keyed


def test_a_shape_error_names_the_line_and_the_reason() -> None:
    model = Model(lambda m, x: m.fc(m.conv(x).flatten(1)), conv=conv(), fc=nn.Linear(7, 2))
    with pytest.raises(ModelError, match=r"fails on a batch of these shapes: RuntimeError: .*144") as caught:
        capture(model, (images(),))
    assert "m.fc(m.conv(x).flatten(1))" in caught.value.message


def test_batch_norm_with_other_channels_is_refused() -> None:
    with pytest.raises(ModelError, match="fails on a batch of these shapes: RuntimeError"):
        capture(nn.Sequential(conv(), nn.BatchNorm2d(5)), (images(),))


def test_layers_in_a_plain_list_are_refused() -> None:
    model = Model(lambda m, x: m.layers[0](x), layers=[conv()])
    with pytest.raises(ModelError, match="no registered module owns"):
        capture(model, (images(),))


def test_draws_that_would_be_fixed_or_cannot_be_keyed_are_refused() -> None:
    with pytest.raises(ModelError, match="Python's random module"):
        capture(Model(lambda m, x: m.conv(x) * random.random(), conv=conv()), (images(),))
    attention = Model(
        lambda m, x: m.attention(x, x, x)[0], attention=nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True)
    )
    with pytest.raises(ModelError, match="attention: MultiheadAttention draws its dropout inside a fused kernel"):
        capture(attention, (torch.randn(2, 3, 4),))


def test_lazy_modules_and_batches_without_tensors() -> None:
    with pytest.raises(ModelError, match="LazyConv2d is lazy"):
        capture(nn.Sequential(nn.LazyConv2d(4, 3)), (images(),))
    with pytest.raises(ModelError, match="contains no tensor"):
        capture(nn.Identity(), (3,))


# --- random layers, gradients switched off, weights made inside ------------------------------------------------


def test_stochastic_depth_and_dropout_are_keyed_by_node() -> None:
    class DropPath(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                return x
            return x * torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device).floor_().add_(1)

    drop = nn.Dropout(0.5)
    model = nn.Sequential(conv(), DropPath(), drop, drop, conv())
    graph = capture(model, (images(),))
    assert [n.kind for n in graph.nodes].count("dropout") == 2
    state = torch.get_rng_state()
    first, again = run(graph, images()), run(graph, images())
    assert torch.equal(first, again) and torch.equal(state, torch.get_rng_state())
    with keyed(0, 1):
        assert not torch.equal(graph.program(images())[0], first)
    ones = capture(nn.Sequential(drop, drop), (torch.ones(2, 500),))
    kept = run(ones, torch.ones(2, 500)).gt(0).float().mean()
    assert 0.2 < kept < 0.3, "the two uses draw independently"


def test_dropout_follows_the_users_flags() -> None:
    model = nn.Sequential(conv(), nn.Dropout(0.5))
    graph = capture(model, (images(),))
    model.eval()
    assert torch.equal(run(graph, images()), model(images()))


def test_a_backbone_under_no_grad_stays_without_gradient() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = F.relu(m.backbone(x)).mul_(2.0)
        return m.head(y)

    model = Model(forward, backbone=nn.Sequential(conv(), nn.BatchNorm2d(4)), head=conv())
    graph = capture(model, (images(),))
    assert_same_model(model, graph, images(3))
    assert model.backbone[0].weight.grad is None


def test_a_train_method_that_freezes_norms_is_respected() -> None:
    class FrozenNorm(nn.Sequential):
        def train(self, mode: bool = True) -> FrozenNorm:
            super().train(mode)
            self[1].eval()
            return self

    model = FrozenNorm(conv(), nn.BatchNorm2d(4), nn.ReLU()).train()
    graph = capture(model, (images(),))
    assert_same_model(model, graph, images())
    assert model[1].num_batches_tracked == 0


def test_derived_weights_are_named() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return self._conv_forward(x, weight, self.bias)

    model = nn.Sequential(Standardised(4, 4, 3), parametrizations.weight_norm(conv()), conv())
    graph = capture(model, (images(),))
    assert [graph.by_name[n].kind for n in graph.derived_weights] == ["conv2d", "conv2d"]
    assert len(graph.notes) == 2 and all("autograd stashes" in note for note in graph.notes)
    with pytest.warns(FutureWarning):
        old = nn.Sequential(nn.utils.weight_norm(conv()))
    graph = capture(old, (images(),))
    assert len(graph.derived_weights) == 1
    got, expected = run(graph, images()), old(images())
    assert torch.equal(got, expected)


def test_hooks_run_once() -> None:
    calls: list[str] = []
    model = nn.Sequential(conv(), nn.Sequential(nn.ReLU()))
    model[0].register_forward_hook(lambda m, i, o: (calls.append("leaf"), o * 2)[1])
    model[1].register_forward_pre_hook(lambda m, i: (i[0] + 1,))
    graph = capture(model, (images(),))
    calls.clear()
    assert torch.equal(run(graph, images()), copy.deepcopy(model)(images()))
    assert calls == ["leaf", "leaf"]


def test_what_cannot_be_copied_is_shared() -> None:
    model = Model(lambda m, x: m.conv(x), conv=conv(), lock=threading.Lock())
    graph = capture(model, (images(),))
    assert torch.equal(run(graph, images()), model(images()))


def test_unused_values_are_dropped_but_not_what_has_effects() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.norm(x)
        _ = x.shape[0] * 2
        torch.sigmoid(x)
        return m.conv(x)

    model = Model(forward, conv=conv(), norm=nn.BatchNorm2d(4))
    graph = capture(model, (images(),))
    assert [n.kind for n in graph.nodes] == ["input", "batch_norm", "conv2d", "output"]
    assert_same_model(model, graph, images())


def test_a_tensor_that_the_model_drops_is_kept_while_recording() -> None:
    """Tensors are known by ``id``: one that is freed could be taken for the next."""
    alive: list[bool] = []

    def forward(m: Any, x: Tensor) -> Tensor:
        dropped = weakref.ref(m.last)
        m.last = None
        alive.append(dropped() is not None)
        return m.conv(x)

    capture(Model(forward, conv=conv(), last=torch.zeros(())), (images(),))
    assert alive == [True]
