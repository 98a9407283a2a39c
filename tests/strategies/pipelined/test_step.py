"""What a user sees of a bound pipeline: results, state, optimizers, models of every habit."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from math import ceil
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convoy.errors import DataError, InternalError, ModelError, OptionError, RunError
from convoy.strategies.base import Settings
from convoy.strategies.pipelined import Pipelined

FIXED = Settings(channels_last=False, watchdog_seconds=20)


def sgd(model: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr, momentum=0.9)


def chain(runs: ModuleType) -> nn.Module:
    torch.manual_seed(0)
    return runs.Chain(3, 0.0, True)


def both(build: Any, data: Any, loss: Any = F.cross_entropy, optimizer: Any = sgd, **options: Any) -> nn.Module:
    """Train by threads and inline; the two are equal. Returns the model that threads trained."""
    trained = []
    for engine in ("threads", "inline"):
        torch.manual_seed(0)
        model = build()
        chosen = optimizer(model)
        with Pipelined(engine=engine, **options).bind(model, loss, chosen, settings=FIXED) as step:
            results = [step(x, y) for x, y in data] + step.drain()
        losses = [r.loss for r in results if r is not None]
        assert [r.batch for r in results if r is not None] == list(range(len(data)))
        trained.append((model, losses, chosen))
    (one, a, first), (other, b, second) = trained
    assert all(map(torch.equal, a, b))
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert first.state_dict().keys() == second.state_dict().keys()
    return one


class TestResults:
    @pytest.mark.parametrize(("m", "k"), [(1, 0), (1, 1), (1, 3), (2, 3), (3, 3), (4, 1)])
    def test_the_result_of_an_earlier_batch_comes_back(self, runs: ModuleType, m: int, k: int) -> None:
        model = chain(runs)
        cuts = ["1", "5", "8"][:k]
        behind = ceil(k / m)
        data = runs.batches([4] * 7)
        strategy = Pipelined(cuts=cuts, accumulate=m)
        with strategy.bind(model, F.cross_entropy, sgd(model), settings=FIXED) as step:
            for t, (x, y) in enumerate(data):
                result = step(x, y)
                if t < behind:
                    assert result is None
                else:
                    assert result is not None and result.batch == t - behind
                    assert torch.equal(result.target, data[t - behind][1])
                    assert result.output.shape == (4, 3) and not result.output.requires_grad
                    assert result.loss.dim() == 0 and not result.loss.requires_grad and result.ready
            rest = step.drain()
            assert [r.batch for r in rest] == list(range(7 - behind, 7))
            assert all(r.ready for r in rest)
            assert step.drain() == []

    def test_the_loss_is_that_of_the_output(self, runs: ModuleType) -> None:
        """Also for a mini-batch that entered in parts of different sizes."""
        model = chain(runs)
        strategy = Pipelined(cuts=["5"], accumulate=3)
        with strategy.bind(model, F.cross_entropy, sgd(model), settings=FIXED) as step:
            results = [step(x, y) for x, y in runs.batches([5, 4, 2, 1])] + step.drain()
        for result in filter(None, results):
            torch.testing.assert_close(result.loss, F.cross_entropy(result.output, result.target))

    def test_a_summed_loss_is_the_sum_over_the_parts(self, runs: ModuleType) -> None:
        """The gradient of the sum, whether the batch enters whole or in parts."""
        after = []
        for m in (1, 3):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
            x, y = torch.randn(5, 3), torch.randint(2, (5,))
            loss = nn.CrossEntropyLoss(reduction="sum")
            strategy = Pipelined(cuts=["2"], accumulate=m)
            with strategy.bind(model, loss, torch.optim.SGD(model.parameters(), 0.1)) as step:
                step(x, y)
                (result,) = step.drain()
            after.append((result.loss, *(p.detach() for p in model.parameters())))
        for whole, parts in zip(*after, strict=True):
            torch.testing.assert_close(whole, parts)

    @pytest.mark.parametrize("option", [{"weight": torch.tensor([1.0, 2.0, 3.0])}, {"ignore_index": 2}])
    def test_means_that_parts_cannot_give_exactly_are_noted(self, runs: ModuleType, option: Any) -> None:
        for m, noted in ((1, False), (2, True)):
            model = chain(runs)
            loss = nn.CrossEntropyLoss(**option)
            with Pipelined(cuts=["5"], accumulate=m).bind(model, loss, sgd(model), settings=FIXED) as step:
                step(*runs.batches([4])[0])
                assert any("not exactly the mean" in note for note in step.plan().notes) is noted

    def test_a_loss_that_is_not_finite_is_handed_out(self, runs: ModuleType) -> None:
        model = chain(runs)
        with Pipelined(cuts=["5"]).bind(model, lambda o, y: o.sum() * float("inf"), sgd(model)) as step:
            x, y = runs.batches([4])[0]
            step(x, y)
            (result,) = step.drain()
            assert not torch.isfinite(result.loss)


class TestOptimizer:
    def test_state_has_the_keys_and_values_of_plain_training(self, runs: ModuleType) -> None:
        model, twin = chain(runs), chain(runs)
        mine, plain = (torch.optim.Adam(m.parameters(), 0.01, amsgrad=True) for m in (model, twin))
        data = runs.batches([4] * 4)
        with Pipelined(cuts=["5"]).bind(model, F.cross_entropy, mine, settings=FIXED) as step:
            for x, y in data:
                step(x, y)
                step.drain()
        for x, y in data:
            plain.zero_grad()
            F.cross_entropy(twin(x), y).backward()
            plain.step()
        runs.same(mine.state_dict(), plain.state_dict(), "optimizer")
        runs.same(dict(model.state_dict()), dict(twin.state_dict()), "model")

    def test_the_learning_rate_is_the_one_with_which_the_batch_entered(self) -> None:
        """Batch 1 enters with rate 0: it changes nothing, although the rate is 1 when its updates happen."""
        model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
        optimizer = torch.optim.SGD(model.parameters(), 1.0)
        x, y = torch.randn(4, 2), torch.randn(4, 1)
        with Pipelined(cuts=["1"]).bind(model, F.mse_loss, optimizer) as step:
            optimizer.param_groups[0]["lr"] = 0.0
            step(x, y)
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.param_groups[0]["lr"] = 1.0
            step.drain()
            assert all(map(torch.equal, before, model.parameters()))
            step(x, y)
            optimizer.param_groups[0]["lr"] = 0.0
            step.drain()
            assert not any(map(torch.equal, before, model.parameters()))

    def test_a_learning_rate_that_is_a_tensor(self, runs: ModuleType) -> None:
        """Schedulers change it in place; what was recorded stays."""

        def train(lr: Any) -> nn.Module:
            torch.manual_seed(0)
            model = nn.Sequential(
                nn.Flatten(), nn.Linear(128, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)
            )
            optimizer = torch.optim.Adam(model.parameters(), lr)
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            with Pipelined(cuts=["3", "5"]).bind(model, F.cross_entropy, optimizer, settings=FIXED) as step:
                for x, y in runs.batches([4] * 6):
                    step(x, y)
                    scheduler.step()
            return model

        number, tensor = train(0.01), train(torch.tensor(0.01))
        for a, b in zip(number.parameters(), tensor.parameters(), strict=True):
            torch.testing.assert_close(a, b)

    def test_two_parameter_groups(self, runs: ModuleType) -> None:
        def groups(model: nn.Module) -> torch.optim.Optimizer:
            parameters = list(model.parameters())
            return torch.optim.SGD(
                [{"params": parameters[::2], "lr": 0.1, "momentum": 0.9}, {"params": parameters[1::2]}], 0.01
            )

        trained = both(lambda: chain(runs), runs.batches([4] * 6), optimizer=groups, cuts=["1", "5"])
        uniform = both(lambda: chain(runs), runs.batches([4] * 6), optimizer=lambda m: sgd(m, 0.01), cuts=["1", "5"])
        assert not torch.equal(trained[0].weight, uniform[0].weight)

    def test_parameters_that_it_leaves_out_stay(self, runs: ModuleType) -> None:
        model = chain(runs)
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = torch.optim.SGD(model[5].parameters(), 0.1)
        settings = Settings(clip=1.0, channels_last=False)
        with Pipelined(cuts=["1", "5"]).bind(model, F.cross_entropy, optimizer, settings=settings) as step:
            for x, y in runs.batches([4] * 5):
                step(x, y)
        changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
        assert [n for n, c in zip(dict(model.named_parameters()), changed, strict=True) if c] == ["5.weight", "5.bias"]

    def test_gradients_from_before_do_not_count(self, runs: ModuleType) -> None:
        """What a look at the model left in .grad, before the first batch or after a drain, is not trained on."""
        models = []
        for look in (False, True):
            model = chain(runs)
            data = runs.batches([4] * 4)
            with Pipelined(cuts=["5"]).bind(model, F.cross_entropy, sgd(model), settings=FIXED) as step:
                for t, (x, y) in enumerate(data):
                    if t == 2:
                        step.drain()
                    if look and t in (0, 2):
                        for p in model.parameters():
                            p.grad = torch.ones_like(p)
                    step(x, y)
            models.append(model)
        runs.same(dict(models[0].state_dict()), dict(models[1].state_dict()), "weights")

    def test_a_state_loaded_after_a_drain_is_used(self, runs: ModuleType) -> None:
        """load_state_dict gives the optimizer another mapping."""
        model = chain(runs)
        optimizer = sgd(model)
        data = runs.batches([4] * 6)
        with Pipelined(cuts=["5"]).bind(model, F.cross_entropy, optimizer, settings=FIXED) as step:
            for x, y in data[:3]:
                step(x, y)
            step.drain()
            kept, weights = deepcopy(optimizer.state_dict()), deepcopy(model.state_dict())
            ends = []
            for _ in range(2):
                model.load_state_dict(weights)
                optimizer.load_state_dict(deepcopy(kept))
                for x, y in data[3:]:
                    step(x, y)
                step.drain()
                ends.append(deepcopy((dict(model.state_dict()), optimizer.state_dict())))
        runs.same(ends[0], ends[1])
        assert not torch.equal(ends[0][1]["state"][0]["momentum_buffer"], kept["state"][0]["momentum_buffer"])

    def test_lbfgs_is_refused(self) -> None:
        model = nn.Linear(2, 2)
        with pytest.raises(OptionError, match="LBFGS evaluates the whole model"):
            Pipelined().bind(model, F.mse_loss, torch.optim.LBFGS(model.parameters()))

    def test_a_group_added_in_the_middle_is_refused(self, runs: ModuleType) -> None:
        model = chain(runs)
        optimizer = torch.optim.SGD(model[5].parameters(), 0.1)
        x, y = runs.batches([4])[0]
        with Pipelined(cuts=["5"]).bind(model, F.cross_entropy, optimizer, settings=FIXED) as step:
            step(x, y)
            optimizer.add_param_group({"params": model[0].parameters()})
            with pytest.raises(OptionError, match="had 2 parameters when training began and now has 4"):
                step(x, y)


class TestModels:
    def test_frozen_layers_stay_and_need_no_optimizer_state(self, runs: ModuleType) -> None:
        def frozen() -> nn.Module:
            model = runs.Residual(4, 0.0, True)
            for part in (model.convs[0], model.norms[1]):
                part.requires_grad_(False)
            return model

        torch.manual_seed(0)
        before = frozen().convs[0].weight
        trained = both(frozen, runs.batches([4] * 6), cuts=["norms.1", "head"])
        assert torch.equal(trained.convs[0].weight, before)
        assert trained.stem.weight.grad is None

    def test_a_frozen_first_stage(self, runs: ModuleType) -> None:
        def frozen() -> nn.Module:
            model = runs.Chain(3, 0.0, True)
            model[0].requires_grad_(False)
            model[1].requires_grad_(False)
            return model

        trained = both(frozen, runs.batches([4] * 6), cuts=["5", "8"])
        assert trained[1].num_batches_tracked == 6

    def test_a_frozen_batch_norm_keeps_its_statistics(self, runs: ModuleType) -> None:
        """A layer that the user put into eval mode stays there."""
        model = chain(runs)
        model[1].eval()
        before = model[1].running_mean.clone()
        with Pipelined(cuts=["5"]).bind(model, F.cross_entropy, sgd(model), settings=FIXED) as step:
            for x, y in runs.batches([4] * 3):
                step(x, y)
        assert torch.equal(model[1].running_mean, before) and not model[1].training

    def test_evaluation_between_drains(self, runs: ModuleType) -> None:
        """The user's own module is the trained one, in the middle too; evaluating changes nothing."""
        ends = []
        for evaluate in (False, True):
            model = chain(runs)
            data = runs.batches([4] * 6)
            with Pipelined(cuts=["1", "5"]).bind(model, F.cross_entropy, sgd(model), settings=FIXED) as step:
                for t, (x, y) in enumerate(data):
                    if t == 3:
                        step.drain()
                        if evaluate:
                            model.eval()
                            with torch.no_grad():
                                model(x)
                            model.train()
                    step(x, y)
            ends.append(dict(model.state_dict()))
        runs.same(ends[0], ends[1], "weights")

    def test_a_dictionary_as_input_and_as_output(self, runs: ModuleType) -> None:
        class Named(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.low, self.high = nn.Linear(4, 5), nn.Linear(8, 3)

            def forward(self, image: Tensor, extra: Tensor | None = None) -> dict[str, Tensor]:
                hidden = torch.relu(self.low(image))
                assert extra is not None
                return {"logits": self.high(torch.cat((hidden, extra), 1)), "hidden": hidden}

        torch.manual_seed(1)
        data = [
            ({"image": torch.randn(n, 4), "extra": torch.randn(n, 3)}, torch.randint(3, (n,))) for n in [4] * 5 + [3]
        ]
        for m in (1, 2):
            both(Named, data, lambda out, y: F.cross_entropy(out["logits"], y), cuts=["high"], accumulate=m)
        model = Named()
        with Pipelined(cuts=["high"], accumulate=2).bind(
            model, lambda out, y: F.cross_entropy(out["logits"], y), sgd(model)
        ) as step:
            step(*data[0])
            (result,) = step.drain()
        assert {k: v.shape for k, v in result.output.items()} == {"logits": (4, 3), "hidden": (4, 5)}

    def test_a_dataclass_as_output(self) -> None:
        model = ReturnsDataclass()
        x, y = torch.randn(4, 4), torch.randint(3, (4,))
        with Pipelined(cuts=["high"]).bind(model, lambda out, y: F.cross_entropy(out.logits, y), sgd(model)) as step:
            step(x, y)
            (result,) = step.drain()
        assert isinstance(result.output, Found) and result.output.logits.shape == (4, 3)
        assert result.output.hidden.shape == (4, 5) and not result.output.hidden.requires_grad

    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_hugging_face_resnet_from_its_configuration(self, runs: ModuleType, accumulate: int) -> None:
        transformers = pytest.importorskip("transformers")
        config = transformers.ResNetConfig(
            num_channels=3, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
        )
        draw = torch.Generator().manual_seed(0)
        data = [
            ({"pixel_values": torch.randn(n, 3, 16, 16, generator=draw)}, torch.randint(3, (n,), generator=draw))
            for n in [4, 4, 4, 3]
        ]
        trained = both(
            lambda: transformers.ResNetForImageClassification(config),
            data,
            lambda out, y: F.cross_entropy(out.logits, y),
            cuts=["resnet.encoder.stages.1"],
            accumulate=accumulate,
        )
        assert "resnet.encoder.stages.1.layers.0.layer.0.convolution.weight" in trained.state_dict()

    def test_the_output_may_need_a_value_of_the_first_stage(self, runs: ModuleType) -> None:
        def loss(output: Any, y: Tensor) -> Tensor:
            return F.cross_entropy(output[0], y) + F.cross_entropy(output[1], y)

        both(lambda: runs.TwoHeads(3, 0.0, True), runs.batches([4] * 6), loss, cuts=["high.0", "high.3", "head"])

    def test_tied_weights_stay_in_one_stage(self, runs: ModuleType) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.a, self.b, self.last = (nn.Linear(4, 4) for _ in range(4))
                self.b.weight = self.a.weight

            def forward(self, x: Tensor) -> Tensor:
                return self.last(self.b(torch.relu(self.a(self.first(x)))))

        torch.manual_seed(1)
        data = [(torch.randn(4, 4), torch.randint(4, (4,))) for _ in range(6)]
        trained = both(Tied, data, cuts=["a", "last"])
        assert trained.a.weight is trained.b.weight
        model = Tied()
        with (
            pytest.raises(ModelError, match=r"no cut can fall before 'b': a to b stay together"),
            Pipelined(cuts=["b"]).bind(model, F.cross_entropy, sgd(model)) as step,
        ):
            step(*data[0])


@dataclass
class Found:
    logits: Tensor
    hidden: Tensor


class ReturnsDataclass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Found:
        hidden = torch.relu(self.low(x))
        return Found(self.high(hidden), hidden)


class TestRefusals:
    def test_targets_that_cannot_be_cut(self, runs: ModuleType) -> None:
        """The refused batch has no effect: the next one is batch 0 still."""
        model = chain(runs)
        x, y = runs.batches([4])[0]
        before = {k: v.clone() for k, v in model.state_dict().items()}
        strategy = Pipelined(cuts=["5"], accumulate=2)
        with strategy.bind(model, F.cross_entropy, sgd(model), settings=FIXED) as step:
            for bad in (y[:3], torch.tensor(1)):
                with pytest.raises(DataError, match="cannot be cut into micro-batches of 4 samples"):
                    step(x, bad)
            assert step.drain() == []
            runs.same(dict(model.state_dict()), before, "weights")
            step(x, y)
            (result,) = step.drain()
            assert result.batch == 0

    def test_a_batch_that_is_built_otherwise(self, runs: ModuleType) -> None:
        model = chain(runs)
        x, y = runs.batches([4])[0]
        with Pipelined(cuts=["5"]).bind(model, F.cross_entropy, sgd(model), settings=FIXED) as step:
            step(x, y)
            with pytest.raises(DataError, match="built otherwise"):
                step((x, x), y)
            result = step(x, y)
            assert [result.batch, *(r.batch for r in step.drain())] == [0, 1]

    def test_fewer_samples_than_parts(self, runs: ModuleType) -> None:
        class Small(nn.Sequential):
            def __init__(self) -> None:
                super().__init__(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

        torch.manual_seed(1)
        data = [(torch.randn(n, 3), torch.randint(2, (n,))) for n in [4, 2, 1, 4, 1]]
        both(Small, data, cuts=["2"], accumulate=4)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (Settings(precision="float16"), "precision 'float16' is unknown"),
            (Settings(threads=0), "threads must be at least 1, not 0"),
            (Settings(clip=0.0), "clip must be greater than 0"),
        ],
    )
    def test_settings_that_make_no_sense(self, settings: Settings, message: str) -> None:
        model = nn.Linear(2, 2)
        with pytest.raises(OptionError, match=message):
            Pipelined().bind(model, F.mse_loss, sgd(model), settings=settings)

    def test_a_closed_step_says_so(self, runs: ModuleType) -> None:
        model = chain(runs)
        step = Pipelined(cuts=["5"]).bind(model, F.cross_entropy, sgd(model), settings=FIXED)
        x, y = runs.batches([4])[0]
        step(x, y)
        step.close()
        step.close()
        with pytest.raises(InternalError, match="closed"):
            step(x, y)
        with pytest.raises(RunError, match="stopped before"):
            step.drain()

    def test_nothing_to_drain_before_the_first_batch(self) -> None:
        model = nn.Linear(2, 2)
        with Pipelined().bind(model, F.mse_loss, sgd(model)) as step:
            assert step.drain() == [] and step.plan() is None
            assert step.state()["batch"] == 0 and step.state()["version"] == 0
