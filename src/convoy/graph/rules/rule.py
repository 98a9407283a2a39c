"""What a rule is: forward, input gradient and weight gradient of one kind of layer, as three separate calls.

Shapes: N samples, C channels (features after a flatten), H × W pixels; dimension 0 is the batch, dimension 1 the
channels.

Two things hold for every rule.

* Nothing is hidden: options are plain data, tensors are arguments, a rule has no state. The one thing changed in place
  is the running statistics of BatchNorm, in ``forward``.
* The weight is never saved. ``input_grad`` reads the weight that it is handed, which may be newer than the forward
  pass's; ``weight_grad`` reads shapes and layouts of the weight, never its values.

On the CPU the results have the bits of autograd, because the same kernels do the work. Call rules under
``torch.no_grad()`` (``BoundRule`` does). Gradients handed back may share memory with ``grad``: never change them in
place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Generic, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from convoy.errors import InternalError, ModelError
from convoy.graph.graph import TensorSpec

Parameters: TypeAlias = Mapping[str, "Tensor | None"]
"""What the layer owns by local name: "weight", "bias", and the buffers of BatchNorm."""

Need: TypeAlias = Literal["none", "own", "all"]


@dataclass(frozen=True, slots=True)
class Saved:
    """What the backward pass needs of one forward pass. ``facts`` are plain values (sizes, types)."""

    tensors: tuple[Tensor, ...] = ()
    facts: tuple[Any, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of the tensors, shared or not."""
        return sum(t.numel() * t.element_size() for t in self.tensors)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a layer may be cut into tiles.

    ``samples``: a slice of the batch can go alone, forward and backward; its weight gradient is then a summand.
    ``forward``: output channels lo..hi can be computed from the "own" (same, proportionally) or from "all" channels of
    the input, or not alone ("none"). ``input_grad``: the same for channels of the input and of ``grad``. Weight
    gradients of output channels lo..hi need these channels of ``grad`` only. Bounds are multiples of the steps.
    """

    samples: bool
    forward: Need
    input_grad: Need
    forward_step: int = 1
    input_grad_step: int = 1


WHOLE = Tiling(samples=False, forward="none", input_grad="none")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a layer decided for each sample, small enough to remember: signs as bits, window positions as bytes.

    ``data`` has the samples in dimension 0 (signs: [N, ⌈features/8⌉] uint8, lowest bit first, in C × H × W order;
    choices: [N, C, H_out, W_out]); ``shape`` is that of one sample of the layer's input.
    """

    kind: str
    data: Tensor
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return self.data.numel() * self.data.element_size()

    def samples(self, index: Tensor | slice) -> Outcome:
        """The outcomes of some samples, in the order of ``index``."""
        return Outcome(self.kind, self.data[index], self.shape)

    @staticmethod
    def join(parts: Sequence[Outcome]) -> Outcome:
        """The outcomes of several groups of samples as those of one batch."""
        if len({(p.kind, p.shape, p.data.dtype) for p in parts}) != 1:
            raise InternalError("outcomes of different layers cannot be joined")
        return Outcome(parts[0].kind, torch.cat([p.data for p in parts]), parts[0].shape)


O = TypeVar("O")  # noqa: E741  (the options of one kind)


class Rule(ABC, Generic[O]):
    """The table of one kind of layer."""

    kind: ClassVar[str]
    has_weight: ClassVar[bool] = False
    has_outcome: ClassVar[bool] = False

    @abstractmethod
    def forward(self, options: O, parameters: Parameters, inputs: Sequence[Tensor]) -> tuple[Tensor, Saved]:
        """Inputs → output and what the backward pass needs."""

    @abstractmethod
    def input_grad(self, options: O, parameters: Parameters, saved: Saved, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of the output → one gradient per input (None for an input that has none, such as a mask)."""

    def weight_grad(self, options: O, parameters: Parameters, saved: Saved, grad: Tensor) -> dict[str, Tensor]:
        """Gradient of the output → gradients by local parameter name; of a mean loss over the whole batch, so that
        those of batch slices add up."""
        return {}

    @abstractmethod
    def tiling(self, options: O) -> Tiling:
        """How a layer with these options may be cut."""

    @abstractmethod
    def flops(self, options: O, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> tuple[int, int, int]:
        """Operations of forward, input gradient and weight gradient; a multiply and an add are two. Adding a bias,
        copying and index arithmetic do not count."""

    # --- tiles: the same rule on less. Each returns the arguments of the call whose result is the tile ---------------

    def narrow_samples(self, options: O, saved: Saved, lo: int, hi: int) -> Saved:
        """Of the samples lo..hi only, for use with ``grad[lo:hi]``."""
        if not self.tiling(options).samples:
            raise InternalError(f"{self.kind} with {options} couples the samples of a batch")
        return Saved(tuple(t[lo:hi] for t in saved.tensors), saved.facts)

    def select_samples(self, options: O, saved: Saved, index: Tensor) -> Saved:
        """Of the samples ``index`` only, copied, for use with ``grad[index]``."""
        if not self.tiling(options).samples:
            raise InternalError(f"{self.kind} with {options} couples the samples of a batch")
        return Saved(tuple(t[index] for t in saved.tensors), saved.facts)  # indexing keeps channels last

    def narrow_forward(
        self, options: O, parameters: Parameters, inputs: Sequence[Tensor], lo: int, hi: int
    ) -> tuple[O, Parameters, Sequence[Tensor]]:
        """Arguments of ``forward`` that give ``output[:, lo:hi]``."""
        raise InternalError(f"{self.kind} with {options} cannot be tiled by output channels")

    def narrow_input_grad(
        self, options: O, parameters: Parameters, saved: Saved, grad: Tensor, lo: int, hi: int
    ) -> tuple[O, Parameters, Saved, Tensor]:
        """Arguments of ``input_grad`` that give channels lo..hi of every input's gradient. ``grad`` is whole."""
        raise InternalError(f"{self.kind} with {options} cannot be tiled by input channels")

    def narrow_weight_grad(
        self, options: O, parameters: Parameters, saved: Saved, grad: Tensor, lo: int, hi: int
    ) -> tuple[O, Parameters, Saved, Tensor]:
        """Arguments of ``weight_grad`` that give rows lo..hi of every parameter's gradient. ``grad`` is whole."""
        raise InternalError(f"{self.kind} has no weight to tile")

    # --- remembered outcomes ----------------------------------------------------------------------------------------

    def outcome(self, options: O, saved: Saved) -> Outcome:
        """What the layer decided in the forward pass that ``saved`` is of."""
        raise InternalError(f"{self.kind} has no outcome to remember")

    def input_grad_from(self, options: O, outcome: Outcome, grad: Tensor) -> tuple[Tensor | None, ...]:
        """``input_grad`` with a remembered outcome in place of what was saved. With the batch's own outcome the
        bits are those of ``input_grad``."""
        raise InternalError(f"{self.kind} has no outcome to remember")


class Channelwise(Rule[O]):
    """Rules in which channel c of every output and gradient comes from channel c alone.

    A subclass keeps in ``saved.tensors`` only tensors with samples in dimension 0 and channels in dimension 1.
    """

    def tiling(self, options: O) -> Tiling:
        return Tiling(samples=True, forward="own", input_grad="own")

    def narrow_forward(
        self, options: O, parameters: Parameters, inputs: Sequence[Tensor], lo: int, hi: int
    ) -> tuple[O, Parameters, Sequence[Tensor]]:
        return options, parameters, tuple(x[:, lo:hi] for x in inputs)

    def narrow_input_grad(
        self, options: O, parameters: Parameters, saved: Saved, grad: Tensor, lo: int, hi: int
    ) -> tuple[O, Parameters, Saved, Tensor]:
        return options, parameters, Saved(tuple(t[:, lo:hi] for t in saved.tensors), saved.facts), grad[:, lo:hi]


def given(parameters: Parameters, name: str) -> Tensor:
    """The parameter ``name``, which must be there."""
    tensor = parameters.get(name)
    if tensor is None:
        raise InternalError(f"a rule was called without the layer's {name}")
    return tensor


def rows(parameters: Parameters, lo: int, hi: int) -> Parameters:
    """Rows lo..hi (output channels) of every parameter, as views."""
    return {name: None if t is None else t[lo:hi] for name, t in parameters.items()}


def require_images(x: Tensor, who: str) -> None:
    """Refuse what is not a batch of images [N, C, H, W]."""
    if x.dim() != 4:
        raise ModelError(
            f"the rule of {who} takes a batch of images (N × C × H × W), got a tensor of shape {tuple(x.shape)}",
            hint="give the images a batch dimension",
        )


def layout(x: Tensor) -> torch.memory_format:
    """The memory format that a kernel would choose for a tensor laid out like ``x``."""
    if x.dim() == 4 and not x.is_contiguous() and x.stride(1) == 1:
        return torch.channels_last
    return torch.contiguous_format


def pack_signs(signs: Tensor) -> Tensor:
    """Bool [N, ...] → uint8 [N, ⌈features/8⌉], lowest bit first; the last byte is filled with zeros."""
    flat = signs.reshape(signs.shape[0], prod(signs.shape[1:]))
    flat = torch.nn.functional.pad(flat, (0, -flat.shape[1] % 8))
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=signs.device)
    packed: Tensor = (flat.reshape(flat.shape[0], flat.shape[1] // 8, 8) * weights).sum(-1, dtype=torch.uint8)
    return packed


def unpack_signs(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """uint8 [N, bytes] → bool [N, *shape]; the inverse of ``pack_signs``."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = ((packed[..., None] >> shifts) & 1).flatten(1).bool()
    return bits[:, : prod(shape)].reshape(packed.shape[0], *shape)
