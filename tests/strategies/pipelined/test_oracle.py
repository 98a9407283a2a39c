"""Threads equal the inline oracle bit for bit, whatever the model, the cuts, the clock and the timing."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from convoy.graph.capture import capture
from convoy.graph.random import keyed
from convoy.strategies.base import Settings
from convoy.strategies.sequential import Sequential

CLOCKS = [
    {"clock": "registers"},
    {"clock": "registers", "placement": "split"},
    {"clock": "1f1b"},
    {"clock": "1f1b", "slack": 1},
    {"clock": "1f1b", "slack": 3},
]

FIXED = Settings(channels_last=False, watchdog_seconds=20)


@st.composite
def model(draw: st.DrawFn, runs: ModuleType, random: bool | None = None) -> Any:
    """A function that builds the drawn model."""
    dropout = draw(st.sampled_from([0.0, 0.4])) if random is None else 0.4 * random
    kind = runs.MODELS[draw(st.sampled_from(sorted(runs.MODELS)))]
    return partial(kind, draw(st.integers(2, 5)), dropout, draw(st.booleans()))


SIZES = st.lists(st.sampled_from([4, 4, 4, 6, 3, 2]), min_size=1, max_size=7)


@settings(max_examples=40)
@given(data=st.data())
def test_threads_equal_the_oracle(runs: ModuleType, data: st.DataObject) -> None:
    sizes = data.draw(SIZES)
    config: dict[str, Any] = dict(data.draw(st.sampled_from(CLOCKS)))
    optimizer = data.draw(st.sampled_from(sorted(runs.OPTIMIZERS)))
    config |= {
        "cut_at": data.draw(st.lists(st.floats(0, 1, exclude_max=True), max_size=4)),
        "optimizer": optimizer,
        "accumulate": data.draw(st.integers(1, 4)),
        "schedule": data.draw(st.booleans()),
        "drains": data.draw(st.sets(st.integers(1, len(sizes)), max_size=2)),
        "seed": data.draw(st.integers(0, 2)),
        "settings": Settings(
            channels_last=data.draw(st.booleans()),
            clip=data.draw(st.sampled_from([None, 0.5])),
            precision=data.draw(st.sampled_from(["float32", "float32", "bfloat16"])),
            watchdog_seconds=20,
        ),
    }
    build = data.draw(model(runs))
    disturbed = data.draw(st.sampled_from([None, 1, 2]))
    threads = runs.train(build, sizes, engine="threads", jitter_seed=disturbed, **config)
    inline = runs.train(build, sizes, engine="inline", **config)
    assert threads.order == list(range(len(sizes)))
    runs.same_outcome(threads, inline)


def plain(runs: ModuleType, build: Any, sizes: list[int], optimizer: str, schedule: bool, m: int = 1) -> Any:
    """The loop that everybody writes, with gradient accumulation."""
    torch.manual_seed(0)
    net: nn.Module = build()
    chosen = runs.OPTIMIZERS[optimizer](net.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(chosen, len(sizes) + 1) if schedule else None
    losses, outputs = [], []
    for x, y in runs.batches(sizes):
        chosen.zero_grad()
        parts = min(m, len(x))
        found = []
        for px, py in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
            output = net(px)
            share = runs.loss(output, py) * (len(px) / len(x) if parts > 1 else 1.0)
            share.backward()
            found.append(share.detach())
            outputs.append(output)
        losses.append(found[0] if parts == 1 else torch.stack(found).sum())
        chosen.step()
        if scheduler is not None:
            scheduler.step()
    return net, chosen, losses, outputs


@settings(max_examples=20)
@given(data=st.data())
def test_without_cuts_it_is_plain_pytorch(runs: ModuleType, data: st.DataObject) -> None:
    sizes = data.draw(SIZES)
    build = data.draw(model(runs, random=False))
    optimizer, schedule = data.draw(st.sampled_from(sorted(runs.OPTIMIZERS))), data.draw(st.booleans())
    m = data.draw(st.integers(1, 3))
    net, chosen, losses, _ = plain(runs, build, sizes, optimizer, schedule, m)
    run = runs.train(
        build, sizes, stages=1, optimizer=optimizer, schedule=schedule, accumulate=m, engine="threads", settings=FIXED
    )
    runs.same(run.losses, losses, "losses")
    runs.same(run.weights, dict(net.state_dict()), "weights")
    runs.same(run.optimizer["state"], chosen.state_dict()["state"], "optimizer")


@settings(max_examples=10)
@given(data=st.data())
def test_a_pipeline_drained_after_every_batch_is_plain_pytorch(runs: ModuleType, data: st.DataObject) -> None:
    sizes = data.draw(SIZES)
    build = data.draw(model(runs, random=False).filter(lambda b: b.func.__name__ != "Dense"))  # sums of three
    cuts = data.draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=4))
    net, chosen, losses, _ = plain(runs, build, sizes, "momentum", False)
    run = runs.train(build, sizes, cut_at=cuts, drains=range(1, len(sizes)), settings=FIXED)
    runs.same(run.losses, losses, "losses")
    runs.same(run.weights, dict(net.state_dict()), "weights")
    runs.same(run.optimizer, chosen.state_dict(), "optimizer")


@pytest.mark.parametrize("name", ["Chain", "Residual", "Dense", "TwoHeads"])
def test_random_layers_draw_what_the_sequential_strategy_draws(runs: ModuleType, name: str) -> None:
    sizes = [4, 4, 3]
    build = partial(runs.MODELS[name], 3, 0.4, True)
    run = runs.train(build, sizes, stages=1, settings=FIXED)
    cut = runs.train(build, sizes, cut_at=[0.3, 0.6], drains=[1, 2], settings=FIXED)

    torch.manual_seed(0)
    net = build()
    optimizer = runs.OPTIMIZERS["momentum"](net.parameters())
    with Sequential().bind(net, runs.loss, optimizer, settings=FIXED) as step:
        losses = [step(x, y).loss for x, y in runs.batches(sizes)]
    runs.same(run.losses, losses, "losses")
    runs.same(run.weights, dict(net.state_dict()), "weights")
    runs.same(cut.losses[:1], losses[:1], "losses")
    other = runs.train(build, sizes, stages=1, settings=Settings(seed=1, channels_last=False))
    assert not torch.equal(other.losses[0], run.losses[0]), "the seed has no effect"


def test_every_part_has_draws_of_its_own(runs: ModuleType) -> None:
    """Keyed by (seed, batch, part): the captured program, run part by part under these keys, gives the same."""
    build = partial(runs.Chain, 3, 0.4, False)
    run = runs.train(build, [4, 6], stages=1, accumulate=2, settings=Settings(seed=5, channels_last=False))
    torch.manual_seed(0)
    net = build()
    optimizer = runs.OPTIMIZERS["momentum"](net.parameters())
    data = runs.batches([4, 6])
    program = capture(net, (data[0][0],)).program
    for batch, (x, y) in enumerate(data):
        optimizer.zero_grad()
        found = []
        for part, (px, py) in enumerate(zip(x.tensor_split(2), y.tensor_split(2), strict=True)):
            with keyed(5, batch, part):
                (output,) = program(px)
            found.append(output)
            (runs.loss(output, py) * 0.5).backward()
        optimizer.step()
        runs.same(run.outputs[batch], torch.cat(found).detach(), f"outputs of batch {batch}")


@pytest.mark.parametrize("correction", ["stash", "predict:linear+spike", "predict:momentum", "pipemare", "stage-lr"])
@pytest.mark.parametrize("placement", ["colocated", "split"])
def test_corrections_do_not_depend_on_timing(runs: ModuleType, correction: str, placement: str) -> None:
    config: dict[str, Any] = {
        "cut_at": [0.2, 0.5, 0.8],
        "optimizer": "momentum_only" if "predict" in correction or "spike" in correction else "momentum",
        "correction": correction,
        "placement": placement,
        "settings": Settings(channels_last=False, watchdog_seconds=20, total_steps=9),
    }
    runs.OPTIMIZERS["momentum_only"] = lambda p: torch.optim.SGD(p, 0.01, momentum=0.9)
    build = partial(runs.Residual, 4, 0.2, True)
    threads = runs.train(build, [4] * 8 + [3], engine="threads", jitter_seed=3, **config)
    inline = runs.train(build, [4] * 8 + [3], engine="inline", **config)
    runs.same_outcome(threads, inline)
