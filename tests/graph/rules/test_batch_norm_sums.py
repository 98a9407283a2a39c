"""BatchNorm by partial sums over batch slices, against the kernel."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from convoy.errors import InternalError, ModelError
from convoy.graph.rules import batch_norm_sums as sums

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def close(got, expected, dtype):
    largest = expected.abs().max().clamp_min(1.0).item()
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE[dtype] * largest)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    channels=st.integers(1, 5),
    affine=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    offset=st.sampled_from([0.0, 100.0]),
    momentum=st.sampled_from([0.1, None]),
)
def test_slices_together_are_the_batch(bind_module, images, sizes, channels, affine, dtype, offset, momentum):
    torch.manual_seed(0)
    module = nn.BatchNorm2d(channels, affine=affine, momentum=momentum).to(dtype)
    for p in module.parameters():
        nn.init.uniform_(p, 0.5, 1.5)
    whole, parts = bind_module(module), bind_module(copy.deepcopy(module))
    x = images((sum(sizes), channels, 3, 5), dtype=dtype)
    y, saved = whole.forward([x + offset])
    grad = images(y.shape, seed=1, dtype=dtype)
    (dx,), dw = whole.input_grad(saved, grad), whole.weight_grad(saved, grad)

    options, parameters = parts.options, parts.parameters
    xs, gs = (x + offset).split(sizes), grad.split(sizes)
    total = sums.combine([sums.moments(s) for s in xs])
    of = sums.affine(options, parameters, total)
    sums.update_running(options, parameters, total)
    # With a mean a hundred times the deviation, rounding of x itself shows a hundred times larger.
    allowed = dtype if offset == 0 else None
    for got, expected in [
        (torch.cat([sums.normalise(s, of) for s in xs]), y),
        (parameters["running_mean"], module.running_mean),
        (parameters["running_var"], module.running_var),
    ]:
        close(got, expected, allowed) if allowed else torch.testing.assert_close(got, expected, rtol=1e-3, atol=2e-4)
    assert torch.equal(parameters["num_batches_tracked"], module.num_batches_tracked)
    if allowed is None:
        return
    added = sums.add_sums([sums.grad_sums(options, s, of, g) for s, g in zip(xs, gs, strict=True)])
    back = sums.grad_affine(of, added)
    dxs = [sums.input_grad(s, back, g) for s, g in zip(xs, gs, strict=True)]
    close(torch.cat(dxs), dx, dtype)
    got = sums.weight_grad(parameters, added)
    assert got.keys() == dw.keys()
    for name, g in got.items():
        close(g, dw[name], dtype)


def test_bfloat16_is_summed_in_float32(images):
    x = images((64, 2, 9, 9), dtype=torch.bfloat16) + 3
    total = sums.combine([sums.moments(s) for s in x.split(16)])
    assert total.mean.dtype == torch.float32 and total.count == 64 * 81
    torch.testing.assert_close(total.mean, x.float().mean((0, 2, 3)), rtol=1e-6, atol=0)
    module = nn.BatchNorm2d(2)
    y = sums.normalise(x, sums.affine(sums.BatchNormOptions(), dict(module.named_parameters()), total))
    assert y.dtype == torch.bfloat16


def test_nothing_to_sum_is_our_mistake():
    with pytest.raises(InternalError, match="no moments"):
        sums.combine([])
    with pytest.raises(InternalError, match="no sums"):
        sums.add_sums([])


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_one_value_per_channel_is_refused_before_anything_is_counted(bind_module, images, shape):
    module = nn.BatchNorm1d(3) if len(shape) == 2 else nn.BatchNorm2d(3)
    with pytest.raises(ModelError, match=r"more than one value per channel.*\(1, 3"):
        bind_module(module).forward([images(shape)])
    assert module.num_batches_tracked.item() == 0
