"""Live activation bytes, exactly: every storage that an operation makes, from its birth to its release.

A ``TorchDispatchMode`` sees the outputs of every operation, of the backward pass too; a weak reference to the storage
tells when it is gone. Modes belong to a thread, so each action of a pipeline runs in a mode of its own and all write to
one ledger. What turns out to be a weight gradient or optimizer state is left out when the ledger is read.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Made:
    """A storage and where it comes from: the action (or batch, step) and the operation, with the tensor's shape."""

    bytes: int
    where: str
    what: str
    backward: bool  # made by a backward pass


@dataclass
class Ledger:
    """What lived when. ``own`` names storages that were there before; ``watch`` finds the weight gradients."""

    made: list[Made] = field(default_factory=list)
    timeline: list[tuple[int, int]] = field(default_factory=list)  # (+1 born or -1 released, number)
    _live: dict[int, int] = field(default_factory=dict)  # address of the storage object → number, -1 for owned
    _left_out: set[int] = field(default_factory=set)
    _from: int = 0
    _lock: Any = field(default_factory=threading.RLock)  # a release may come while we hold it

    def own(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self._live[tensor.untyped_storage()._cdata] = -1

    def watch(self, model: nn.Module) -> None:
        """Weights, buffers and their gradients are not activations."""
        self.own((*model.parameters(), *model.buffers()))
        for parameter in model.parameters():
            parameter.register_hook(lambda gradient: self.leave_out([gradient]))
            parameter.register_post_accumulate_grad_hook(lambda p: self.leave_out([p.grad]))

    def leave_out(self, tensors: Iterable[Tensor | None]) -> None:
        with self._lock:
            for tensor in tensors:
                number = -1 if tensor is None else self._live.get(tensor.untyped_storage()._cdata, -1)
                if number >= 0:
                    self._left_out.add(number)

    def born(self, tensor: Tensor, where: str, what: str) -> None:
        storage = tensor.untyped_storage()
        address, amount = storage._cdata, storage.nbytes()
        if not amount or storage.device.type == "meta":  # shapes alone, of a capture
            return
        with self._lock:
            if address in self._live:
                return
            number = len(self.made)
            self.made.append(
                Made(amount, where, f"{what} {tuple(tensor.shape)}", torch._C._current_autograd_node() is not None)
            )
            self._live[address] = number
            self.timeline.append((1, number))
            weakref.finalize(storage, self._released, address, number).atexit = False

    def _released(self, address: int, number: int) -> None:
        with self._lock:
            self.timeline.append((-1, number))
            if self._live.get(address) == number:
                del self._live[address]

    def begin(self) -> None:
        """The peak counts from here."""
        with self._lock:
            self._from = len(self.timeline)

    def peaks(self, optimizer: torch.optim.Optimizer) -> list[tuple[int, Counter[tuple[str, str]]]]:
        """Most bytes alive at once since ``begin``, and what they were: (where, what) → bytes. First of everything,
        then of what was made in forward passes alone."""
        with self._lock:
            self.leave_out(v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor))
            backward = {n for n, made in enumerate(self.made) if made.backward}
            return [self._peak(self._left_out), self._peak(self._left_out | backward)]

    def _peak(self, left_out: set[int]) -> tuple[int, Counter[tuple[str, str]]]:
        total, best, best_at = 0, -1, 0
        for at, (sign, number) in enumerate(self.timeline):
            if number not in left_out:
                total += sign * self.made[number].bytes
            if total > best and at >= self._from:
                best, best_at = total, at
        alive: set[int] = set()
        for sign, number in self.timeline[: best_at + 1]:
            if sign > 0:
                alive.add(number)
            else:
                alive.discard(number)
        content: Counter[tuple[str, str]] = Counter()
        for number in alive - left_out:
            content[self.made[number].where, self.made[number].what] += self.made[number].bytes
        return best, content


class Tracked(TorchDispatchMode):
    """Within, in this thread, every new storage goes to the ledger."""

    def __init__(self, ledger: Ledger, where: str) -> None:
        super().__init__()
        self._ledger, self._where = ledger, where

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._ledger.born(leaf, self._where, getattr(func, "__name__", str(func)))
        return result
