"""Which nodes get which rule, and which get none."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from convoy.errors import InternalError, ModelError
from convoy.graph.capture import capture
from convoy.graph.random import keyed
from convoy.graph.rules import RULES, bind, options_of, rule_for
from convoy.graph.rules.batch_norm import BatchNormOptions
from convoy.graph.rules.shaping import AddOptions


class Calls(nn.Module):
    """One call at a time, given as a function of the module and x [4, 6, 8, 8]."""

    def __init__(self, call):
        super().__init__()
        self.call = call
        self.weight = nn.Parameter(torch.randn(5, 3, 3, 3))
        self.bias = nn.Parameter(torch.randn(5))
        self.square = nn.Parameter(torch.randn(7, 8))
        self.row = nn.Parameter(torch.randn(8))
        self.scale, self.shift = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("var", torch.ones(6))

    def forward(self, x):
        return self.call(self, x)


RULED = {
    "conv2d": [
        lambda m, x: F.conv2d(x[:, :3], m.weight, m.bias, 2, 1),
        lambda m, x: torch.conv2d(x[:, :3], m.weight, padding="same"),
    ],
    "linear": [lambda m, x: F.linear(x, m.square)],
    "batch_norm": [
        lambda m, x: F.batch_norm(x, m.mean, m.var, m.scale, m.shift, True, 0.3, 1e-3),
        lambda m, x: F.batch_norm(x, m.mean, m.var, training=False),
        lambda m, x: torch.batch_norm(x, m.scale, m.shift, m.mean, m.var, True, 0.3, 1e-3, False),
    ],
    "relu": [lambda m, x: F.relu(x), lambda m, x: torch.relu(x), lambda m, x: x.relu(), lambda m, x: (x * 2).relu_()],
    "relu6": [lambda m, x: F.relu6(x)],
    "leaky_relu": [lambda m, x: F.leaky_relu(x, 0.3)],
    "gelu": [lambda m, x: F.gelu(x, approximate="tanh")],
    "silu": [lambda m, x: F.silu(x)],
    "tanh": [lambda m, x: torch.tanh(x), lambda m, x: x.tanh()],
    "sigmoid": [lambda m, x: torch.sigmoid(x)],
    "max_pool": [lambda m, x: F.max_pool2d(x, 3, 2, padding=1), lambda m, x: torch.max_pool2d(x, 2)],
    "avg_pool": [lambda m, x: F.avg_pool2d(x, 2, ceil_mode=True), lambda m, x: F.avg_pool2d(x, (2, 4), 1)],
    "adaptive_avg_pool": [
        lambda m, x: F.adaptive_avg_pool2d(x, 1),
        lambda m, x: x.mean((2, 3)),
        lambda m, x: torch.mean(x, [-1, -2], keepdim=True),
    ],
    "add": [
        lambda m, x: x + x.relu(),
        lambda m, x: torch.add(x, x.relu(), alpha=3),
        lambda m, x: x.add(x.relu()),
        lambda m, x: x.relu().add_(x),
    ],
    "cat": [lambda m, x: torch.cat([x, x.relu()], 1), lambda m, x: torch.cat((x, x), dim=2)],
    "flatten": [
        lambda m, x: torch.flatten(x, 1),
        lambda m, x: x.flatten(1, 2),
        lambda m, x: x.view(x.size(0), -1),
        lambda m, x: x.reshape((x.shape[0], -1)),
    ],
    "getitem": [lambda m, x: x[:, :, ::2, 1:], lambda m, x: x[1:3], lambda m, x: x.relu()[:, 2:-1]],
    "pad": [lambda m, x: F.pad(x, (1, 0, -1, 2)), lambda m, x: F.pad(x, (0, 0, 0, 0, 2, 1), "constant", 3.0)],
    "dropout": [lambda m, x: F.dropout(x, 0.3), lambda m, x: F.dropout(x, 0.3, training=False)],
}


def last_node(program):
    return [n for n in program.graph.nodes if n.op not in ("output", "placeholder")][-1]


@pytest.mark.parametrize(
    "kind, call", [(kind, call) for kind, calls in RULED.items() for call in calls], ids=lambda v: getattr(v, "kind", v)
)
def test_calls_that_a_rule_computes(images, same_bits, kind, call):
    """The rule computes what the call does: output, gradients, running statistics."""
    torch.manual_seed(0)
    model, x = Calls(call), images((4, 6, 8, 8))
    other = Calls(call)
    other.load_state_dict(model.state_dict())
    program, reference = capture(model, (x,)).program, capture(other, (x,)).program
    bound = bind(last_node(program), program)
    assert bound is not None and bound.rule is rule_for(kind)
    assert bound.trainable == tuple(n for n, t in bound.parameters.items() if isinstance(t, nn.Parameter))

    # The inputs of the last node, and from them on by autograd and by rule.
    taken = {}
    names = set(bound.inputs)

    class Take(torch.fx.Interpreter):
        def run_node(self, node):
            result = super().run_node(node)
            if node.name in names:
                taken[node.name] = result.detach().clone().requires_grad_()
                return taken[node.name].clone()  # no leaf, so that it may be changed in place
            return result

    with keyed(seed=0, batch=0):
        expected = Take(reference).run(x)
    expected = expected[0] if isinstance(expected, tuple) else expected
    grad = torch.randn_like(expected)
    expected.backward(grad)
    with keyed(seed=0, batch=0):
        y, saved = bound.forward([taken[name].detach() for name in bound.inputs])
    assert same_bits(y, expected.detach())
    arrived = {}
    for name, g in zip(bound.inputs, bound.input_grad(saved, grad), strict=False):
        arrived[name] = arrived[name] + g if name in arrived else g
    for name, g in arrived.items():
        assert same_bits(g, taken[name].grad)
    for local, g in bound.weight_grad(saved, grad).items():
        twin = next(
            q for p, q in zip(model.parameters(), other.parameters(), strict=True) if p is bound.parameters[local]
        )
        assert same_bits(g, twin.grad)
    for b, c in zip(model.buffers(), other.buffers(), strict=True):
        assert same_bits(b, c)


UNRULED = {
    "a computed weight": lambda m, x: F.conv2d(x, m.weight.repeat(1, 2, 1, 1)),
    "a computed scale": lambda m, x: F.batch_norm(x, m.mean, m.var, m.scale * 2, m.shift, True),
    "a scale without a shift": lambda m, x: F.batch_norm(x, m.mean, m.var, m.scale, None, True),
    "a scalar": lambda m, x: x + 1,
    "a parameter as summand": lambda m, x: x + m.row,
    "a mean over one dimension": lambda m, x: x.mean(1),
    "a mean over all": lambda m, x: x.mean(),
    "a mean in another type": lambda m, x: x.mean((2, 3), dtype=torch.float64),
    "indices": lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0],
    "a fixed size": lambda m, x: x.view(-1, 384),
    "half a batch": lambda m, x: x.view(x.size(0) // 2, -1),
    "a negative slope": lambda m, x: F.leaky_relu(x, -0.5),
    "a number as index": lambda m, x: x[:, 0],
    "a new dimension": lambda m, x: x[:, None],
    "a part of several results": lambda m, x: x.chunk(2, 1)[0],
    "padding by reflection": lambda m, x: F.pad(x, (1, 1, 1, 1), "reflect"),
    "no rule": lambda m, x: torch.exp(x),
    "feature dropout": lambda m, x: F.dropout2d(x, 0.3),
    "an exposed write": lambda m, x: (lambda y: (y, y.view(4, -1).relu_())[0])(x * 2),
}


@pytest.mark.parametrize("call", UNRULED.values(), ids=UNRULED.keys())
def test_calls_without_a_rule(images, call):
    program = capture(Calls(call), (images((4, 6, 8, 8)),)).program
    assert [node.name for node in program.graph.nodes if bind(node, program) is not None] == []


def test_a_function_of_the_users_with_a_known_name_has_no_rule(trace):
    class Own(nn.Module):
        def forward(self, x):
            return relu(x)

    program = trace(Own())
    node = next(n for n in program.graph.nodes if n.op == "call_function")
    assert node.target is relu and bind(node, program) is None


@torch.fx.wrap
def relu(x):
    return x + 1


class Doubling(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def with_hook():
    module = nn.ReLU()
    module.register_forward_hook(lambda m, args, out: out + 1)
    return module


@pytest.mark.parametrize(
    "module",
    [
        Doubling(3, 4, 3),
        with_hook(),
        parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
        nn.MaxPool2d(2, return_indices=True),
        nn.LeakyReLU(-0.1),
        nn.Softplus(),
        nn.Conv1d(3, 4, 3),
    ],
    ids=lambda m: type(m).__name__,
)
def test_layers_without_a_rule(module):
    assert options_of(module) is None


def test_options_follow_the_mode_at_binding(bind_module):
    module = nn.BatchNorm2d(3, eps=1e-3, momentum=0.2)
    assert bind_module(module).options == BatchNormOptions(1e-3, 0.2, True, True)
    assert bind_module(module.eval()).options == BatchNormOptions(1e-3, 0.2, False, True)


def test_parameters_are_the_modules_own(bind_module):
    module = nn.Conv2d(3, 4, 3)
    bound = bind_module(module)
    assert bound.parameters["weight"] is module.weight and bound.parameters["bias"] is module.bias
    module.bias.requires_grad_(False)
    assert bound.trainable == ("weight",)


def test_a_write_that_others_read_has_no_rule(trace):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True)

        def forward(self, x):
            x = self.conv(x)
            return x + self.relu(x)

    program = trace(Shared())
    by_name = {n.name: n for n in program.graph.nodes}
    assert bind(by_name["relu"], program) is None
    assert bind(by_name["add"], program) is not None


def test_a_keyed_dropout_draws_for_the_batch_in_force(images, same_bits):
    model = nn.Sequential(nn.Dropout(0.4))
    x = images((6, 3, 4, 4))
    program = capture(model, (x,)).program
    bound = bind(last_node(program), program)
    with keyed(seed=1, batch=5):
        expected = program(x)
        y, saved = bound.forward([x])
        mask = bound.mask(x)
    expected = expected[0] if isinstance(expected, tuple) else expected
    assert same_bits(y, expected) and same_bits(saved.tensors[0], mask)
    part, _ = bound.forward([x[2:4], mask[2:4]])
    assert same_bits(part, y[2:4])
    with keyed(seed=1, batch=6):
        assert not same_bits(bound.forward([x])[0], y)
    with pytest.raises(InternalError, match="draws no mask"):
        bind(last_node(p := capture(nn.Sequential(nn.ReLU()), (x,)).program), p).mask(x)


def test_the_table_is_complete_and_cannot_be_changed():
    assert rule_for("other") is None and rule_for("conv2d").kind == "conv2d"
    assert {kind for kind, rule in RULES.items() if rule.has_weight} == {"conv2d", "linear", "batch_norm"}
    assert {kind for kind, rule in RULES.items() if rule.has_outcome} == {"relu", "relu6", "leaky_relu", "max_pool"}
    with pytest.raises(TypeError):
        RULES["relu"] = rule_for("gelu")


@pytest.mark.parametrize("module", [nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)])
def test_images_need_a_batch_dimension(bind_module, images, module):
    with pytest.raises(ModelError, match=r"takes a batch of images .* shape \(3, 4, 4\)"):
        bind_module(module).forward([images((3, 4, 4))])


def test_alpha_is_kept(images):
    program = capture(Calls(lambda m, x: torch.add(x, x.relu(), alpha=3)), (images((4, 6, 8, 8)),)).program
    assert bind(last_node(program), program).options == AddOptions(3)
