"""Runs a model on tensors without numbers and writes down what it does, as a ``torch.fx`` graph.

Every call of a torch function and of a leaf module becomes a node. Each tensor is there twice, for the example's
batch size and for twice that size: a dimension depends on the batch exactly where the two differ, and only there
may user code not rely on its value.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from convoy.errors import ModelError
from convoy.graph.batch_number import BatchNumber, batch_number, plain, second_of
from convoy.graph.origin import Origin, Untraceable, origin_of
from convoy.graph.random import RANDOM_MODULES, base_name, is_random, unkeyable, unkeyable_call
from convoy.graph.shadow import announce_calls, meta_like
from convoy.graph.source import inside_autograd_function, line_of, user_line
from convoy.graph.structure import Structure, flatten, is_tensor, map_nested

_PLAIN = int | float | complex | str | bytes | torch.dtype | torch.layout | torch.memory_format | None
_READS_VALUES = frozenset(
    (
        *("item", "tolist", "numpy", "equal", "allclose", "is_nonzero", "__bool__", "__int__", "__float__"),
        *("__index__", "__complex__", "__array__", "__contains__", "__dlpack__"),
    )
)
_OPERATORS = (type(torch.ops.aten.relu), type(torch.ops.aten.relu.default))
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(slots=True)
class _Value:
    first: Tensor
    second: Tensor | None
    node: fx.Node


@dataclass(slots=True)
class _Call:
    """What one call reads: tensors of ours by ``id``, and the nodes that stand for them."""

    used: dict[int, Tensor] = field(default_factory=dict)
    nodes: dict[int, fx.Node] = field(default_factory=dict)


def write_slice(x: Tensor, index: Any, value: Any) -> Tensor:
    """``x[index] = value``; returns ``x``."""
    x[index] = value
    return x


class Recorder(TorchFunctionMode):
    """One attempt at capturing ``shadow``; modules whose path is in ``coarse`` stay whole."""

    def __init__(
        self,
        shadow: nn.Module,
        named: list[tuple[str, Tensor]],
        *,
        batch_size: int,
        device: torch.device,
        coarse: frozenset[str] = frozenset(),
        try_for_real: Callable[[str, tuple[Any, ...], dict[str, Any]], Any],
    ) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.notes: dict[str, None] = {}
        self.batch_size = batch_size
        self._device = device
        self._coarse = coarse
        self._try_for_real = try_for_real
        self._shadow = shadow
        self._named = named  # kept: an attribute that the model replaces must not free its id for another tensor
        self._attributes = {id(tensor): path for path, tensor in named}
        self._modules = {id(module): path for path, module in shadow.named_modules()}
        self._values: dict[int, _Value] = {}
        self._order: list[Tensor] = []
        self._autocast = {d: torch.is_autocast_enabled(d) for d in {"cpu", device.type}}
        self._scopes = [""]
        self._paused = False
        self._lost_batch = False
        announce_calls(shadow, self.call_module)

    # --- the run ---------------------------------------------------------------------------------------------

    def trace(self, arguments: Structure, tensors: list[Tensor], names: list[str]) -> Structure:
        """Record the forward pass for inputs shaped like ``tensors``; returns the structure of the output."""
        firsts = []
        for name, tensor in zip(names, tensors, strict=True):
            first = second = meta_like(tensor)
            if tensor.dim() and tensor.shape[0] == self.batch_size:
                second = torch.empty((2 * tensor.shape[0], *tensor.shape[1:]), dtype=tensor.dtype, device="meta")
            node = self.graph.placeholder(name)
            node.target = node.name  # fx may have changed the name, where it is a builtin's
            node.meta["origin"] = Origin("", "", (first,))
            self._register(first, second, node)
            firsts.append(first)
        args, kwargs = arguments.rebuild(firsts)
        with torch.enable_grad(), self:
            output = self._shadow(*args, **kwargs)
        leaves, structure = flatten(output, lambda v: isinstance(v, Tensor | BatchNumber))
        with self._pause():
            call = _Call()
            self.graph.output(tuple(self._to_node(leaf, call) for leaf in leaves))
            if any(map(self._loses_batch, leaves)):
                self.note(f"the model works for batches of {self.batch_size} samples only")
        return structure

    def _loses_batch(self, value: Any) -> bool:
        """Whether ``value`` has the batch as its first dimension, but for the example's size only."""
        known = self._values.get(id(value))
        if known is None or not known.first.dim() or known.first.shape[0] != self.batch_size:
            return False
        return known.second is not None and known.second.shape[0] == self.batch_size

    def _check_batch_kept(self, given: Any, result: Any) -> None:
        """Python loops over the samples are unrolled for the example's batch: such a module has to stay whole."""
        with self._pause():
            if self._lost_batch or any(map(self._loses_batch, flatten(given, is_tensor)[0])):
                return
            if any(map(self._loses_batch, flatten(result, is_tensor)[0])):
                raise self.refuse(f"it is written out for the {self.batch_size} samples of the example", "")

    def fixed(self, what: str) -> None:
        """A number that depends on the batch size was turned into ``what``."""
        if not self._paused:
            self.note(f"{what} at {user_line()} was decided for a batch of {self.batch_size}")

    def note(self, text: str) -> None:
        self.notes[text] = None

    def refuse(
        self, reason: str, line: str | None = None, *, failed: bool = False, exportable: bool = False
    ) -> Untraceable:
        return Untraceable(reason, self._scopes[-1], user_line() if line is None else line, failed, exportable)

    @contextmanager
    def _pause(self) -> Iterator[None]:
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    # --- calls -----------------------------------------------------------------------------------------------

    def call_module(
        self, module: nn.Module, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        path = self._modules.get(id(module))
        if self._paused or path is None:
            return original(module, *args, **kwargs)
        if path and self._is_leaf(module, path):
            for part in module.modules():
                if (reason := unkeyable(part)) is not None:
                    raise _not_keyed(f"{path}: {reason}")
            coarse = path in self._coarse
            random = coarse or any(isinstance(part, RANDOM_MODULES) for part in module.modules())
            with self._pause():
                run = partial(_batch_norm_shape if _is_plain_batch_norm(module, args) else original, module)
            return self._record("call_module", path, args, kwargs, run, random=random, coarse=coarse)
        before = {name: id(buffer) for name, buffer in module.named_buffers(recurse=False)}
        self._scopes.append(path)
        try:
            result = original(module, *args, **kwargs)
            if path:
                self._check_batch_kept((args, kwargs), result)
            for name, buffer in module.named_buffers(recurse=False):
                if before.get(name) not in (None, id(buffer)):
                    raise self.refuse(f"the buffer {name!r} is replaced by another tensor", "", exportable=True)
            return result
        except (Untraceable, ModelError):
            raise
        except Exception as error:
            line = line_of(error) or user_line()
            raise self.refuse(f"{type(error).__name__}: {error}", line, failed=True) from error
        finally:
            self._scopes.pop()

    def _is_leaf(self, module: nn.Module, path: str) -> bool:
        if path in self._coarse:
            return True
        return type(module).__module__.startswith(("torch.nn.", "torch.ao.nn")) and not isinstance(module, _CONTAINERS)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        name = base_name(func)
        if name == "__get__":
            return self._read_attribute(getattr(func, "__self__", None), func, args)
        if name in ("__set__", "__delete__", "backward", "requires_grad_"):
            raise self.refuse(f"{getattr(getattr(func, '__self__', None), '__name__', name)!r} of a tensor is changed")
        if name in _READS_VALUES and any(self._is_ours(a) for a in args):
            raise self.refuse("the value of a tensor is needed in Python")
        if name == "__setitem__":
            self._record("call_function", write_slice, args, kwargs, write_slice)
            return None
        if name == "size" and len(args) == 1 and not kwargs and self._is_ours(args[0]):
            return self._size(args[0])
        if name == "sym_size":  # the same, as torch.export writes it
            return self._record("call_method", "size", args, kwargs, Tensor.size)
        if name == "__len__":
            self._len_is_fixed(args[0])
        if unkeyable_call(name, args, kwargs):
            raise _not_keyed(f"{name} at {user_line()} draws random numbers inside a fused kernel")
        random = is_random(name)
        if is_tensor_method_or_property(func) and not isinstance(func, _OPERATORS):
            return self._record("call_method", name, args, kwargs, func, random=random)
        return self._record("call_function", func, args, kwargs, func, random=random)

    def _read_attribute(self, attribute: Any, func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        name = getattr(attribute, "__name__", "")
        tensor = args[0]
        if not self._is_ours(tensor):
            return func(*args)
        if name == "shape":
            return self._size(tensor)
        if name == "device":
            return self._device
        if name in ("is_cuda", "is_cpu", "is_meta"):
            return name == f"is_{self._device.type}"
        if name in ("T", "mT", "H", "mH", "real", "imag", "data"):
            return self._record("call_function", getattr, (tensor, name), {}, getattr)
        return func(*args)

    def _is_ours(self, value: Any) -> bool:
        return isinstance(value, Tensor) and (id(value) in self._values or id(value) in self._attributes)

    def _second_tensor(self, tensor: Tensor) -> Tensor | None:
        value = self._values.get(id(tensor))
        return tensor if value is None else value.second

    def _size(self, tensor: Tensor) -> torch.Size:
        with self._pause():
            first, other = tensor.shape, self._second_tensor(tensor)
            if other is None or other is tensor or other.dim() != len(first) or other.shape == first:
                return first
            sizes = [
                batch_number(mine, theirs, "size", (tensor, d), self)
                for d, (mine, theirs) in enumerate(zip(first, other.shape, strict=True))
            ]
        return torch.Size(sizes)

    def _len_is_fixed(self, tensor: Tensor) -> None:
        with self._pause():
            other = self._second_tensor(tensor)
            if other is not None and other.dim() and other.shape[0] != tensor.shape[0]:
                self.note(f"len() at {user_line()} was decided for a batch of {self.batch_size}")

    # --- one node --------------------------------------------------------------------------------------------

    def _record(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        run: Callable[..., Any],
        *,
        random: bool = False,
        coarse: bool = False,
    ) -> Any:
        with self._pause():
            self._check_context()
            call = _Call()
            prepared = map_nested((args, kwargs), lambda value: self._prepared(value, call))
            versions = {key: tensor._version for key, tensor in call.used.items()}
            first = self._evaluate(target, run, map_nested(prepared, plain), coarse)
            changed = [key for key, tensor in call.used.items() if tensor._version != versions[key]]
            second = self._evaluate_second(target, run, prepared, call, first, coarse)
            leaves, structure = flatten(first, is_tensor)
            if not leaves and not changed and not coarse:
                return self._number(first, second, kind, target, args, kwargs)
            node_args, node_kwargs = map_nested((args, kwargs), lambda value: self._to_node(value, call))
            node = self.graph.create_node(kind, target, node_args, node_kwargs)
            mutates = tuple(dict.fromkeys(call.nodes[key].name for key in changed))
            no_grad = not torch.is_grad_enabled()
            node.meta["origin"] = Origin(user_line(), self._scopes[-1], tuple(leaves), mutates, random, no_grad, coarse)
            others = flatten(second, is_tensor)[0] if second is not None else []
            if len(others) != len(leaves) or any(a.dim() != b.dim() for a, b in zip(leaves, others, strict=True)):
                if leaves and second is not None:
                    self.note(f"what {user_line()} returns depends on the batch size: {self.batch_size} is fixed")
                others = []
            self._register_all(node, leaves, others, structure)
            self._lost_batch |= coarse and any(map(self._loses_batch, leaves))
        return first

    def _check_context(self) -> None:
        """What surrounds a call in user code and cannot be carried over to a node."""
        if any(torch.is_autocast_enabled(kind) != before for kind, before in self._autocast.items()):
            raise self.refuse("autocast is switched inside the model", exportable=True)
        if inside_autograd_function():
            raise self.refuse("a torch.autograd.Function is applied")

    def _prepared(self, value: Any, call: _Call) -> Any:
        """An argument as it can be evaluated: without numbers, on the meta device."""
        if isinstance(value, Tensor):
            if self._is_ours(value):
                call.used[id(value)] = value
                return value if value.is_meta else meta_like(value)
            if value.is_meta:
                raise self.refuse("a tensor comes out of a call that cannot be recorded", exportable=True)
            if isinstance(value, nn.Parameter):
                raise self.refuse("a parameter that no registered module owns is used (a list? use nn.ModuleList)")
            return meta_like(value)
        if isinstance(value, torch.device):
            return torch.device("meta")
        if isinstance(value, BatchNumber | np.generic | _PLAIN) or value is Ellipsis:
            return value
        what = f"{type(value).__name__} {value!r:.60}"
        raise self.refuse(f"a call takes {what}, which cannot be kept in a graph", exportable=True)

    def _evaluate(self, target: Any, run: Callable[..., Any], prepared: Any, coarse: bool) -> Any:
        args, kwargs = prepared
        try:
            return self._run(run, args, kwargs)
        except Exception as error:
            if coarse:
                return self._try_for_real(target, args, kwargs)
            raise self.refuse(f"{type(error).__name__}: {error}", failed=True) from error

    def _run(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call ``run`` with results on the meta device, wherever the user wants them."""
        name = base_name(run)
        if name in ("cuda", "cpu"):
            return args[0]
        if name == "to" and any(isinstance(a, str) for a in (*args[1:], kwargs.get("device"))):
            args = tuple(torch.device("meta") if isinstance(a, str) else a for a in args)
        if isinstance(kwargs.get("device"), str):
            kwargs = {**kwargs, "device": torch.device("meta")}
        with torch.device("meta"):
            return run(*args, **kwargs)

    def _evaluate_second(
        self, target: Any, run: Callable[..., Any], prepared: Any, call: _Call, first: Any, coarse: bool
    ) -> Any:
        others = {key: self._second_tensor(tensor) for key, tensor in call.used.items()}
        if any(other is None for other in others.values()):
            return None
        numbers = [False]

        def swap(value: Any) -> Any:
            if isinstance(value, Tensor):
                return others.get(id(value), value)
            numbers[0] |= isinstance(value, BatchNumber)
            return second_of(value)

        args, kwargs = map_nested(prepared, swap)
        if not numbers[0] and all(id(other) == mine for mine, other in others.items()):
            return first
        try:
            return self._evaluate(target, run, (args, kwargs), coarse)
        except (Untraceable, ModelError):
            self.note(f"{user_line()} works for batches of {self.batch_size} samples only")
            return None

    def _number(
        self, first: Any, second: Any, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A result without tensors is handed to user code; it is not worth a node until something uses it."""
        if kwargs or kind == "call_module" or second is None:
            return first
        return batch_number(first, second, target, args, self)

    # --- graph building --------------------------------------------------------------------------------------

    def _to_node(self, value: Any, call: _Call) -> Any:
        if isinstance(value, BatchNumber):
            return self._number_node(value, call)
        if isinstance(value, np.generic):
            return value.item()
        if not isinstance(value, Tensor):
            return value
        if id(value) not in call.nodes:
            known = self._values.get(id(value))
            call.nodes[id(value)] = self._attribute(value) if known is None else known.node
        return call.nodes[id(value)]

    def _attribute(self, tensor: Tensor) -> fx.Node:
        """A parameter, buffer or constant is read anew by every call that uses it, right before the call."""
        if id(tensor) not in self._attributes:
            name = f"_constant_{len(self.constants)}"
            self.constants[name] = tensor
            self._attributes[id(tensor)] = name
        node = self.graph.get_attr(self._attributes[id(tensor)])
        node.meta["origin"] = Origin(user_line(), self._scopes[-1], (tensor,))
        return node

    def _number_node(self, number: BatchNumber, call: _Call) -> fx.Node:
        """Compute ``number`` anew, right here: a size from a tensor that is at hand, arithmetic step by step."""
        if number.function == "size":
            tensor, dim = self._with_size(number, call)
            arguments: tuple[Any, ...] = (self._to_node(tensor, call), dim)
        else:
            arguments = tuple(self._to_node(argument, call) for argument in number.arguments)
        kind = "call_method" if isinstance(number.function, str) else "call_function"
        node = self.graph.create_node(kind, number.function, arguments, {})
        node.meta["origin"] = Origin(user_line(), self._scopes[-1])
        return node

    def _with_size(self, number: BatchNumber, call: _Call) -> tuple[Tensor, int]:
        """A tensor and dimension with the sizes of ``number``: the one it was read from if the call uses it too,
        else another that the call uses, else the newest: no number then has to cross a cut."""
        origin, dim = number.arguments
        if id(origin) in call.used:
            return origin, dim
        wanted = (plain(number), second_of(number))
        for tensor in (*call.used.values(), *reversed(self._order)):
            other = self._second_tensor(tensor)
            if other is None:
                continue
            for d, sizes in enumerate(zip(tensor.shape, other.shape, strict=False)):
                if sizes == wanted:
                    return tensor, d
        return origin, dim

    def _register_all(self, node: fx.Node, leaves: list[Tensor], others: list[Tensor], structure: Structure) -> None:
        seconds: list[Tensor | None] = [*others] if others else [None] * len(leaves)
        for leaf, second, path in zip(leaves, seconds, structure.paths(), strict=True):
            part = node
            for how, key in path:
                function = operator.getitem if how == "item" else getattr
                part = self.graph.call_function(function, (part, key))
                part.meta["origin"] = Origin(origin_of(node).line, origin_of(node).scope)
            if part is not node:
                part.meta["origin"].tensors = (leaf,)
            self._register(leaf, second, part)

    def _register(self, first: Tensor, second: Tensor | None, node: fx.Node) -> None:
        if id(first) in self._attributes:
            return  # the node hands a parameter or buffer on: later uses read it anew
        if id(first) not in self._values:
            self._order.append(first)
        self._values[id(first)] = _Value(first, second, node)


def _is_plain_batch_norm(module: nn.Module, args: tuple[Any, ...]) -> bool:
    dims = {nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,)}
    known = next((dims[kind] for kind in dims if isinstance(module, kind)), ())
    if type(module).forward is not nn.BatchNorm2d.forward or len(args) != 1 or args[0].dim() not in known:
        return False
    return bool(args[0].shape[1] == module.num_features) and not parametrize.is_parametrized(module)


def _batch_norm_shape(module: nn.Module, x: Tensor) -> Tensor:
    """What BatchNorm gives, as far as shapes go: torch computes those by running it step by step in Python, which
    took three quarters of the time of a capture."""
    weight: Any = module.weight
    like: Tensor = x * (1.0 if weight is None else weight[0])
    return like


def _not_keyed(what: str) -> ModelError:
    return ModelError(
        what, hint="such draws cannot be keyed by batch; set the dropout there to 0 or write it out with F.dropout"
    )
