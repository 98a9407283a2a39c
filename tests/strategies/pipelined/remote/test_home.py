"""The user's own objects beside remote stages: what a drain brings home, what goes out again, what a failure leaves.

Threads stand for actors."""

from __future__ import annotations

import gc
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convoy.engines.driver import callers_threads
from convoy.errors import RESUME, Diverged, MachineError, ModelError, OptionError, RunError, WorkerFailed
from convoy.strategies.base import Settings
from convoy.strategies.pipelined import Pipelined
from convoy.training.trainer import Trainer

FIXED = Settings(channels_last=False, watchdog_seconds=60)


@pytest.fixture(autouse=True)
def ray(over_threads: Any) -> Any:
    with over_threads() as made:
        yield made


@pytest.fixture
def intra_op() -> Iterator[int]:
    """The driver's number, of threads that it has for this test."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)


def test_what_the_user_changes_after_a_drain_reaches_the_actors(runs: ModuleType) -> None:
    """Weights, estimates, optimizer state, flags, and a new learning rate."""

    def changed(engine: str) -> tuple[nn.Module, Any, list[Tensor]]:
        torch.manual_seed(0)
        model = runs.Chain(3, 0.0, True)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        data = runs.batches([4] * 6)
        losses = []
        with Pipelined(cuts=["5"], engine=engine).bind(model, F.cross_entropy, optimizer, settings=FIXED) as step:
            for t, (x, y) in enumerate(data):
                if t in (2, 4):
                    losses += [r.loss for r in step.drain()]
                if t == 2:
                    before = {k: v.clone() for k, v in model.state_dict().items()}
                    with torch.no_grad():
                        model[0].weight.mul_(0.5)
                        model[1].running_mean.add_(1)
                    optimizer.param_groups[0]["lr"] = 0.1
                    model[1].eval()
                    model[8].bias.requires_grad_(False)
                if t == 4:
                    model.load_state_dict(before)
                    optimizer.state[model[8].weight]["exp_avg"].zero_()
                    optimizer.state.pop(model[10].weight)
                result = step(x, y)
                losses += [] if result is None else [result.loss]
            losses += [r.loss for r in step.drain()]
        return model, optimizer, losses

    (a, first, one), (b, second, other) = changed("ray"), changed("inline")
    runs.same(one, other, "losses")
    runs.same(dict(a.state_dict()), dict(b.state_dict()), "weights")
    runs.same(first.state_dict(), second.state_dict(), "optimizer")


def test_an_exception_in_an_actor(runs: ModuleType) -> None:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        if len(y) == 3:
            raise ZeroDivisionError("the batch is odd")
        return F.cross_entropy(output, y)

    model = runs.Chain(3, 0.0, True)
    step = Pipelined(cuts=["5"], engine="ray").bind(model, loss, momentum(model), settings=FIXED)
    with pytest.raises(WorkerFailed, match="forward of batch 2 at stage 2: ZeroDivisionError: the batch is odd") as e:
        for x, y in runs.batches([4, 4, 3, 4, 4, 4]):
            step(x, y)
            time.sleep(0.1)
        step.drain()
    assert e.value.action == "F2.2" and ">F2.2<" in e.value.grid
    assert e.value.__cause__ is not None and "in loss" in "".join(e.value.__cause__.__notes__)
    with pytest.raises(WorkerFailed, match="the batch is odd"):
        step(*runs.batches([4])[0])
    step.close()


def test_a_dead_actor_stops_the_run_and_the_weights_are_those_of_the_last_drain(runs: ModuleType, ray: Any) -> None:
    model = runs.Chain(3, 0.0, True)
    data = runs.batches([4] * 40)
    step = Pipelined(cuts=["5"], engine="ray").bind(model, F.cross_entropy, momentum(model), settings=FIXED)
    step(*data[0])
    step.drain()
    held = {name: t.clone() for name, t in model.state_dict().items()}
    step(*data[1])
    ray.actors[1].die()
    with pytest.raises(WorkerFailed, match=r"worker 2 failed in the \w+ of batch \d+ at stage 2: ActorDied: .* died: "):
        for x, y in data[2:]:
            step(x, y)
    with pytest.raises(WorkerFailed) as e:
        step.drain()
    assert e.value.hint == RESUME and e.value.grid
    step.close()
    assert all(actor.dead for actor in ray.actors)
    runs.same(dict(model.state_dict()), held, "weights")


def test_an_actor_that_does_not_answer_is_ended(runs: ModuleType, ray: Any) -> None:
    model = runs.Chain(3, 0.0, True)
    release = threading.Event()
    settings = Settings(channels_last=False, watchdog_seconds=1.5)
    step = Pipelined(cuts=["5"], engine="ray").bind(model, F.cross_entropy, momentum(model), settings=settings)
    (x, y), *_ = runs.batches([4])
    step(x, y)
    step.drain()
    ray.disturb = lambda actor, name: release.wait(30) if actor is ray.actors[0] and name == "report" else None
    try:
        with pytest.raises(RunError, match=r"worker 1 .*has not answered for|nothing moved for .*worker 1"):
            for _ in range(2000):
                step(x, y)
                time.sleep(0.01)
    finally:
        release.set()
        step.close()


def test_an_actor_that_dies_while_nothing_is_in_flight(runs: ModuleType, ray: Any) -> None:
    model = runs.Chain(3, 0.0, True)
    step = Pipelined(cuts=["5"], engine="ray").bind(model, F.cross_entropy, momentum(model), settings=FIXED)
    (x, y), *_ = runs.batches([4])
    step(x, y)
    step.drain()
    held = {name: t.clone() for name, t in model.state_dict().items()}
    ray.actors[0].die()
    place = r"(after the update|in the forward) of batch \d at stage 1"
    with pytest.raises(WorkerFailed, match=rf"worker 1 failed {place}: ActorDied: ") as e:
        for _ in range(100):
            step(x, y)
    assert e.value.hint == RESUME
    step.close()
    runs.same(dict(model.state_dict()), held, "weights")


def test_an_actor_that_dies_on_the_way_home(runs: ModuleType, ray: Any) -> None:
    """The drain is over and the state is asked for: nothing of it is taken over."""
    model = runs.Chain(3, 0.0, True)
    step = Pipelined(cuts=["5"], engine="ray").bind(model, F.cross_entropy, momentum(model), settings=FIXED)
    held = {name: t.clone() for name, t in model.state_dict().items()}
    (x, y), *_ = runs.batches([4])
    step(x, y)
    ray.disturb = lambda actor, name: actor.die() if actor is ray.actors[1] and name == "ask" else None
    place = "after the update of batch 0 at stage 2"
    with pytest.raises(WorkerFailed, match=rf"worker 2 failed {place}: ActorDied: |to answer \(state\)") as e:
        step.drain()
    assert e.value.hint == RESUME
    step.close()
    runs.same(dict(model.state_dict()), held, "weights")


def test_results_of_batches_that_are_through_stay_readable(runs: ModuleType, ray: Any) -> None:
    model = runs.Chain(3, 0.0, True)
    step = Pipelined(cuts=["5"], engine="ray").bind(model, F.cross_entropy, momentum(model), settings=FIXED)
    data = runs.batches([4] * 3)
    step(*data[0])
    (done,) = step.drain()
    step(*data[1])
    ray.actors[0].die()
    with pytest.raises(WorkerFailed):
        step.drain()
    assert torch.isfinite(done.loss) and done.output.shape == (4, 3)
    step.close()


def test_numbers_that_are_not_finite_do_not_cross_a_cut(runs: ModuleType) -> None:
    model = runs.Chain(3, 0.0, True)
    with (
        pytest.raises(Diverged, match=r"^the activations from stage 1 to stage 2 are not finite in batch 1 \(lower"),
        Pipelined(cuts=["5"], engine="ray").bind(model, F.cross_entropy, momentum(model), settings=FIXED) as step,
    ):
        (x, y), *_ = runs.batches([4])
        step(x, y)
        step(x * float("nan"), y)
        step.drain()


@pytest.mark.parametrize("correction", ["spike", None])
def test_a_run_that_diverges_on_the_way_names_the_correction(runs: ModuleType, correction: str | None) -> None:
    """As with threads: stage and batch, no names of values, and the traceback beside the message only."""
    torch.manual_seed(0)
    model = runs.Chain(3, 0.0, True)
    optimizer = torch.optim.SGD(model.parameters(), 1e30, momentum=0.9)
    strategy = Pipelined(cuts=["5"], engine="ray", correction=correction)
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, strategy=strategy, settings=FIXED)
    with pytest.raises(Diverged) as e:
        trainer.fit(runs.batches([4] * 20))
    assert re.search(r"(from stage \d to stage \d are not finite in|^the loss of) batch [1-9]", e.value.message)
    assert "@" not in e.value.message and "Traceback" not in e.value.message
    named = "'spike' changes the effective step" if correction else "clock='1f1b' or accumulate=4"
    assert named in str(e.value.hint) and "lower the learning rate" in str(e.value.hint)


def test_the_first_batch_is_not_the_rates_fault(runs: ModuleType) -> None:
    model = runs.Chain(3, 0.0, True)
    strategy = Pipelined(cuts=["5"], engine="ray", correction="spike")
    trainer = Trainer(model, nn.CrossEntropyLoss(), momentum(model), strategy=strategy, settings=FIXED)
    (x, y), *_ = runs.batches([4])
    with pytest.raises(Diverged, match="are not finite in batch 0") as e:
        trainer.fit([(x * float("nan"), y)])
    assert "no weight has been updated yet" in str(e.value.hint)


@pytest.mark.parametrize(
    ("options", "dies_at", "hint"),
    [
        ({}, 3, "nothing was saved to go on from: run_dir and save_every"),
        ({"save_every": 8}, 3, "no checkpoint was written yet, so start again; --save-every"),
        ({"save_every": 2}, 5, "convoy train --resume {run},"),
    ],
)
def test_the_trainer_says_whether_there_is_something_to_resume(
    runs: ModuleType, ray: Any, tmp_path: Path, options: dict[str, Any], dies_at: int, hint: str
) -> None:
    model = runs.Chain(3, 0.0, True)
    run_dir = tmp_path if options else None
    trainer = Trainer(
        *(model, nn.CrossEntropyLoss(), momentum(model)),
        strategy=Pipelined(cuts=["5"], engine="ray"),
        settings=FIXED,
        run_dir=run_dir,
        callbacks=[lambda event: ray.actors[1].die() if event.kind == "step" and event.batch == dies_at else None],
        **options,
    )
    with pytest.raises(WorkerFailed, match="died") as e:
        trainer.fit(runs.batches([4] * 40))
    assert hint.format(run=trainer.run_path) in str(e.value.hint)


class Inside(nn.Module):
    """Returns a number beside the tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return self.high(torch.relu(self.low(x))), 7


def test_constants_in_what_the_model_returns_come_back() -> None:
    model = Inside()
    strategy = Pipelined(cuts=["high"], engine="ray")
    with strategy.bind(model, lambda o, y: F.cross_entropy(o[0], y), momentum(model), settings=FIXED) as step:
        step(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
        (result,) = step.drain()
    assert result.output[0].shape == (4, 2) and result.output[1] == 7


def test_a_lock_in_the_model_is_refused(ray: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.lock = threading.Lock()
    ray.put = lambda value: (_ for _ in ()).throw(TypeError("cannot pickle '_thread.lock' object"))
    step = Pipelined(cuts=["1"], engine="ray").bind(model, F.mse_loss, momentum(model), settings=FIXED)
    with pytest.raises(ModelError, match="cannot be sent to other processes: cannot pickle"):
        step(torch.randn(2, 2), torch.randn(2, 2))
    step.close()
    assert all(actor.dead for actor in ray.actors)


def test_too_few_cores_are_said_at_once(runs: ModuleType, ray: Any) -> None:
    ray.cores = 1.0
    model = runs.Chain(3, 0.0, True)
    step = Pipelined(cuts=["5"], engine="ray").bind(model, F.cross_entropy, momentum(model), settings=FIXED)
    with pytest.raises(OptionError, match="2 workers need 2 cores, and Ray has 1 free"):
        step(*runs.batches([4])[0])
    assert ray.actors == []
    step.close()


def test_another_version_of_torch_is_refused(runs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from convoy.engines.ray.host import Host

    about = Host.about
    monkeypatch.setattr(Host, "about", lambda self: {**about(self), "torch": "2.11.0"})
    model = runs.Chain(3, 0.0, True)
    step = Pipelined(cuts=["5"], engine="ray").bind(model, F.cross_entropy, momentum(model), settings=FIXED)
    with pytest.raises(MachineError, match=r"has torch 2\.11\.0 and this machine"):
        step(*runs.batches([4])[0])
    step.close()


def test_devices_and_split_placement_are_refused(runs: ModuleType) -> None:
    model = runs.Chain(3, 0.0, True)
    with pytest.raises(OptionError, match="runs on processors, and device is 'cuda'"):
        Pipelined(engine="ray").bind(model, F.cross_entropy, momentum(model), settings=Settings(device="cuda"))
    with pytest.raises(OptionError, match="two workers share"):
        Pipelined(engine="ray", placement="split")
    for options in ({"address": "head:1"}, {"insecure": True}):
        with pytest.raises(OptionError, match="address and insecure are for engine 'ray'"):
            Pipelined(**options)


def test_cut_anew_at_a_drain(runs: ModuleType, ray: Any) -> None:
    """New actors take over from the state that came home."""
    trained = []
    for engine in ("ray", "inline"):
        torch.manual_seed(0)
        model = runs.Chain(3, 0.2, True)
        optimizer = momentum(model)
        with Pipelined(cuts=["5"], engine=engine).bind(model, F.cross_entropy, optimizer, settings=FIXED) as step:
            losses = []
            for t, (x, y) in enumerate(runs.batches([4] * 6)):
                if t == 3:
                    losses += [r.loss for r in step.drain()]
                    step.recut(["8"])
                result = step(x, y)
                losses += [] if result is None else [result.loss]
            losses += [r.loss for r in step.drain()]
        trained.append((dict(model.state_dict()), optimizer.state_dict(), losses))
    runs.same(trained[0], trained[1], "trained")
    assert [actor.dead for actor in ray.actors] == [True] * 4


def test_the_driver_has_one_intra_op_thread_until_a_drain(runs: ModuleType, intra_op: int) -> None:
    model = runs.Chain(3, 0.0, True)
    with Pipelined(cuts=["5"], engine="ray").bind(model, F.cross_entropy, momentum(model), settings=FIXED) as step:
        for cuts in (["3"], ["5"]):
            for x, y in runs.batches([4, 4]):
                step(x, y)
            assert torch.get_num_threads() == 1 and callers_threads() == intra_op
            step.drain()
            assert torch.get_num_threads() == intra_op
            step.recut(cuts)
        step(*runs.batches([4])[0])
    assert torch.get_num_threads() == intra_op


def test_a_step_that_is_dropped_ends_its_actors(runs: ModuleType, ray: Any) -> None:
    model = runs.Chain(3, 0.0, True)
    step = Pipelined(cuts=["5"], engine="ray").bind(model, F.cross_entropy, momentum(model), settings=FIXED)
    step(*runs.batches([4])[0])
    step = None
    gc.collect()
    for _ in range(200):
        if all(actor.dead for actor in ray.actors):
            break
        time.sleep(0.02)
    assert all(actor.dead for actor in ray.actors)
