"""Separate calls of the rules against autograd's joint backward pass: the same bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
dtypes = st.sampled_from(DTYPES)
few = settings(max_examples=40, deadline=None, derandomize=True)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@few
@given(data=st.data(), dtype=dtypes, last=st.booleans())
def test_conv2d(check_module, images, data, dtype, last):
    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = groups * data.draw(st.integers(1, 5)), groups * data.draw(st.integers(1, 5))
    kernel = (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)))
    dilation = (data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2)))
    padding = data.draw(st.sampled_from(["same", "valid", 0, 1, (1, 2)]))
    stride = 1 if padding == "same" else (data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3)))
    bias = data.draw(st.booleans())
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias, dtype=dtype)
    if last:
        conv = conv.to(memory_format=torch.channels_last)
    shape = (data.draw(st.integers(1, 3)), inputs, data.draw(st.integers(7, 11)), data.draw(st.integers(7, 12)))
    check_module(conv, images(shape, dtype=dtype, last=last))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("batch", [1, 17, 32])
def test_conv2d_of_the_size_of_real_layers(check_module, images, batch, last):
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
    conv = conv.to(memory_format=torch.channels_last) if last else conv
    check_module(conv, images((batch, 16, 16, 16), last=last))


def test_the_weight_is_not_saved_and_its_values_do_not_matter_for_its_gradient(check_module, images, same_bits):
    torch.manual_seed(0)
    for module, x in ((nn.Conv2d(3, 4, 3), images((2, 3, 8, 8))), (nn.Linear(6, 5), images((3, 6)))):
        bound, saved, grad = check_module(module, x)
        before = bound.weight_grad(saved, grad)
        with torch.no_grad():
            for p in module.parameters():
                p.fill_(float("nan"))
        after = bound.weight_grad(saved, grad)
        assert all(same_bits(before[name], after[name]) for name in before)
        assert all(t.data_ptr() != module.weight.data_ptr() for t in saved.tensors)
        (dx,) = bound.input_grad(saved, grad)
        assert dx.isnan().all(), "the input gradient follows the weight as it is now"


@few
@given(
    shape=st.sampled_from([(1, 7), (4, 7), (33, 7), (2, 3, 7), (2, 3, 2, 7)]),
    out=st.integers(1, 9),
    bias=st.booleans(),
    dtype=dtypes,
)
def test_linear(check_module, images, shape, out, bias, dtype):
    torch.manual_seed(0)
    check_module(nn.Linear(7, out, bias, dtype=dtype), images(shape, dtype=dtype))


@few
@given(
    shape=st.sampled_from([(4, 3, 5, 6), (2, 8, 1, 1), (5, 3), (3, 4, 7), (1, 2, 3, 3)]),
    dtype=dtypes,
    last=st.booleans(),
    training=st.booleans(),
    affine=st.booleans(),
    track=st.booleans(),
    momentum=st.sampled_from([0.1, 0.3, None, 0.0]),
)
def test_batch_norm(check_module, images, shape, dtype, last, training, affine, track, momentum):
    assume(dtype != torch.bfloat16 or len(shape) == 4)
    kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
    module = kind(shape[1], momentum=momentum, affine=affine, track_running_stats=track)
    if dtype == torch.float64:
        module = module.double()
    torch.manual_seed(0)
    for _, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    module.train(training)
    x = images(shape, dtype=dtype, last=last and len(shape) == 4)
    check_module(module, x)
    check_module(module, x)  # a second batch, with the count and the running statistics of the first


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_that_stopped_tracking(check_module, images, training):
    """Tracking switched off afterwards: the buffers are there, but training leaves them alone."""
    module = nn.BatchNorm2d(3).train(training)
    module.track_running_stats = False
    check_module(module, images((4, 3, 5, 5)))
    assert module.running_mean.eq(0).all() and module.num_batches_tracked == 0


ACTIVATIONS = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.LeakyReLU(),
    nn.LeakyReLU(0.0),
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.SiLU(),
    nn.Tanh(),
    nn.Sigmoid(),
    nn.Identity(),
]


@pytest.mark.parametrize("module", ACTIVATIONS, ids=repr)
@pytest.mark.parametrize("dtype", DTYPES)
def test_activations(check_module, bind_module, images, same_bits, module, dtype):
    special = torch.tensor([0.0, -0.0, 6.0, float("inf"), -float("inf"), float("nan"), 1e-30, -1e-40], dtype=dtype)
    x = 4 * images((3, 4, 5, 5), dtype=dtype, last=True)
    x.permute(0, 2, 3, 1).view(-1)[:8] = special
    if getattr(module, "inplace", False):  # a leaf cannot be changed in place: compare with the plain one
        plain, given_ = type(module)(), x.clone()
        bound = bind_module(module)
        y, _ = bound.forward([x])
        assert same_bits(x, given_)
        z, _ = bind_module(plain).forward([x])
        assert same_bits(y, z)
        return
    check_module(module, x)


@few
@given(data=st.data(), dtype=dtypes, last=st.booleans())
def test_pools(check_module, images, data, dtype, last):
    kernel = data.draw(st.sampled_from([2, 3, (2, 3), (3, 1)]))
    stride = data.draw(st.sampled_from([None, 1, 2, (2, 1)]))
    padding = data.draw(st.sampled_from([0, (1, 0) if kernel != (2, 3) else 1])) if kernel != (3, 1) else (1, 0)
    ceil = data.draw(st.booleans())
    if data.draw(st.booleans()):
        module = nn.MaxPool2d(kernel, stride, padding, data.draw(st.integers(1, 2)), ceil_mode=ceil)
    else:
        include, divisor = data.draw(st.booleans()), data.draw(st.sampled_from([None, 5]))
        module = nn.AvgPool2d(kernel, stride, padding, ceil, include, divisor)
    shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9)), data.draw(st.integers(5, 9)), 8)
    check_module(module, images(shape, dtype=dtype, last=last))


@pytest.mark.parametrize("output", [1, (1, 1), 2, (3, 2), (None, 2), (2, None)])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_adaptive_avg_pool(check_module, images, output, last, dtype):
    check_module(nn.AdaptiveAvgPool2d(output), images((3, 5, 7, 4), dtype=dtype, last=last))


@pytest.mark.parametrize("start, end", [(1, -1), (0, -1), (2, 3), (1, 2)])
@pytest.mark.parametrize("last", [False, True])
def test_flatten(check_module, images, start, end, last):
    check_module(nn.Flatten(start, end), images((3, 5, 4, 2), last=last))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_autocast_is_the_same_rule_with_a_compute_type(images, trace, same_bits, batch, last):
    """bfloat16 autocast: float32 parameters, activations and gradients in bfloat16 where autocast has them so."""
    from convoy.graph.rules import bind

    torch.manual_seed(0)
    for module, shape in ((nn.Conv2d(3, 8, 3, padding="same"), (batch, 3, 9, 7)), (nn.Linear(6, 5), (batch, 6))):
        x = images(shape, last=last and len(shape) == 4)
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            expected = module(leaf)
        grad = torch.randn_like(expected)
        expected.backward(grad)
        program = trace(nn.Sequential(module))
        node = next(n for n in program.graph.nodes if n.op == "call_module")
        bound = bind(node, program, compute=torch.bfloat16)
        y, saved = bound.forward([x])
        assert y.dtype == torch.bfloat16 and same_bits(y, expected.detach())
        assert same_bits(bound.input_grad(saved, grad)[0], leaf.grad)
        for name, g in bound.weight_grad(saved, grad).items():
            assert g.dtype == torch.float32 and same_bits(g, getattr(module, name).grad), name
