"""Two engines give what one thread gives, bit for bit, decisions included, whatever the delays."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from convoy.errors import WorkerFailed
from convoy.schedule.action import Action
from convoy.strategies.speculative import Speculative

CUT = ["label-last", "label-mean", "error-scaled", "per-sample", "linear", "network", "zero", "unbiased:label-mean:0.4"]
CUT += ["dithered:zero", "dithered:linear"]
CHOICES = [*(("cut", name) for name in CUT), *(("faithful", name) for name in ("label-mean", "label-last", "zero"))]
CHOICES += [("faithful", "label-last"), ("faithful", "dithered:zero")]


@hypothesis_settings(max_examples=16, deadline=None)
@given(
    net=st.sampled_from(["plain", "skip"]),
    choice=st.sampled_from(CHOICES),
    threshold=st.sampled_from([0.0, 0.9, 1.1, float("inf")]),
    controller=st.sampled_from(["always:3", "auto:0.2,0.1,2"]),
    clip=st.sampled_from([None, 0.5]),
    delays=st.lists(st.integers(0, 3), min_size=7, max_size=7),
)
def test_random_delays(train: Any, images: Any, net: str, choice: tuple[str, str], threshold: float | None,
                       controller: str, clip: float | None, delays: list[int]) -> None:  # fmt: skip
    def disturb(lane: str, action: Action) -> None:
        milliseconds = delays[(len(action.subject) + ord(action.kind) + action.batch + len(lane)) % 7]
        if milliseconds > 1:
            time.sleep(1e-3 * (milliseconds - 1))

    data = images((6, 5, 6, 6, 4))
    if choice[1].startswith("unbiased"):
        threshold = None
    elif choice[1].startswith("dithered") and threshold == float("inf"):
        threshold = 9.0
    fields: dict[str, Any] = {
        "form": choice[0], "predictor": choice[1], "threshold": threshold, "warmup": 1, "controller": controller,
    }  # fmt: skip
    one = train(Speculative(engine="inline", **fields), net, data, threads=2, clip=clip)
    two = train(Speculative(engine="threads", **fields), net, data, threads=2, clip=clip, disturb=disturb)
    assert two.losses == one.losses
    assert two.differs(one) == []
    assert two.decisions == one.decisions
    lanes = {e.lane for e in two.events if e.kind == "action"} - {"driver"}
    assert lanes <= {"engine 1", "engine 2"}


def test_either_engine_takes_weight_gradients(train: Any, images: Any) -> None:
    """Whoever takes the first weight gradient is held up in it until the other engine takes one."""
    lock, taken, other = threading.Lock(), list[str](), threading.Event()

    def disturb(lane: str, action: Action) -> None:
        if action.kind != "G":
            return
        with lock:
            taken.append(lane)
            first = len(taken) == 1
        if first:
            assert other.wait(timeout=60)
        elif lane != taken[0]:
            other.set()

    strategy = Speculative(warmup=1, controller="always", engine="threads")
    train(strategy, "plain", images((6,) * 3), threads=2, disturb=disturb)
    assert set(taken) == {"engine 1", "engine 2"}


def test_an_engine_that_fails_is_named(train: Any, images: Any) -> None:
    def disturb(lane: str, action: Action) -> None:
        if action.kind == "C":
            raise ValueError("broken on purpose")

    with pytest.raises(WorkerFailed, match="broken on purpose") as caught:
        train(
            Speculative(warmup=1, controller="always", engine="threads"),
            *("plain", images((6, 6))), threads=2, disturb=disturb,
        )  # fmt: skip
    assert caught.value.action == "Caccept.1"


@pytest.mark.parametrize(
    ("net_name", "fields", "unbiased"),
    [("plain", {}, True), ("norm", {}, False), ("plain", {"predictor": "zero"}, False)],
)
def test_only_without_batch_norm_a_draw_is_right_in_the_mean(
    net: Any, images: Any, net_name: str, fields: dict[str, Any], unbiased: bool
) -> None:
    model = net(net_name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Speculative(engine="inline", **fields).bind(model, torch.nn.CrossEntropyLoss(), optimizer) as step:
        step(*images((4,))[0])
        assert step._controller.unbiased is unbiased
