from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from convoy.errors import OptionError
from convoy.graph.capture import capture
from convoy.graph.cost import measure
from convoy.graph.estimate import estimate, estimate_saved
from convoy.graph.graph import Cost, Graph
from convoy.graph.machine import Machine, measure_machine


def costs(graph: Graph) -> dict[str, Cost]:
    return {node.name: node.cost for node in graph.nodes if node.cost is not None}


def test_estimate_is_the_roofline() -> None:
    model, x = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16)), torch.randn(8, 64)
    graph = capture(model, (x,))
    slow_memory = costs(estimate(graph, Machine(1e30, 2.0, 0.5)).graph)
    first, relu, last = (n.name for n in graph.nodes if n.path)
    weight = (64 * 32 + 32) * 4
    assert slow_memory[first].forward_seconds == (8 * 64 * 4 + 8 * 32 * 4 + weight) / 2.0 + 0.5
    assert slow_memory[first].input_grad_seconds == 0.0
    assert slow_memory[relu].weight_grad_seconds == 0.0 < slow_memory[relu].input_grad_seconds
    slow_core = costs(estimate(graph, Machine(2.0, 1e30, 0.5)).graph)
    products = 2 * 8 * 32 * 16
    assert slow_core[last].forward_seconds == pytest.approx(products / 2.0 + 0.5)
    assert slow_core[last].input_grad_seconds == pytest.approx(products / 2.0 + 0.5)
    assert slow_core[last].weight_grad_seconds == pytest.approx(products / 2.0 + 0.5)
    assert slow_core[last].flops == products
    assert estimate(graph, Machine(1.0, 1.0, 1.0)).method == "estimated"


LAYERS = [
    *(
        nn.ReLU(True),
        nn.ReLU6(),
        nn.ReLU6(True),
        nn.LeakyReLU(inplace=True),
        nn.SiLU(),
        nn.SiLU(True),
        nn.ELU(inplace=True),
    ),
    *(nn.Hardswish(True), nn.GELU(), nn.Sigmoid(), nn.Tanh(), nn.Softmax(1), nn.PReLU(), nn.BatchNorm2d(4).eval()),
    *(nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(2), nn.Upsample(scale_factor=2)),
    *(nn.Dropout(0.5), nn.Dropout(0.5, inplace=True), nn.Dropout2d(), nn.Identity()),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_estimated_bytes_by_kind_of_layer(layer: nn.Module) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.Conv2d(4, 4, 1)), torch.randn(2, 3, 8, 8)
    graph = capture(model, (x,))
    assert estimate_saved(graph) == measure(graph, (x,), budget_seconds=0.0).saved


def test_machine_constants_are_plausible() -> None:
    start = time.perf_counter()
    found = measure_machine(seconds=0.05)
    assert time.perf_counter() - start < 5.0
    assert 1e8 < found.flops_per_second < 1e13
    assert 1e8 < found.bytes_per_second < 1e13
    assert 1e-8 < found.call_seconds < 1e-3
    with pytest.raises(OptionError):
        measure_machine(seconds=0.0)
