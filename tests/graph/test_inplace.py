"""Writes in place: who shares storage, which writes forbid a cut, and what a stage may not change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convoy.graph.capture import capture
from convoy.graph.graph import Graph
from convoy.graph.split import allowed_cuts, split


class Two(nn.Module):
    """Two layers and whatever is done between and after."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self._forward = forward
        self.a, self.b, self.relu = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(inplace=True)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def view_written(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    view = y[:, :2]
    view.mul_(3.0)
    return m.b(y)


def base_written(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    view = y.view(-1, 2, 2)
    y.add_(1.0)
    return m.b(view.flatten(1))


def old_name_read(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    other = y
    y += 1
    return m.b(other)


def identity_alias(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    same = m.same(y)
    y.mul_(2.0)
    return m.b(same)


def input_written(m: Any, x: Tensor) -> Tensor:
    x = x.sub_(0.5)
    return m.b(m.relu(m.a(x)))


def input_written_through_view(m: Any, x: Tensor) -> Tensor:
    half = x[:, :2]
    half.mul_(2.0)
    return m.b(m.a(x))


def chain(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y += x
    return m.b(F.relu_(m.relu(y)).clamp_(max=2.0))


CASES: dict[str, Callable[[], nn.Module]] = {
    "view written": lambda: Two(view_written),
    "base written": lambda: Two(base_written),
    "old name read": lambda: Two(old_name_read),
    "identity alias": lambda: Two(identity_alias, same=nn.Identity()),
    "input written": lambda: Two(input_written),
    "input written through a view": lambda: Two(input_written_through_view),
    "chain": lambda: Two(chain),
}


def chained(graph: Graph, cuts: list[int], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    store = dict(graph.bind((x,)))
    for segment in split(graph, cuts):
        out = segment.module(*(store[n] for n in segment.inputs))
        if segment.outputs:
            store.update(zip(segment.outputs, out, strict=True))
    return out, store


@pytest.mark.parametrize("name", CASES)
def test_every_cut_gives_the_same_and_leaves_the_batch_alone(name: str) -> None:
    torch.manual_seed(0)
    model = CASES[name]()
    x = torch.randn(3, 4)
    expected = copy.deepcopy(model)(x.clone())
    graph = capture(model, (x,))
    for cuts in ([], *([cut] for cut in allowed_cuts(graph))):
        given = x.clone()
        assert torch.equal(chained(graph, cuts, given)[0], expected), cuts
        assert torch.equal(given, x), "the batch belongs to the user"


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("view written", ["linear"]),  # only before the second layer, when all writes are done
        ("base written", ["flatten", "linear"]),
        ("old name read", ["add", "linear"]),
        ("identity alias", ["identity", "mul", "linear"]),  # nn.Identity returns the very tensor
        ("input written", ["linear", "relu", "linear"]),
        ("input written through a view", ["linear"]),
        ("chain", ["add", "relu", "relu", "other", "linear"]),
    ],
)
def test_where_cuts_may_fall(name: str, kinds: list[str]) -> None:
    graph = capture(CASES[name](), (torch.randn(3, 4),))
    found = [graph.nodes[cut].kind for cut in allowed_cuts(graph)]
    assert found == kinds, [graph.nodes[cut].name for cut in allowed_cuts(graph)]


def test_a_value_handed_over_is_never_changed_by_the_next_stage() -> None:
    graph = capture(Two(chain), (torch.randn(3, 4),))
    for cut in allowed_cuts(graph):
        store = dict(graph.bind((torch.randn(3, 4),)))
        for segment in split(graph, [cut]):
            before = {n: store[n].clone() for n in segment.inputs}
            versions = {n: store[n]._version for n in segment.inputs}
            out = segment.module(*(store[n] for n in segment.inputs))
            assert all(torch.equal(store[n], before[n]) and store[n]._version == versions[n] for n in segment.inputs)
            if segment.outputs:
                store.update(zip(segment.outputs, out, strict=True))


def test_the_dependency_on_a_write_is_explicit() -> None:
    graph = capture(Two(old_name_read), (torch.randn(3, 4),))
    assert graph.by_name["b"].inputs == ("add_",) and graph.by_name["add_"].inputs == ("a",)


def test_a_buffer_written_in_the_forward_pass_is_the_users() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.last(self.fc(torch.tanh(x)) * self.calls)

    model = Counting()
    graph = capture(model, (torch.randn(3, 4),))
    assert model.calls == 0
    reference, x = copy.deepcopy(model), torch.randn(3, 4)
    for count in (1, 2):
        (got,) = graph.program(x)
        assert model.calls == count and torch.equal(got, reference(x))
    reads = [graph.nodes[cut].kind for cut in allowed_cuts(graph)]
    assert reads == ["linear"], "reader and writer of the buffer stay together"
