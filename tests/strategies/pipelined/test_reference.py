"""Real runs against the closed formulas, bit for bit."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.strategies.base import Settings
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.pipelined.step import PipelinedStep

CLOCKS = {
    "registers": lambda k: [2 * (k - i) for i in range(k + 1)],
    "1f1b": lambda k: [k - i for i in range(k + 1)],
    "1f1b+1": lambda k: [min(k - i + 1, 2 * (k - i)) for i in range(k + 1)],
}


def batches(sizes: list[int], seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, 2, 8, 8, generator=draw), torch.randint(3, (n,), generator=draw)) for n in sizes]


def compare(reference: ModuleType, kind: str, cuts: list[str], **config: Any) -> None:
    """Run the formulas and the pipeline on the same start and compare losses, weights, statistics and momentum."""
    layers = getattr(reference, kind)()
    torch.manual_seed(config.get("seed", 0))
    model = reference.LayerNet(layers)
    channels_last = config.get("channels_last", False)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    names = [layer.name for layer in layers]
    bounds = [names.index(cut) for cut in cuts]
    stages = {name: 1 + sum(index >= b for b in bounds) for index, name in enumerate(names)}
    k, clock = len(cuts), config.get("clock", "registers")
    data = batches(config.get("sizes", [4] * 8), config.get("seed", 0))
    lr = config.get("lr", [0.1] * len(data))
    options = {key: config[key] for key in ("momentum", "weight_decay", "nesterov") if key in config}
    drains = config.get("drains", ())
    ours = [(x.contiguous(memory_format=torch.channels_last) if channels_last else x, y) for x, y in data]
    expected = reference.Reference(
        model, layers, stages, CLOCKS[clock](k), ours,
        accumulate=config.get("accumulate", 1), lr=lr, drains=drains, **options,
    ).run()  # fmt: skip

    optimizer = torch.optim.SGD(model.parameters(), lr=99.0, **options)
    strategy = Pipelined(
        cuts=cuts,
        clock=clock.partition("+")[0],
        slack=min(int(clock.partition("+")[2] or 0), k),
        accumulate=config.get("accumulate", 1),
        placement=config.get("placement", "colocated"),
        engine=config.get("engine", "threads"),
    )
    step = PipelinedStep(strategy, model, F.cross_entropy, optimizer, Settings(channels_last=channels_last), None)
    results = []
    with step:
        for t, (x, y) in enumerate(data):
            if t in drains:
                results += step.drain()
            optimizer.param_groups[0]["lr"] = lr[t]
            results.append(step(x, y))
        results += step.drain()
    losses = [r.loss for r in results if r is not None]
    assert [r.batch for r in results if r is not None] == list(range(len(data)))
    assert torch.equal(torch.stack(losses), torch.stack(expected.losses))
    for name, weight in model.named_parameters():
        assert torch.equal(weight, expected.weights[name]), name
        if options.get("momentum"):
            assert torch.equal(optimizer.state[weight]["momentum_buffer"], expected.momentum[name]), name
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, expected.buffers[name]), name


CHAIN_CUTS = [[], ["conv2"], ["bn1", "fc1"], ["max1", "flat", "fc2"], ["relu1", "conv2", "avg2", "fc1"]]
RESIDUAL_CUTS = [["conv2"], ["conv1", "conv3"], ["bn1", "relu2", "short"], ["relu0", "conv2", "add1", "max"]]


@pytest.mark.parametrize("engine", ["threads", "inline"])
@pytest.mark.parametrize("cuts", CHAIN_CUTS, ids=len)
def test_a_chain_of_layers(reference: ModuleType, cuts: list[str], engine: str) -> None:
    compare(reference, "chain", cuts, engine=engine, momentum=0.9, weight_decay=5e-4, sizes=[4] * 10 + [3])


@pytest.mark.parametrize("engine", ["threads", "inline"])
@pytest.mark.parametrize("cuts", RESIDUAL_CUTS, ids=len)
def test_residual_connections_across_cuts(reference: ModuleType, cuts: list[str], engine: str) -> None:
    compare(reference, "residual", cuts, engine=engine, momentum=0.9, weight_decay=5e-4, sizes=[4] * 10 + [3])


@settings(max_examples=25)
@given(data=st.data())
def test_any_configuration(reference: ModuleType, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["chain", "residual"]))
    names = [layer.name for layer in getattr(reference, kind)()]
    chosen = data.draw(st.sets(st.sampled_from(names[1:]), max_size=4))
    sizes = data.draw(st.lists(st.sampled_from([4, 4, 4, 2, 3, 5]), min_size=2, max_size=7))
    clock = data.draw(st.sampled_from(list(CLOCKS)))
    momentum = data.draw(st.sampled_from([0.0, 0.9]))
    compare(
        reference,
        kind,
        [name for name in names if name in chosen],
        sizes=sizes,
        clock=clock,
        placement="colocated" if clock != "registers" else data.draw(st.sampled_from(["colocated", "split"])),
        engine=data.draw(st.sampled_from(["threads", "inline"])),
        accumulate=data.draw(st.integers(1, 4)),
        drains=sorted(data.draw(st.sets(st.integers(1, len(sizes)), max_size=2))),
        lr=[0.1 / (1 + t) for t in range(len(sizes))],
        momentum=momentum,
        nesterov=momentum > 0 and data.draw(st.booleans()),
        weight_decay=data.draw(st.sampled_from([0.0, 1e-2])),
        channels_last=data.draw(st.booleans()),
        seed=data.draw(st.integers(0, 3)),
    )
