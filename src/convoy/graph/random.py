"""Random layers whose draws depend on nothing but a key: seed, node, batch, part and replica.

Neither timing nor cuts nor the global generator can change such a draw. The runner sets seed, batch, part and
replica around a forward pass; the node's name completes the key::

    with keyed(seed=0, batch=17):
        output = segment(x)

Inside ``Draws(name)`` every random function of torch takes its numbers from the generator of that key.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convoy.errors import InternalError, ModelError


class Key(NamedTuple):
    """What a runner knows about a forward pass."""

    seed: int
    batch: int
    part: int
    replica: int


class _Current(threading.local):
    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.generators: dict[torch.device, torch.Generator] = {}


_current = _Current()


@contextmanager
def keyed(seed: int, batch: int, part: int = 0, replica: int = 0) -> Iterator[None]:
    """Within this block, in this thread, random layers draw for ``batch`` and ``part``. May be nested."""
    _current.keys.append(Key(seed, batch, part, replica))
    try:
        yield
    finally:
        _current.keys.pop()


def current_key() -> Key:
    """The key in force in this thread. Raises ``InternalError`` outside ``keyed``."""
    if not _current.keys:
        raise InternalError("a random layer ran outside of keyed(seed, batch, part)")
    return _current.keys[-1]


def stable_seed(key: Key, name: str) -> int:
    """63 bits that depend on the key and the node's name only, the same on every machine."""
    text = "/".join((str(key.seed), name, str(key.batch), str(key.part), str(key.replica)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Draws(TorchFunctionMode):
    """Gives every random function called inside the numbers of the node ``name`` under the key in force.

    Several draws in one block advance one generator, in the order in which they are made.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self._started: set[torch.device] = set()

    def generator(self, device: torch.device) -> torch.Generator:
        generators = _current.generators
        if device not in generators:
            generators[device] = torch.Generator(device)
        if device not in self._started:
            self._started.add(device)
            generators[device].manual_seed(stable_seed(current_key(), self.name))
        return generators[device]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        replaced = _RULES.get(base_name(func))
        return func(*args, **kwargs) if replaced is None else replaced(self, func, *args, **kwargs)


class Keyed(nn.Module):
    """Stands in for a random layer or a random call: runs ``inner`` with the draws of ``name``.

    ``inner`` is the user's own module (whose ``training`` flag and ``p`` stay in force) or a function.
    """

    def __init__(self, inner: Callable[..., Any], name: str) -> None:
        super().__init__()
        self.inner = inner
        self.name = name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with Draws(self.name):
            return self.inner(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"name={self.name!r}"


def base_name(function: Any) -> str:
    """The name of a torch function, method or operator without its overload."""
    return str(getattr(function, "__name__", "")).partition(".")[0]


def is_random(name: str) -> bool:
    """Whether the torch function or method of this name draws numbers."""
    return name in _RULES


RANDOM_MODULES = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.RReLU,
)


def unkeyable(module: nn.Module) -> str | None:
    """Why the draws of a module of torch.nn cannot be keyed; None where they can."""
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention) and module.dropout > 0:
        return f"{type(module).__name__} draws its dropout inside a fused kernel"
    if isinstance(module, nn.FractionalMaxPool2d | nn.FractionalMaxPool3d):
        return f"{type(module).__name__} draws its regions inside a fused kernel"
    return None


def unkeyable_call(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this call of a torch function draws numbers that cannot be keyed."""
    if name == "multi_head_attention_forward":
        p = kwargs["dropout_p"] if "dropout_p" in kwargs else args[10]
        return bool(kwargs.get("training", args[13] if len(args) > 13 else True)) and p > 0
    return name.startswith("fractional_max_pool")


# --- how each random function draws --------------------------------------------------------------------------


def _noise(draws: Draws, like: Tensor, shape: tuple[int, ...], p: float) -> Tensor:
    """1 where the value is kept (probability 1 − p), else 0."""
    empty = torch.empty(shape, dtype=like.dtype, device=like.device) if shape != like.shape else torch.empty_like(like)
    return empty.bernoulli_(1.0 - p, generator=draws.generator(like.device))


def _check_probability(p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise ModelError(f"a dropout probability has to be between 0 and 1, but got {p}")


def _drop(draws: Draws, x: Tensor, p: float, training: bool, inplace: bool, shape: tuple[int, ...]) -> Tensor:
    """x · noise / (1 − p)."""
    _check_probability(p)
    if not training or p == 0.0 or x.numel() == 0:
        return x
    noise = _noise(draws, x, shape, p)
    if p < 1.0:
        noise.div_(1.0 - p)
    return x.mul_(noise) if inplace else x.mul(noise)


def _alpha(draws: Draws, x: Tensor, p: float, training: bool, inplace: bool, shape: tuple[int, ...]) -> Tensor:
    """Dropped values become α' and the whole is rescaled to mean 0 and variance 1 (Klambauer et al. 2017)."""
    _check_probability(p)
    if not training or p == 0.0 or x.numel() == 0:
        return x
    low = -1.7580993408473766
    keep = _noise(draws, x, shape, p)
    scale = 0.0 if p == 1.0 else 1.0 / math.sqrt((1.0 - p) * (1.0 + p * low * low))
    shift = (1.0 - keep).mul_(low * scale).sub_(scale * p * low)
    return x.mul_(keep.mul_(scale)).add_(shift) if inplace else x.mul(keep.mul_(scale)).add(shift)


def _features(x: Tensor) -> tuple[int, ...]:
    return (*x.shape[:2], *(1,) * (x.dim() - 2))


def _dropout(
    draws: Draws, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    return _drop(draws, input, p, training, inplace, tuple(input.shape))


def _dropout_(draws: Draws, func: Any, input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    return _drop(draws, input, p, training, True, tuple(input.shape))


def _feature_dropout(spatial: int | None) -> Callable[..., Tensor]:
    """Whole channels are dropped; ``spatial`` + 1 dimensions are one sample without a batch dimension."""

    def dropped(
        draws: Draws, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if spatial is not None and input.dim() == spatial + 1:
            return _drop(draws, input, p, training, inplace, (input.shape[0], *(1,) * spatial))
        return _drop(draws, input, p, training, inplace, _features(input))

    return dropped


def _feature_dropout_(draws: Draws, func: Any, input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    return _drop(draws, input, p, training, True, _features(input))


def _alpha_dropout(
    draws: Draws, func: Any, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    return _alpha(draws, input, p, training, inplace, tuple(input.shape))


def _feature_alpha_dropout(
    draws: Draws, func: Any, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    return _alpha(draws, input, p, training, inplace, _features(input))


def _rrelu(
    draws: Draws,
    func: Any,
    input: Tensor,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
    if not training:
        return F.leaky_relu(input, (lower + upper) / 2, inplace)
    slope = torch.empty_like(input).uniform_(lower, upper, generator=draws.generator(input.device))
    slope = torch.where(input < 0, slope, torch.ones_like(slope))
    return input.mul_(slope) if inplace else input.mul(slope)


def _rrelu_(draws: Draws, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _rrelu(draws, func, input, *args, **{**kwargs, "inplace": True})


def _with_generator(draws: Draws, func: Any, *args: Any, generator: Any = None, **kwargs: Any) -> Any:
    """Functions that take a ``generator``. One that the user gives stays in force."""
    if generator is None:
        device = kwargs.get("device")
        if device is None:
            tensors = [a for a in args if isinstance(a, Tensor)]
            device = tensors[0].device if tensors else torch.get_default_device()
        generator = draws.generator(torch.empty(0, device=device).device)
    return func(*args, generator=generator, **kwargs)


def _rand_like(draws: Draws, func: Any, input: Tensor, **kwargs: Any) -> Tensor:
    kwargs.pop("generator", None)
    filled = torch.empty_like(input, **kwargs)
    generator = draws.generator(filled.device)
    with torch.no_grad():
        return filled.uniform_(generator=generator) if func is torch.rand_like else filled.normal_(generator=generator)


def _randint_like(draws: Draws, func: Any, input: Tensor, *args: int, **kwargs: Any) -> Tensor:
    low, high = (args[0] if len(args) == 2 else kwargs.pop("low", 0)), (args[-1] if args else kwargs.pop("high"))
    filled = torch.empty_like(input, **kwargs)
    return filled.random_(low, high, generator=draws.generator(filled.device))


def _gumbel_softmax(
    draws: Draws, func: Any, logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Tensor:
    noise = torch.empty_like(logits).exponential_(generator=draws.generator(logits.device)).log_().neg_()
    soft = ((logits + noise) / tau).softmax(dim)
    if not hard:
        return soft
    one = torch.zeros_like(logits).scatter_(dim, soft.argmax(dim, keepdim=True), 1.0)
    return one - soft.detach() + soft


def _attention(
    draws: Draws,
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(Q·Kᵀ·scale + mask), dropped, times V. Without dropout torch's own kernel is kept."""
    if dropout_p == 0.0:
        found: Tensor = func(query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)
        return found
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scores = query @ key.transpose(-2, -1) * (1.0 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = scores.softmax(-1)
    return _drop(draws, weights, dropout_p, True, False, tuple(weights.shape)) @ value


def _refused(draws: Draws, func: Any, *args: Any, **kwargs: Any) -> Any:
    """Functions that draw inside a kernel; allowed where they draw nothing."""
    if unkeyable_call(func.__name__, args, kwargs):
        raise ModelError(
            f"{func.__name__} in {draws.name!r} draws random numbers inside a fused kernel",
            hint="such draws cannot be keyed by batch; set the dropout there to 0 or write it out with F.dropout",
        )
    return func(*args, **kwargs)


_RULES: dict[str, Callable[..., Any]] = {
    "dropout": _dropout,
    "dropout_": _dropout_,
    "dropout1d": _feature_dropout(1),
    "dropout2d": _feature_dropout(None),  # three dimensions are (N, C, L), as in torch
    "dropout3d": _feature_dropout(3),
    "feature_dropout": _feature_dropout(None),
    "feature_dropout_": _feature_dropout_,
    "alpha_dropout": _alpha_dropout,
    "feature_alpha_dropout": _feature_alpha_dropout,
    "rrelu": _rrelu,
    "rrelu_": _rrelu_,
    "rand_like": _rand_like,
    "randn_like": _rand_like,
    "randint_like": _randint_like,
    "gumbel_softmax": _gumbel_softmax,
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _refused,
    "fractional_max_pool2d": _refused,
    "fractional_max_pool3d": _refused,
    "fractional_max_pool2d_with_indices": _refused,
    "fractional_max_pool3d_with_indices": _refused,
    **dict.fromkeys(
        (
            *("rand", "randn", "randint", "randperm", "normal", "bernoulli", "bernoulli_", "multinomial", "poisson"),
            *("normal_", "uniform_", "exponential_", "random_", "log_normal_", "cauchy_", "geometric_"),
        ),
        _with_generator,
    ),
}
