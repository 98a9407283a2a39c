"""Tiles against the whole: batch slices, output channels, input channels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convoy.errors import InternalError
from convoy.graph.rules import rule_for
from convoy.graph.rules.cropping import PadOptions, SliceOptions
from convoy.graph.rules.shaping import AddOptions, CatOptions

# A tile may order its sums otherwise than the whole does: equal to rounding, not to the bit.
CLOSE = {"rtol": 1e-10, "atol": 1e-10}

LAYERS = [
    (nn.Conv2d(6, 8, 3, padding=1), (4, 6, 7, 5)),
    (nn.Conv2d(6, 8, (2, 3), stride=2, dilation=(2, 1), bias=False), (4, 6, 9, 8)),
    (nn.Conv2d(6, 8, 2, padding="same"), (4, 6, 7, 5)),
    (nn.Conv2d(6, 12, 3, groups=3), (4, 6, 7, 5)),
    (nn.Conv2d(6, 6, 3, groups=6), (4, 6, 7, 5)),
    (nn.Linear(6, 8), (4, 6)),
    (nn.Linear(6, 8), (4, 3, 6)),
    (nn.BatchNorm2d(6), (4, 6, 5, 5)),
    (nn.BatchNorm2d(6).eval(), (4, 6, 5, 5)),
    (nn.BatchNorm1d(6, affine=False), (4, 6)),
    (nn.ReLU(), (4, 6, 5, 5)),
    (nn.SiLU(), (4, 6)),
    (nn.MaxPool2d(2), (4, 6, 5, 5)),
    (nn.AvgPool2d(3, 2, 1), (4, 6, 5, 5)),
    (nn.AdaptiveAvgPool2d(1), (4, 6, 5, 5)),
    (nn.AdaptiveAvgPool2d(2), (4, 6, 5, 5)),
    (nn.Identity(), (4, 6, 5, 5)),
]


def cuts(total, step):
    """Two unequal tiles, or the whole where a step allows no cut."""
    middle = total // step // 3 * step or step
    return [(0, middle), (middle, total)] if middle < total else [(0, total)]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("module, shape", LAYERS, ids=repr)
def test_tiles_make_up_the_whole(bind_module, images, module, shape, last):
    torch.manual_seed(0)
    module = module.double()
    x = images(shape, dtype=torch.float64, last=last and len(shape) == 4)
    tiled = bind_module(module)
    initial = {name: b.clone() for name, b in module.named_buffers()}
    y, saved = tiled.forward([x])
    moved = {name: b.clone() for name, b in module.named_buffers()}
    grad = torch.randn_like(y)
    (dx,), dw = tiled.input_grad(saved, grad), tiled.weight_grad(saved, grad)
    features = -1 if isinstance(module, nn.Linear) else 1
    tiling = tiled.tiling

    # output channels
    for name, b in module.named_buffers():
        b.copy_(initial[name])
    bounds = cuts(y.shape[features], tiling.forward_step)
    if features == 1 or y.dim() == 2:
        parts = [tiled.forward([x], channels=c)[0] for c in bounds]
        torch.testing.assert_close(torch.cat(parts, features), y, **CLOSE)
        for name, b in module.named_buffers():
            torch.testing.assert_close(b, moved[name], **CLOSE)
    gradients = [tiled.weight_grad(saved, grad, channels=c) for c in bounds] if dw else []
    for name in dw:
        torch.testing.assert_close(torch.cat([g[name] for g in gradients]), dw[name], **CLOSE)

    # input channels
    bounds = cuts(x.shape[features], tiling.input_grad_step)
    parts = [tiled.input_grad(saved, grad, channels=c)[0] for c in bounds]
    torch.testing.assert_close(torch.cat(parts, features), dx, **CLOSE)

    # batch slices
    if not tiling.samples:
        with pytest.raises(InternalError, match="couples the samples"):
            tiled.samples(saved, 0, 1)
        return
    slices = [(0, 1), (1, 4)]
    torch.testing.assert_close(torch.cat([tiled.forward([x[a:b]])[0] for a, b in slices]), y, **CLOSE)
    parts = [tiled.input_grad(tiled.samples(saved, a, b), grad[a:b])[0] for a, b in slices]
    torch.testing.assert_close(torch.cat(parts), dx, **CLOSE)
    gradients = [tiled.weight_grad(tiled.samples(saved, a, b), grad[a:b]) for a, b in slices]
    for name in dw:
        torch.testing.assert_close(sum(g[name] for g in gradients), dw[name], **CLOSE)


def test_only_batch_statistics_couple_samples(bind_module):
    assert not bind_module(nn.BatchNorm2d(3)).tiling.samples
    assert bind_module(nn.BatchNorm2d(3).eval()).tiling.samples
    assert bind_module(nn.Flatten()).tiling.samples
    assert not bind_module(nn.Flatten(0)).tiling.samples


def test_channels_of_what_a_tile_needs(bind_module):
    assert bind_module(nn.Conv2d(4, 6, 3)).tiling.forward == "all"
    grouped = bind_module(nn.Conv2d(4, 6, 3, groups=2)).tiling
    assert (grouped.forward, grouped.forward_step, grouped.input_grad_step) == ("own", 3, 2)
    assert bind_module(nn.BatchNorm2d(4)).tiling.forward == "own"
    assert bind_module(nn.BatchNorm2d(4, momentum=None)).tiling.forward == "none"


def test_impossible_tiles_are_refused(bind_module, images):
    x = images((2, 4, 5, 5))
    with pytest.raises(InternalError, match="through a group of 3"):
        bind_module(nn.Conv2d(4, 6, 3, groups=2)).forward([x], channels=(0, 2))
    with pytest.raises(InternalError, match=r"batch_norm .* cannot be tiled by output channels"):
        bind_module(nn.BatchNorm2d(4, momentum=None)).forward([x], channels=(0, 2))
    with pytest.raises(InternalError, match=r"flatten .* cannot be tiled by output channels"):
        bind_module(nn.Flatten()).forward([x], channels=(0, 2))
    with pytest.raises(InternalError, match="broadcasts"):
        rule_for("add").narrow_forward(AddOptions(), {}, [x, x[:1]], 0, 2)


@pytest.mark.parametrize("lo, hi", [(0, 2), (1, 4), (3, 5), (4, 6), (0, 6)])
def test_cat_takes_the_channels_that_overlap(images, same_bits, lo, hi):
    rule, options = rule_for("cat"), CatOptions(1)
    inputs = [images((2, c, 3, 3), seed=c) for c in (3, 1, 2)]
    whole, _ = rule.forward(options, {}, inputs)
    part, _ = rule.forward(*rule.narrow_forward(options, {}, inputs, lo, hi))
    assert same_bits(part, whole[:, lo:hi])


@pytest.mark.parametrize("pad", [(1, 2), (1, 0, -1, 2), (0, 0, 0, 0, 2, 1)])
@pytest.mark.parametrize("lo, hi", [(0, 2), (1, 4), (2, 3), (0, 1)])
def test_padded_channels(images, same_bits, pad, lo, hi):
    rule, options, x = rule_for("pad"), PadOptions(pad, 3.0), images((2, 4, 3, 5))
    whole, saved = rule.forward(options, {}, [x])
    part, _ = rule.forward(*rule.narrow_forward(options, {}, [x], lo, hi))
    assert same_bits(part, whole[:, lo:hi])
    grad = torch.randn_like(whole)
    (dx,), (tile,) = (
        rule.input_grad(options, {}, saved, grad),
        rule.input_grad(*rule.narrow_input_grad(options, {}, saved, grad, lo, hi)),
    )
    assert same_bits(tile, dx[:, lo:hi])


def test_slices_by_channel_and_sample(images, same_bits):
    rule, x = rule_for("getitem"), images((4, 5, 6, 6))
    strided = SliceOptions(((None, None, None), (None, None, None), (None, None, 2)))
    whole, saved = rule.forward(strided, {}, [x])
    grad = torch.randn_like(whole)
    (dx,) = rule.input_grad(strided, {}, saved, grad)
    (tile,) = rule.input_grad(*rule.narrow_input_grad(strided, {}, saved, grad, 1, 3))
    assert same_bits(rule.forward(*rule.narrow_forward(strided, {}, [x], 1, 3))[0], whole[:, 1:3])
    assert same_bits(tile, dx[:, 1:3])
    (piece,) = rule.input_grad(strided, {}, rule.narrow_samples(strided, saved, 1, 3), grad[1:3])
    assert same_bits(piece, dx[1:3])
    channels = SliceOptions(((None, None, None), (1, 3, None)))
    with pytest.raises(InternalError, match="has no tiles"):
        rule.narrow_forward(channels, {}, [x], 0, 1)
    with pytest.raises(InternalError, match="couples the samples"):
        rule.narrow_samples(SliceOptions(((0, 2, None),)), saved, 0, 1)


def test_a_batch_is_counted_once_however_many_tiles(bind_module, images):
    module = nn.BatchNorm2d(6)
    bound = bind_module(module)
    for channels in ((4, 6), (0, 2), (2, 4)):
        bound.forward([images((2, 6, 3, 3))], channels=channels)
    assert module.num_batches_tracked.item() == 1
