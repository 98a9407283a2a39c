"""What a functional call (``F.relu(x)``, ``x + y``, ``x.flatten(1)``) is to the rules."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from convoy.graph.random import base_name
from convoy.graph.rules.activations import GELUOptions, LeakyReLUOptions, NoOptions
from convoy.graph.rules.batch_norm import BatchNormOptions
from convoy.graph.rules.convolution import Conv2dOptions
from convoy.graph.rules.cropping import PadOptions, SliceOptions
from convoy.graph.rules.linear import LinearOptions
from convoy.graph.rules.modules import (
    adaptive_avg_pool_options,
    avg_pool_options,
    max_pool_options,
    padding_of,
    pair,
)
from convoy.graph.rules.pooling import AdaptiveAvgPoolOptions
from convoy.graph.rules.shaping import AddOptions, CatOptions, DropoutOptions, FlattenOptions

Arguments: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """A call that a rule can stand for. ``inputs`` are fx nodes, ``parameters`` tensors that the program owns."""

    kind: str
    options: Any
    inputs: tuple[fx.Node, ...]
    parameters: Mapping[str, Tensor | None] = field(default_factory=dict)


class Unfit(Exception):
    """No rule computes what this call does."""


def read_call(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], program: fx.GraphModule) -> Call | None:
    """The call of ``function`` (a function, or a tensor method's name) with the arguments of its fx node; None where
    no rule fits."""
    name = function if isinstance(function, str) else base_name(function)
    name = {
        "__add__": "add",
        "__iadd__": "add",
        "iadd": "add",
        "concat": "cat",
        "concatenate": "cat",
        "__getitem__": "getitem",
    }.get(name, name)
    found = _READERS.get(name) or _READERS.get(name.removesuffix("_"))
    if found is None or not _is_torch(function):
        return None
    signature, reader = found
    if name == "batch_norm" and function is not F.batch_norm:
        signature = _BATCH_NORM_OF_TORCH
    try:
        return reader(_bound(signature, args, kwargs), program)
    except Unfit:
        return None


def _is_torch(function: Any) -> bool:
    """Whether a function is PyTorch's own (or an operator), not one of the user's with the same name."""
    if isinstance(function, str) or hasattr(function, "__objclass__"):  # a method of Tensor
        return True
    return str(getattr(function, "__module__", None)).partition(".")[0] in ("torch", "_operator")


_REQUIRED = object()


def _bound(signature: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    names = list(signature)
    if len(args) > len(names) and names[-1] == "sizes":  # x.view(a, b, ...) takes any number
        args = (*args[: len(names) - 1], args[len(names) - 1 :])
    if len(args) > len(names) or any(name not in signature for name in kwargs):
        raise Unfit
    bound = {**signature, **dict(zip(names, args, strict=False)), **kwargs}
    if any(value is _REQUIRED for value in bound.values()):
        raise Unfit
    return bound


def _tensor(value: Any) -> fx.Node:
    """An activation: a node, but no parameter (its gradient would be lost) and no size."""
    if not isinstance(value, fx.Node) or value.op == "get_attr" or _is_number(value):
        raise Unfit
    return value


def _is_number(node: fx.Node) -> bool:
    """Whether ``node`` computes a size, or with sizes."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    if node.op in ("call_method", "call_function"):
        name = node.target if isinstance(node.target, str) else base_name(node.target)
        if name in ("size", "dim", "numel", "__len__", "len"):
            return True
        return node.target in _ARITHMETIC and any(_is_number(n) for n in node.all_input_nodes)
    return False


_ARITHMETIC = (operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv)


def _owned(value: Any, program: fx.GraphModule) -> Tensor | None:
    """A parameter or buffer that the program reads by name; what it computes first has no place in a rule."""
    if value is None:
        return None
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        raise Unfit
    found: Any = program
    for part in str(value.target).split("."):
        found = getattr(found, part, None)
    if not isinstance(found, Tensor):
        raise Unfit
    return found


def _plain(a: Arguments, *names: str) -> list[Any]:
    """Values that have to be known now: no nodes, alone or in a sequence."""
    values = [a[name] for name in names]
    for value in values:
        if any(isinstance(v, fx.Node) for v in (value if isinstance(value, tuple | list) else (value,))):
            raise Unfit
    return values


def _conv2d(a: Arguments, program: fx.GraphModule) -> Call:
    weight, bias = _owned(a["weight"], program), _owned(a["bias"], program)
    stride, padding, dilation, groups = _plain(a, "stride", "padding", "dilation", "groups")
    if weight is None:
        raise Unfit
    kernel, dilation = pair(tuple(weight.shape[2:])), pair(dilation)
    both, after = padding_of(padding, kernel, dilation)
    options = Conv2dOptions(
        weight.shape[1] * groups,
        weight.shape[0],
        kernel,
        pair(stride),
        both,
        dilation,
        groups,
        bias is not None,
        after,
    )
    return Call("conv2d", options, (_tensor(a["input"]),), {"weight": weight, "bias": bias})


def _linear(a: Arguments, program: fx.GraphModule) -> Call:
    weight, bias = _owned(a["weight"], program), _owned(a["bias"], program)
    if weight is None or weight.dim() != 2:
        raise Unfit
    options = LinearOptions(weight.shape[1], weight.shape[0], bias is not None)
    return Call("linear", options, (_tensor(a["input"]),), {"weight": weight, "bias": bias})


def _batch_norm(a: Arguments, program: fx.GraphModule) -> Call:
    owned = {name: _owned(a[name], program) for name in ("weight", "bias", "running_mean", "running_var")}
    training, momentum, eps = _plain(a, "training", "momentum", "eps")
    if (owned["weight"] is None) != (owned["bias"] is None) or momentum is None:
        raise Unfit
    options = BatchNormOptions(eps, momentum, bool(training), owned["weight"] is not None)
    return Call("batch_norm", options, (_tensor(a["input"]),), owned)


def _simple(kind: str) -> Callable[[Arguments, fx.GraphModule], Call]:
    return lambda a, program: Call(kind, NoOptions(), (_tensor(a["input"]),))


def _leaky_relu(a: Arguments, program: fx.GraphModule) -> Call:
    (slope,) = _plain(a, "negative_slope")
    if slope < 0:
        raise Unfit
    return Call("leaky_relu", LeakyReLUOptions(slope), (_tensor(a["input"]),))


def _gelu(a: Arguments, program: fx.GraphModule) -> Call:
    return Call("gelu", GELUOptions(*_plain(a, "approximate")), (_tensor(a["input"]),))


def _max_pool(a: Arguments, program: fx.GraphModule) -> Call:
    kernel, stride, padding, dilation, ceil, indices = _plain(
        a, "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"
    )
    if indices:
        raise Unfit
    return Call("max_pool", max_pool_options(kernel, stride, padding, dilation, ceil), (_tensor(a["input"]),))


def _avg_pool(a: Arguments, program: fx.GraphModule) -> Call:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    return Call("avg_pool", avg_pool_options(*_plain(a, *names)), (_tensor(a["input"]),))


def _adaptive_avg_pool(a: Arguments, program: fx.GraphModule) -> Call:
    (output,) = _plain(a, "output_size")
    return Call("adaptive_avg_pool", adaptive_avg_pool_options(output), (_tensor(a["input"]),))


def _mean(a: Arguments, program: fx.GraphModule) -> Call:
    dims, keep, dtype = _plain(a, "dim", "keepdim", "dtype")
    if dtype is not None or not isinstance(dims, tuple | list) or sorted(dims) not in ([2, 3], [-2, -1]):
        raise Unfit
    return Call("adaptive_avg_pool", AdaptiveAvgPoolOptions((1, 1), keep), (_tensor(a["input"]),))


def _add(a: Arguments, program: fx.GraphModule) -> Call:
    (alpha,) = _plain(a, "alpha")
    return Call("add", AddOptions(alpha), (_tensor(a["input"]), _tensor(a["other"])))


def _cat(a: Arguments, program: fx.GraphModule) -> Call:
    (dim,) = _plain(a, "dim")
    if not isinstance(a["tensors"], tuple | list):
        raise Unfit
    return Call("cat", CatOptions(dim), tuple(_tensor(t) for t in a["tensors"]))


def _dropout(a: Arguments, program: fx.GraphModule) -> Call:
    p, training = _plain(a, "p", "training")
    return Call("dropout", DropoutOptions(bool(training) and p > 0), (_tensor(a["input"]),))


def _flatten(a: Arguments, program: fx.GraphModule) -> Call:
    return Call("flatten", FlattenOptions(*_plain(a, "start_dim", "end_dim")), (_tensor(a["input"]),))


def _view(a: Arguments, program: fx.GraphModule) -> Call:
    """``x.view(x.size(0), -1)``, with the size however it was read."""
    x = _tensor(a["input"])
    sizes = a["sizes"]
    if isinstance(sizes, tuple | list) and len(sizes) == 1:
        sizes = sizes[0]
    if not isinstance(sizes, tuple | list) or len(sizes) != 2 or sizes[1] != -1 or not _is_batch_size(sizes[0], x):
        raise Unfit
    return Call("flatten", FlattenOptions(1, -1), (x,))


def _getitem(a: Arguments, program: fx.GraphModule) -> Call:
    """Slices known now; an index by number or tensor has no rule, nor has a part of several results."""
    index = a["index"] if isinstance(a["index"], tuple) else (a["index"],)
    bounds = []
    for cut in index:
        if not isinstance(cut, slice):
            raise Unfit
        cut = (cut.start, cut.stop, cut.step)
        if any(isinstance(bound, fx.Node) for bound in cut):
            raise Unfit
        bounds.append(cut)
    return Call("getitem", SliceOptions(tuple(bounds)), (_tensor(a["input"]),))


def _pad(a: Arguments, program: fx.GraphModule) -> Call:
    pad, mode, value = _plain(a, "pad", "mode", "value")
    if mode != "constant" or len(pad) > 6 or (len(pad) == 6 and min(pad[4:]) < 0):
        raise Unfit
    return Call("pad", PadOptions(tuple(pad), value or 0.0), (_tensor(a["input"]),))


def _is_batch_size(value: Any, of: fx.Node) -> bool:
    if not isinstance(value, fx.Node):
        return False
    if value.target is operator.getitem and value.args[1] == 0 and isinstance(value.args[0], fx.Node):
        shape = value.args[0]
        return (shape.target is getattr and shape.args == (of, "shape")) or (
            shape.target in ("size", torch.Tensor.size) and shape.args == (of,)
        )
    return value.target in ("size", torch.Tensor.size) and value.args == (of, 0)


_X = {"input": _REQUIRED}
_INPLACE = {**_X, "inplace": False}
_WEIGHTED = {**_X, "weight": _REQUIRED, "bias": None}
_POOL = {**_X, "kernel_size": _REQUIRED, "stride": None, "padding": 0}
_STATISTICS = {"running_mean": _REQUIRED, "running_var": _REQUIRED}
_BATCH_NORM_OF_TORCH = {
    **_X,
    **{"weight": _REQUIRED, "bias": _REQUIRED},
    **_STATISTICS,
    **{"training": _REQUIRED, "momentum": _REQUIRED, "eps": _REQUIRED, "cudnn_enabled": _REQUIRED},
}

# Names and defaults of the arguments in PyTorch's order, and what reads them.
_READERS: dict[str, tuple[dict[str, Any], Callable[[Arguments, fx.GraphModule], Call]]] = {
    "conv2d": ({**_WEIGHTED, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}, _conv2d),
    "linear": (_WEIGHTED, _linear),
    "batch_norm": (
        {**_X, **_STATISTICS, "weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5},
        _batch_norm,
    ),
    **{kind: (_INPLACE, _simple(kind)) for kind in ("relu", "relu6", "silu")},
    **{kind: (_X, _simple(kind)) for kind in ("tanh", "sigmoid")},
    "leaky_relu": ({**_X, "negative_slope": 0.01, "inplace": False}, _leaky_relu),
    "gelu": ({**_X, "approximate": "none"}, _gelu),
    "max_pool2d": ({**_POOL, "dilation": 1, "ceil_mode": False, "return_indices": False}, _max_pool),
    "avg_pool2d": ({**_POOL, "ceil_mode": False, "count_include_pad": True, "divisor_override": None}, _avg_pool),
    "adaptive_avg_pool2d": ({**_X, "output_size": _REQUIRED}, _adaptive_avg_pool),
    "mean": ({**_X, "dim": None, "keepdim": False, "dtype": None}, _mean),
    "add": ({**_X, "other": _REQUIRED, "alpha": 1}, _add),
    "cat": ({"tensors": _REQUIRED, "dim": 0}, _cat),
    "dropout": ({**_X, "p": 0.5, "training": True, "inplace": False}, _dropout),
    "flatten": ({**_X, "start_dim": 0, "end_dim": -1}, _flatten),
    "getitem": ({**_X, "index": _REQUIRED}, _getitem),
    "pad": ({**_X, "pad": _REQUIRED, "mode": "constant", "value": None}, _pad),
    **{name: ({**_X, "sizes": _REQUIRED}, _view) for name in ("view", "reshape")},
}
