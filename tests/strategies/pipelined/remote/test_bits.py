"""Remote stages equal the oracle bit for bit, whatever is drawn. Threads stand for actors: everything but Ray itself
is the same code, and so many processes could not be started."""

from __future__ import annotations

import time
from functools import partial
from random import Random
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.strategies.base import Settings
from convoy.strategies.hybrid import Hybrid
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.sequential import Sequential

CLOCKS = [{"clock": "registers"}, {"clock": "1f1b"}, {"clock": "1f1b", "slack": 1}]
SIZES = st.lists(st.sampled_from([4, 4, 4, 6, 3, 2]), min_size=1, max_size=7)


def reorder(seed: int) -> Any:
    """Calls that take their time, some of them, so that they overtake each other."""
    random = Random(seed)

    def disturb(actor: Any, name: str) -> None:
        if name in ("deliver", "submit", "report") and random.random() < 0.3:
            time.sleep(random.random() / 300)

    return disturb


@settings(max_examples=25)
@given(data=st.data())
def test_remote_stages_equal_the_oracle(runs: ModuleType, train: Any, over_threads: Any, data: st.DataObject) -> None:
    sizes = data.draw(SIZES)
    config: dict[str, Any] = dict(data.draw(st.sampled_from(CLOCKS)))
    config |= {
        "cut_at": data.draw(st.lists(st.floats(0, 1, exclude_max=True), max_size=3)),
        "optimizer": data.draw(st.sampled_from(sorted(runs.OPTIMIZERS))),
        "accumulate": data.draw(st.integers(1, 3)),
        "schedule": data.draw(st.booleans()),
        "drains": data.draw(st.sets(st.integers(1, len(sizes)), max_size=2)),
        "settings": Settings(
            channels_last=data.draw(st.booleans()),
            clip=data.draw(st.sampled_from([None, 0.5])),
            precision=data.draw(st.sampled_from(["float32", "float32", "bfloat16"])),
            watchdog_seconds=60,
        ),
    }
    kind = runs.MODELS[data.draw(st.sampled_from(sorted(runs.MODELS)))]
    build = partial(
        kind, data.draw(st.integers(2, 5)), data.draw(st.sampled_from([0.0, 0.4])), data.draw(st.booleans())
    )
    with over_threads() as ray:
        ray.disturb = reorder(data.draw(st.integers(0, 3)))
        remote = train(build, sizes, **config)
    inline = runs.train(build, sizes, engine="inline", **config)
    assert remote.order == list(range(len(sizes)))
    runs.same_outcome(remote, inline)


@pytest.mark.parametrize(
    "correction",
    ["stash", "predict:linear+spike", "predict:momentum", "spike", "pipemare", "dc-asgd", "stage-lr"],
)
def test_corrections(runs: ModuleType, train: Any, over_threads: Any, correction: str) -> None:
    runs.OPTIMIZERS["momentum_only"] = lambda p: runs.torch.optim.SGD(p, 0.01, momentum=0.9)
    config: dict[str, Any] = {
        "cut_at": [0.2, 0.5, 0.8],
        "optimizer": "momentum_only" if "predict" in correction or "spike" in correction else "momentum",
        "correction": correction,
        "drains": [5],
        "settings": Settings(channels_last=False, watchdog_seconds=60, total_steps=9),
    }
    build = partial(runs.Residual, 4, 0.2, True)
    with over_threads() as ray:
        ray.disturb = reorder(1)
        remote = train(build, [4] * 8 + [3], **config)
    runs.same_outcome(remote, runs.train(build, [4] * 8 + [3], engine="inline", **config))


def test_pipemare_after_a_switch(runs: ModuleType, over_threads: Any, same_values: Any) -> None:
    """The actors know with which mini-batch the pipeline began."""
    made = []
    for engine in ("ray", "inline"):
        runs.torch.manual_seed(0)
        model = runs.Residual(4, 0.2, True)
        optimizer = runs.OPTIMIZERS["momentum"](model.parameters())
        hybrid = Hybrid(Sequential(), Pipelined(ppv=[2], engine=engine, correction="pipemare"), "batch:3")
        lasting = Settings(channels_last=False, watchdog_seconds=60, total_steps=40)
        with over_threads(), hybrid.bind(model, runs.loss, optimizer, settings=lasting) as step:
            for x, y in runs.batches([4] * 8, 0):
                step(x, y)
        made.append(model.state_dict())
    same_values(*made)
