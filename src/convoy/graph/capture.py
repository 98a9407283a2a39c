"""From an ordinary ``nn.Module`` and one batch to a ``Graph``."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from convoy.errors import ModelError
from convoy.graph.export import exported
from convoy.graph.glue import glue
from convoy.graph.graph import Graph, Node, TensorSpec
from convoy.graph.inplace import Storages
from convoy.graph.kinds import kind_of
from convoy.graph.numbering import number
from convoy.graph.origin import Untraceable, origin_of
from convoy.graph.random import Keyed
from convoy.graph.recorder import Recorder
from convoy.graph.shadow import meta_like, shadow_of
from convoy.graph.signature import Signature
from convoy.graph.source import quoted
from convoy.graph.structure import Structure, flatten, is_tensor
from convoy.graph.wrap import MethodCall, NoGrad


def capture(model: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Graph:
    """The graph of ``model(*args, **kwargs)`` in train mode.

    The model is not run and not changed; the example batch only gives shapes. A submodule whose forward cannot be
    recorded stays whole (``captured_by`` and ``notes`` say so). Move the model to its device and type first.
    Raises ``ModelError`` with the user's line where the model cannot be captured.
    """
    kwargs = dict(kwargs or {})
    tensors, arguments = flatten((tuple(args), kwargs), is_tensor)
    batched = [t for t in tensors if t.dim()]
    if not batched:
        raise ModelError("the example batch contains no tensor", hint="give the model's inputs as tensors")
    names = _input_names(model, args, kwargs, arguments)
    example = _Example(arguments, tensors, names, batched[0])
    try:
        recorder, output, coarse = _record(model, example)
    except Untraceable as problem:
        other = exported(model, tuple(args), kwargs, example.batch_size) if problem.exportable else None
        if other is None:
            raise _refusal(model, problem) from problem
        try:
            recorder, output, coarse = _record(other, example)
        except Untraceable:
            raise _refusal(model, problem) from problem
        recorder.note(f"captured by torch.export, so nodes carry no module names: {problem}")
        return _Builder(model, other, recorder, arguments, output, "export").build()
    for path, why in coarse.items():
        recorder.note(f"{path} stays whole: {why}")
    how = "fx with coarse leaves" if coarse else "fx"
    return _Builder(model, model, recorder, arguments, output, how).build()


@dataclass(frozen=True)
class _Example:
    """The batch that shapes are taken from."""

    arguments: Structure
    tensors: list[Tensor]
    names: list[str]
    first: Tensor

    @property
    def batch_size(self) -> int:
        return self.first.shape[0]


def _record(model: nn.Module, example: _Example) -> tuple[Recorder, Structure, dict[str, Untraceable]]:
    """Try, and try again with what stood in the way kept whole. Raises the first ``Untraceable`` when that fails."""
    coarse: dict[str, Untraceable] = {}
    while True:
        shadow, named = shadow_of(model)
        shadow.train()
        recorder = Recorder(
            shadow,
            named,
            batch_size=example.batch_size,
            device=example.first.device,
            coarse=frozenset(coarse),
            try_for_real=_runner(model),
        )
        try:
            with _random_state_kept():
                return recorder, recorder.trace(example.arguments, example.tensors, example.names), coarse
        except Untraceable as problem:
            if not problem.path or problem.path in coarse:
                raise next(iter(coarse.values()), problem) from problem
            coarse[problem.path] = problem


class _Builder:
    """Turns what a recorder wrote down into a ``Graph`` on the user's own modules and parameters.

    ``recorded`` is what was recorded: the user's ``model`` itself, or a module exported from it.
    """

    def __init__(
        self, model: nn.Module, recorded: nn.Module, recorder: Recorder, takes: Structure, gives: Structure, how: str
    ) -> None:
        self.model, self.recorded, self.recorder = model, recorded, recorder
        self.takes, self.gives, self.how = takes, gives, how
        self.graph = recorder.graph
        self.modules = dict(recorded.named_modules(remove_duplicate=False))
        self.parameters = {id(p): name for name, p in model.named_parameters()}
        self.buffers = {id(b): name for name, b in model.named_buffers()}

    def build(self) -> Graph:
        self._drop_dead()
        storages = Storages(self.graph, self.modules)
        owned = {node.name: self._owned(node) for node in self.graph.nodes}
        operations = {node.name: node.op for node in self.graph.nodes}
        writes_buffer = {name for node in self.graph.nodes for name in self._written_buffers(node, owned)}
        state = {
            name: (*parameters, *(b for b in buffers if b in writes_buffer or operations[name] == "call_module"))
            for name, (parameters, buffers) in owned.items()
        }
        pairs = glue(self.graph, state, storages)
        exposed = {n for n in self.graph.nodes if n.op not in ("placeholder", "output") and storages.exposed(n)}
        nodes = [self._node(node, *owned[node.name]) for node in self.graph.nodes]
        derived = self._derived_weights()
        for node in self.graph.nodes:
            node.meta["storage"] = storages.members(node)[0].name
            node.meta["exposed"] = node in exposed
        program = self._program()
        named = dict(self.model.named_parameters())
        return Graph(
            nodes=number(nodes),
            program=program,
            model_name=type(self.model).__name__,
            batch_size=self.recorder.batch_size,
            parameter_elements={name: p.numel() for name, p in named.items()},
            parameter_bytes={name: p.numel() * p.element_size() for name, p in named.items()},
            glued=pairs,
            captured_by=self.how,
            notes=tuple(self.recorder.notes),
            signature=Signature(self.takes, tuple(n.name for n in self.graph.nodes if n.op == "placeholder")),
            output=self.gives,
            derived_weights=derived,
            parameters=named,
            buffers=dict(self.model.named_buffers()),
        )

    def _drop_dead(self) -> None:
        """Forget calls whose result nobody uses, unless they change something (BatchNorm its statistics)."""
        for node in reversed(list(self.graph.nodes)):
            if node.users or node.op in ("placeholder", "output"):
                continue
            if origin_of(node).mutates or origin_of(node).coarse:
                continue
            if node.op == "call_module" and any(True for _ in self.modules[str(node.target)].buffers()):
                continue
            self.graph.erase_node(node)

    def _owned(self, node: fx.Node) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the parameters and buffers that ``node`` reads."""
        tensors: list[Any] = []
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            tensors = [*module.parameters(), *module.buffers()]
        elif node.op == "get_attr":
            tensors = [self._attribute(str(node.target))]
        keys = [id(t) for t in tensors]
        return (
            tuple(dict.fromkeys(self.parameters[k] for k in keys if k in self.parameters)),
            tuple(dict.fromkeys(self.buffers[k] for k in keys if k in self.buffers)),
        )

    def _written_buffers(self, node: fx.Node, owned: Mapping[str, tuple[Any, Any]]) -> Iterator[str]:
        if node.op in ("call_function", "call_method"):
            for argument in node.all_input_nodes:
                if argument.op == "get_attr" and argument.name in origin_of(node).mutates:
                    yield from owned[argument.name][1]
                if argument.op == "get_attr" and "batch_norm" in str(node.target):
                    yield from owned[argument.name][1]

    def _attribute(self, path: str) -> Tensor:
        if path in self.recorder.constants:
            return self.recorder.constants[path]
        found: Any = self.recorded
        for name in path.split("."):
            found = getattr(found, name)
        tensor: Tensor = found
        return tensor

    def _node(self, node: fx.Node, parameters: tuple[str, ...], buffers: tuple[str, ...]) -> Node:
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        origin = node.meta.get("origin")
        tensors = () if origin is None else origin.tensors
        inputs = tuple(argument.name for argument in node.all_input_nodes)
        return Node(
            name=node.name,
            kind=kind_of(node, module),
            inputs=inputs,
            outputs=tuple(
                TensorSpec(tuple(t.shape), str(t.dtype).removeprefix("torch."), t.element_size()) for t in tensors
            ),
            path=str(node.target) if module is not None else "",
            parameters=parameters,
            buffers=buffers,
            line="" if origin is None else origin.line,
            scope="" if origin is None else origin.scope,
        )

    def _derived_weights(self) -> tuple[str, ...]:
        """Nodes for which autograd keeps a tensor that was made from a weight in place of the weight itself."""
        found: list[str] = []
        made_of_weights: set[fx.Node] = set()
        for node in self.graph.nodes:
            inputs = [n for n in node.all_input_nodes if origin_of(n).tensors]
            if node.op == "call_module":
                module = self.modules[str(node.target)]
                if any(_derives_weight(part) for part in module.modules()):
                    found.append(node.name)
                    self._note_derived(str(node.target))
                    continue
            if node.op == "get_attr":
                if isinstance(self._attribute(str(node.target)), nn.Parameter):
                    made_of_weights.add(node)
            elif node.op in ("call_function", "call_method") and inputs:
                if all(n.op == "get_attr" or n in made_of_weights for n in inputs):
                    if any(n in made_of_weights for n in inputs):
                        made_of_weights.add(node)
                elif any(n in made_of_weights and n.op != "get_attr" for n in inputs):
                    found.append(node.name)
                    self._note_derived(f"{node.name} at {origin_of(node).line}")
        return tuple(found)

    def _note_derived(self, where: str) -> None:
        self.recorder.note(f"{where}: its weight is computed in the forward pass, so autograd stashes a copy of it")

    def _program(self) -> fx.GraphModule:
        """The executable graph; random calls are replaced by keyed ones, calls under no_grad by such that set it."""
        root: dict[str, Any] = {}
        called = {str(node.target) for node in self.graph.nodes if node.op == "call_module"}
        for node in list(self.graph.nodes):
            origin = node.meta.get("origin")
            if node.op == "get_attr":
                path = str(node.target)
                tensor = self._attribute(path)
                if any(path.startswith(f"{module}.") for module in called):
                    node.target = path = f"_of_{path.replace('.', '_')}"
                root[path] = tensor
            elif node.op == "call_module" or (origin is not None and (origin.random or origin.no_grad)):
                if node.op in ("placeholder", "output"):
                    continue
                self._install(node, root)
            if origin is not None:
                origin.tensors = ()
        return fx.GraphModule(root, self.graph, type(self.model).__name__)

    def _install(self, node: fx.Node, root: dict[str, Any]) -> None:
        origin = origin_of(node)
        inner: Callable[..., Any]
        if node.op == "call_module":
            inner = self.modules[str(node.target)]
        else:
            inner = MethodCall(node.target) if isinstance(node.target, str) else node.target
        name = str(node.target)
        if origin.random:
            name, inner = f"_keyed_{node.name}", Keyed(inner, node.name)
        if origin.no_grad:
            name, inner = f"_no_grad_{node.name}", NoGrad(inner)
        node.op, node.target = "call_module", name
        root[name] = inner


def _derives_weight(module: nn.Module) -> bool:
    """Parametrizations, and the older weight_norm and spectral_norm, which leave a computed tensor as attribute."""
    own = list(module.named_parameters(recurse=False))
    return parametrize.is_parametrized(module) or any(
        isinstance(value, Tensor) and any(name.startswith(f"{key}_") for name, _ in own)
        for key, value in vars(module).items()
    )


def _input_names(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], arguments: Structure) -> list[str]:
    """A name for each input tensor: the parameter of ``forward`` that takes it, and the keys below it."""
    try:
        positional = [p for p in signature(model.forward).parameters.values() if p.kind is not Parameter.KEYWORD_ONLY]
        signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise ModelError(
            f"{type(model).__name__}.forward cannot be called with this batch: {error}",
            hint="a mapping becomes keyword arguments, a tuple or list positional ones",
        ) from error
    names = []
    for path in arguments.paths():
        (_, part), (_, key), *below = path
        if part == 0:
            fits = key < len(positional) and positional[key].kind is not Parameter.VAR_POSITIONAL
            key = positional[key].name if fits else f"input_{key}"
        name = "_".join(map(str, (key, *(step for _, step in below))))
        names.append("".join(c if c.isalnum() else "_" for c in name))
    return names


def _runner(model: nn.Module) -> Callable[[str, tuple[Any, ...], dict[str, Any]], Any]:
    """Tries a module that cannot run without numbers: on a copy, with numbers drawn at random."""

    def run(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = copy.deepcopy(model.get_submodule(path)).train()
        device = next((p.device for p in module.parameters()), torch.device("cpu"))

        def number(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if value.is_floating_point():
                return torch.randn(value.shape, dtype=value.dtype, device=device)
            return torch.zeros(value.shape, dtype=value.dtype, device=device)

        leaves, structure = flatten((args, kwargs), is_tensor)
        args, kwargs = structure.rebuild(number(leaf) for leaf in leaves)
        try:
            with torch.no_grad():
                result = module(*args, **kwargs)
        except Exception as error:
            raise ModelError(
                f"{path} fails on a batch of these shapes: {type(error).__name__}: {error}",
                hint="check that the model runs on this batch by itself",
            ) from error
        leaves, structure = flatten(result, is_tensor)
        return structure.rebuild(meta_like(leaf) for leaf in leaves)

    return run


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Put the generators of torch and Python back. A model that drew from Python's would have its draw baked in."""
    before = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
        if random.getstate() != before:
            raise ModelError(
                "the model draws from Python's random module in its forward pass, which would be fixed at capture",
                hint="draw with torch (torch.rand, F.dropout) instead",
            )
    finally:
        random.setstate(before)


def _refusal(model: nn.Module, problem: Untraceable) -> ModelError:
    source = quoted(problem.line)
    shown = f": `{source}`" if source else ""
    if problem.failed:
        return ModelError(
            f"{type(model).__name__} fails on a batch of these shapes: {problem}{shown}",
            hint="check that the model runs on this batch by itself; if it does, move this part into a submodule of "
            "its own, which then stays whole",
        )
    return ModelError(
        f"{type(model).__name__} cannot be captured: {problem}{shown}",
        hint="move this part into a submodule of its own, which then stays whole, or write it without Python values "
        "taken from tensors",
    )
