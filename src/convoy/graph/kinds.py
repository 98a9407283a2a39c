"""What kind of layer a node is, by the module or function that it calls."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from convoy.graph.random import base_name

WEIGHTED = frozenset(
    ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear")
)
"""Kinds that the publications number as layers."""

CONVOLUTIONS = WEIGHTED - {"linear"}

_MODULES: tuple[tuple[tuple[type, ...], str], ...] = (
    ((nn.Conv1d,), "conv1d"),
    ((nn.Conv2d,), "conv2d"),
    ((nn.Conv3d,), "conv3d"),
    ((nn.ConvTranspose1d,), "conv_transpose1d"),
    ((nn.ConvTranspose2d,), "conv_transpose2d"),
    ((nn.ConvTranspose3d,), "conv_transpose3d"),
    ((nn.Linear,), "linear"),
    ((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), "batch_norm"),
    ((nn.LayerNorm,), "layer_norm"),
    ((nn.GroupNorm,), "group_norm"),
    ((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), "instance_norm"),
    ((nn.ReLU6,), "relu6"),
    ((nn.ReLU,), "relu"),
    ((nn.LeakyReLU,), "leaky_relu"),
    ((nn.GELU,), "gelu"),
    ((nn.SiLU,), "silu"),
    ((nn.ELU,), "elu"),
    ((nn.Hardswish,), "hardswish"),
    ((nn.Hardsigmoid,), "hardsigmoid"),
    ((nn.Hardtanh,), "hardtanh"),
    ((nn.Mish,), "mish"),
    ((nn.PReLU,), "prelu"),
    ((nn.Sigmoid,), "sigmoid"),
    ((nn.Tanh,), "tanh"),
    ((nn.Softmax,), "softmax"),
    ((nn.LogSoftmax,), "log_softmax"),
    ((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), "max_pool"),
    ((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), "avg_pool"),
    ((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), "adaptive_avg_pool"),
    ((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), "adaptive_max_pool"),
    ((nn.Dropout,), "dropout"),
    ((nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), "feature_dropout"),
    ((nn.AlphaDropout, nn.FeatureAlphaDropout), "alpha_dropout"),
    ((nn.Flatten,), "flatten"),
    ((nn.Identity,), "identity"),
    ((nn.Upsample,), "interpolate"),
    ((nn.Embedding,), "embedding"),
)

_NAMES: dict[str, str] = {
    **{
        name: name
        for name in (
            *sorted(WEIGHTED),
            *("relu", "relu6", "leaky_relu", "gelu", "silu", "elu", "hardswish", "hardsigmoid", "hardtanh", "mish"),
            *("prelu", "sigmoid", "tanh", "softmax", "log_softmax", "batch_norm", "layer_norm", "group_norm"),
            *("instance_norm", "add", "sub", "mul", "matmul", "cat", "dropout", "flatten", "getitem", "mean"),
            *("reshape", "permute", "transpose", "interpolate", "pad", "embedding", "alpha_dropout"),
            *("feature_dropout", "size", "chunk", "split", "detach", "cross_entropy"),
        )
    },
    **{f"{how}_pool{d}d": f"{how}_pool" for how in ("max", "avg", "adaptive_avg", "adaptive_max") for d in (1, 2, 3)},
    **{f"{how}_pool{d}d_with_indices": f"{how}_pool" for how in ("max", "adaptive_max") for d in (1, 2, 3)},
    **{f"dropout{d}d": "feature_dropout" for d in (1, 2, 3)},
    "feature_alpha_dropout": "alpha_dropout",
    "__add__": "add",
    "__radd__": "add",
    "iadd": "add",
    "concat": "cat",
    "concatenate": "cat",
    "view": "reshape",
    "cudnn_batch_norm": "batch_norm",
    "native_batch_norm": "batch_norm",
    "_native_batch_norm_legit_functional": "batch_norm",
    "contiguous": "identity",
    "clone": "identity",
    "alias": "identity",
}


def kind_of(node: fx.Node, module: nn.Module | None) -> str:
    """The kind of ``node``; ``module`` is what a ``call_module`` node calls. "other" where there is no name for it.

    A kind says what is computed, not that options are plain: a rule has to look at them itself.
    """
    if node.op in ("placeholder", "output", "get_attr"):
        return {"placeholder": "input", "output": "output", "get_attr": "attribute"}[node.op]
    if module is not None:
        return next((kind for kinds, kind in _MODULES if any(_is_plain(module, k) for k in kinds)), "other")
    target: Any = node.target
    name = target if isinstance(target, str) else base_name(target)
    return _NAMES.get(name, _NAMES.get(name.removesuffix("_"), "other"))


def _is_plain(module: nn.Module, kind: type) -> bool:
    """Whether ``module`` is of ``kind`` and computes what ``kind`` computes (a subclass may not)."""
    return isinstance(module, kind) and type(module).forward is getattr(kind, "forward", None)
