"""An independent statement of stale-weight pipelining, in closed formulas and nothing else.

It knows the configuration (which layer lies in which stage, the delays, how many parts a batch enters in, where the
pipeline was drained) and nothing of convoy's schedules, engines or programs. Weights are kept as snapshots, one for
every version; the backward pass of each layer is written out, so that it can be given other weights than its forward
pass had:

    forward of part u at stage i:  weights max(v, batch(max(0, u - d_i))), v the version at the last drain
    backward of part u at stage i: weights batch(u), activations as the forward pass made them
    weights v + 1 at stage i:      one step of the optimizer from v with the gradients of the parts of batch v

Everything is evaluated by recursion on these three lines, so the order in which things happen follows from what needs
what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

aten = torch.ops.aten


@dataclass(frozen=True)
class Layer:
    """``kind``, the names of its inputs ("x" is the batch) and its options."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


class Add(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class LayerNet(nn.Module):
    """The same layers as an ordinary module. The last one gives the logits."""

    MODULES: ClassVar = {
        "conv": nn.Conv2d,
        "bn": nn.BatchNorm2d,
        "relu": nn.ReLU,
        "max": nn.MaxPool2d,
        "avg": nn.AvgPool2d,
        "add": Add,
        "flatten": nn.Flatten,
        "linear": nn.Linear,
    }

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.plan = [(layer.name, layer.inputs) for layer in layers]
        for layer in layers:
            self.add_module(layer.name, self.MODULES[layer.kind](**layer.options))

    def forward(self, x: Tensor) -> Tensor:
        values = {"x": x}
        for name, inputs in self.plan:
            values[name] = getattr(self, name)(*(values[i] for i in inputs))
        return values[self.plan[-1][0]]


@dataclass
class Run:
    """What came out: losses by batch, and per stage every version of its weights."""

    losses: list[Tensor]
    weights: dict[str, Tensor]
    buffers: dict[str, Tensor]
    momentum: dict[str, Tensor]


class Reference:
    """``stages``: layer name → stage, from 1. ``parts``: micro-batches of each batch. ``drains``: batches before
    which the pipeline was drained. ``lr``: the learning rate with which each batch entered."""

    def __init__(
        self,
        model: LayerNet,
        layers: Sequence[Layer],
        stages: dict[str, int],
        delays: Sequence[int],
        batches: Sequence[tuple[Tensor, Tensor]],
        *,
        accumulate: int,
        lr: Sequence[float],
        drains: Sequence[int] = (),
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        self.layers, self.stages, self.delays = list(layers), stages, tuple(delays)
        self.drains, self.lr = sorted(drains), lr
        self.units: list[tuple[int, int]] = []  # part → (batch, index in it)
        self.data: list[tuple[Tensor, Tensor, float]] = []
        for t, (x, y) in enumerate(batches):
            m = min(accumulate, len(x))
            for index, (px, py) in enumerate(zip(x.tensor_split(m), y.tensor_split(m), strict=True)):
                self.units.append((t, index))
                self.data.append((px, py, len(px) / len(x)))
        self.parts = [min(accumulate, len(x)) for x, _ in batches]
        self.count = len(batches)
        live = {n: p.detach().clone(memory_format=torch.preserve_format) for n, p in model.named_parameters()}
        self.buffers = {n: b.detach().clone() for n, b in model.named_buffers()}
        self.live = live
        self.names = {i: [n for n in live if stages[n.partition(".")[0]] == i] for i in range(1, len(self.delays) + 1)}
        self.optimizers = {
            i: torch.optim.SGD(
                [live[n] for n in names] or [torch.zeros(1)],
                lr=0.1,
                momentum=momentum,
                weight_decay=weight_decay,
                nesterov=nesterov,
            )
            for i, names in self.names.items()
        }
        self.versions: dict[int, list[dict[str, Tensor]]] = {i: [self._snapshot(i)] for i in self.names}
        self._forwards: dict[tuple[int, int], dict[str, Any]] = {}
        self._backwards: dict[tuple[int, int], tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
        self.losses: dict[int, Tensor] = {}
        self.users: dict[str, list[Layer]] = {}
        for layer in self.layers:
            for name in layer.inputs:
                self.users.setdefault(name, []).append(layer)

    # --- the three lines -----------------------------------------------------------------------------------

    def forward_version(self, stage: int, unit: int) -> int:
        batch = self.units[unit][0]
        drained = max((d for d in self.drains if d <= batch), default=0)
        return max(drained, self.units[max(0, unit - self.delays[stage - 1])][0])

    def backward_version(self, stage: int, unit: int) -> int:
        return self.units[unit][0]

    def weights(self, stage: int, version: int) -> dict[str, Tensor]:
        history = self.versions[stage]
        while len(history) <= version:
            batch = len(history) - 1
            first = self.units.index((batch, 0))
            total: dict[str, Tensor] = {}
            for unit in range(first, first + self.parts[batch]):
                for name, gradient in self.backward(stage, unit)[0].items():
                    total[name] = total[name] + gradient if name in total else gradient
            for name in self.names[stage]:
                self.live[name].grad = total.get(name)
            optimizer = self.optimizers[stage]
            optimizer.param_groups[0]["lr"] = self.lr[batch]
            optimizer.step()
            history.append(self._snapshot(stage))
        return history[version]

    def run(self) -> Run:
        """All batches, and the drain at the end."""
        for stage in self.names:
            self.weights(stage, self.count)
        losses = []
        for t in range(self.count):
            parts = [u for u, (batch, _) in enumerate(self.units) if batch == t]
            weighted = [self.losses[u] * self.data[u][2] for u in parts]
            losses.append(self.losses[parts[0]] if len(parts) == 1 else torch.stack(weighted).sum())
        momentum = {
            name: self.optimizers[i].state[self.live[name]]["momentum_buffer"]
            for i, names in self.names.items()
            for name in names
            if self.optimizers[i].state[self.live[name]].get("momentum_buffer") is not None
        }
        return Run(losses, {n: t.detach() for n, t in self.live.items()}, self.buffers, momentum)

    # --- forward -------------------------------------------------------------------------------------------

    def forward(self, stage: int, unit: int) -> dict[str, Any]:
        """Values by layer name, and under ("kept", name) what the layer's backward needs besides."""
        if (stage, unit) in self._forwards:
            return self._forwards[stage, unit]
        if unit:
            self.forward(stage, unit - 1)  # running statistics follow the order of the batches
        weights = self.weights(stage, self.forward_version(stage, unit))
        values: dict[Any, Any] = {}
        for earlier in range(1, stage):
            values |= {k: v for k, v in self.forward(earlier, unit).items() if isinstance(k, str)}
        values["x"] = self.data[unit][0]
        own: dict[Any, Any] = {}
        for layer in self.layers:
            if self.stages[layer.name] == stage:
                inputs = [values[name] for name in layer.inputs]
                own[layer.name], own["kept", layer.name] = self._layer_forward(layer, weights, inputs)
                own["inputs", layer.name] = inputs
                values[layer.name] = own[layer.name]
        self._forwards[stage, unit] = own
        return own

    def _layer_forward(self, layer: Layer, weights: dict[str, Tensor], inputs: list[Tensor]) -> tuple[Tensor, Any]:
        n, (x, *rest) = layer.name, inputs
        w, b = weights.get(f"{n}.weight"), weights.get(f"{n}.bias")
        match layer.kind:
            case "conv":
                return torch.conv2d(x, w, b, _pair(layer, "stride", 1), _pair(layer, "padding", 0)), None
            case "bn":
                buffers = [self.buffers[f"{n}.running_mean"], self.buffers[f"{n}.running_var"]]
                self.buffers[f"{n}.num_batches_tracked"] += 1
                out, mean, invstd = torch.native_batch_norm(x, w, b, *buffers, True, 0.1, 1e-5)
                return out, (mean, invstd)
            case "relu":
                return torch.relu(x), None
            case "max":
                return aten.max_pool2d_with_indices(x, [2, 2], [2, 2])
            case "avg":
                return aten.avg_pool2d(x, [2, 2], [2, 2]), None
            case "add":
                return x + rest[0], None
            case "flatten":
                return x.flatten(1), None
            case "linear":
                return F.linear(x, w, b), None
        raise AssertionError(layer.kind)

    # --- backward ------------------------------------------------------------------------------------------

    def backward(self, stage: int, unit: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Gradients of the stage's weights by name, and of the values it uses that earlier stages made."""
        if (stage, unit) in self._backwards:
            return self._backwards[stage, unit]
        values = self.forward(stage, unit)
        weights = self.weights(stage, self.backward_version(stage, unit))
        into: dict[str, Tensor] = {}  # layer name → gradient of its result
        for later in range(len(self.delays), stage, -1):
            sent = self.backward(later, unit)[1]
            _add_all(into, {name: g for name, g in sent.items() if self.stages[name] == stage})
        if stage == len(self.delays):
            into[self.layers[-1].name] = self._loss(unit, values[self.layers[-1].name])
        gradients: dict[str, Tensor] = {}
        for layer in reversed(self.layers):
            if self.stages[layer.name] != stage or layer.name not in into:
                continue
            wanted = [name != "x" for name in layer.inputs]
            back, own = self._layer_backward(layer, weights, values, into.pop(layer.name), wanted[0])
            gradients |= own
            _add_all(into, {name: g for name, g, want in zip(layer.inputs, back, wanted, strict=True) if want})
        self._backwards[stage, unit] = gradients, into
        return gradients, into

    def _loss(self, unit: int, logits: Tensor) -> Tensor:
        _, target, share = self.data[unit]
        leaf = logits.detach().requires_grad_()
        loss = F.cross_entropy(leaf, target)
        self.losses[unit] = loss.detach()
        return torch.autograd.grad(loss, leaf, torch.full_like(loss, share))[0]

    def _layer_backward(
        self, layer: Layer, weights: dict[str, Tensor], values: dict[Any, Any], g: Tensor, wanted: bool
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        n, x, kept = layer.name, values["inputs", layer.name][0], values["kept", layer.name]
        w, b = weights.get(f"{n}.weight"), weights.get(f"{n}.bias")
        own: dict[str, Tensor] = {}
        match layer.kind:
            case "conv":
                stride, padding = _pair(layer, "stride", 1), _pair(layer, "padding", 0)
                sizes = None if b is None else [len(b)]
                mask = [wanted, True, b is not None]
                gx, own[f"{n}.weight"], gb = aten.convolution_backward(
                    g, x, w, sizes, stride, padding, [1, 1], False, [0, 0], 1, mask
                )
                if b is not None:
                    own[f"{n}.bias"] = gb
            case "bn":
                mean, var = self.buffers[f"{n}.running_mean"], self.buffers[f"{n}.running_var"]
                gx, own[f"{n}.weight"], own[f"{n}.bias"] = aten.native_batch_norm_backward(
                    g, x, w, mean, var, *kept, True, 1e-5, [True, True, True]
                )
            case "relu":
                gx = aten.threshold_backward(g, values[n], 0)
            case "max":
                gx = aten.max_pool2d_with_indices_backward(g, x, [2, 2], [2, 2], [0, 0], [1, 1], False, kept)
            case "avg":
                gx = aten.avg_pool2d_backward(g, x, [2, 2], [2, 2], [0, 0], False, True, None)
            case "add":
                return [g, g], own
            case "flatten":
                gx = g.reshape(x.shape)
            case "linear":
                gx, own[f"{n}.weight"] = g.mm(w), g.t().mm(x)
                own[f"{n}.bias"] = g.sum(0)
        return [gx], own

    def _snapshot(self, stage: int) -> dict[str, Tensor]:
        return {n: self.live[n].detach().clone(memory_format=torch.preserve_format) for n in self.names[stage]}


def _pair(layer: Layer, option: str, default: int) -> list[int]:
    value = layer.options.get(option, default)
    return [value, value]


def _add_all(into: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    for name, gradient in more.items():
        into[name] = into[name] + gradient if name in into else gradient


def chain(channels: int = 4, classes: int = 3) -> list[Layer]:
    """conv bn relu max conv relu avg flatten linear relu linear; images of 2 × 8 × 8."""
    c = channels
    return [
        Layer("conv1", "conv", ("x",), {"in_channels": 2, "out_channels": c, "kernel_size": 3, "padding": 1}),
        Layer("bn1", "bn", ("conv1",), {"num_features": c}),
        Layer("relu1", "relu", ("bn1",)),
        Layer("max1", "max", ("relu1",), {"kernel_size": 2}),
        Layer("conv2", "conv", ("max1",), {"in_channels": c, "out_channels": c, "kernel_size": 3, "bias": False}),
        Layer("relu2", "relu", ("conv2",)),
        Layer("avg2", "avg", ("relu2",), {"kernel_size": 2}),
        Layer("flat", "flatten", ("avg2",)),
        Layer("fc1", "linear", ("flat",), {"in_features": c, "out_features": 6}),
        Layer("relu3", "relu", ("fc1",)),
        Layer("fc2", "linear", ("relu3",), {"in_features": 6, "out_features": classes}),
    ]


def residual(channels: int = 8, classes: int = 3) -> list[Layer]:
    """Two residual blocks, the second with a projection; images of 2 × 8 × 8. At least 8 channels: with fewer, PyTorch
    2.13 on the CPU writes past its memory in the weight gradient of a channels-last 1 × 1 convolution of stride 2."""
    c = channels

    def conv(name: str, source: str, i: int, o: int, kernel: int = 3, stride: int = 1) -> Layer:
        options = {"in_channels": i, "out_channels": o, "kernel_size": kernel, "stride": stride, "bias": False}
        return Layer(name, "conv", (source,), options | {"padding": kernel // 2})

    return [
        conv("stem", "x", 2, c),
        Layer("bn0", "bn", ("stem",), {"num_features": c}),
        Layer("relu0", "relu", ("bn0",)),
        conv("conv1", "relu0", c, c),
        Layer("bn1", "bn", ("conv1",), {"num_features": c}),
        Layer("relu1", "relu", ("bn1",)),
        conv("conv2", "relu1", c, c),
        Layer("bn2", "bn", ("conv2",), {"num_features": c}),
        Layer("add1", "add", ("bn2", "relu0")),
        Layer("relu2", "relu", ("add1",)),
        conv("conv3", "relu2", c, 2 * c, stride=2),
        Layer("bn3", "bn", ("conv3",), {"num_features": 2 * c}),
        conv("short", "relu2", c, 2 * c, kernel=1, stride=2),
        Layer("add2", "add", ("bn3", "short")),
        Layer("relu3", "relu", ("add2",)),
        Layer("max", "max", ("relu3",), {"kernel_size": 2}),
        Layer("flat", "flatten", ("max",)),
        Layer("fc", "linear", ("flat",), {"in_features": 8 * c, "out_features": classes}),
    ]
