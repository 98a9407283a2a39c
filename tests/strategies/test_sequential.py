from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convoy.errors import OptionError, WorkerFailed
from convoy.strategies.base import Settings
from convoy.strategies.registry import make_strategy
from convoy.strategies.sequential import Sequential


class Net(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 16, 5)
        self.dropout = dropout

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)))
        x = F.relu(self.norm2(self.conv2(x)) + x)
        x = F.max_pool2d(x, 2).flatten(1)
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        return self.fc(x)


def make(seed=0, **options):
    torch.manual_seed(seed)
    return Net(**options)


def batches(count=6, size=8, last=5):
    generator = torch.Generator().manual_seed(7)
    sizes = [size] * (count - 1) + [last]
    return [
        (torch.randn(n, 3, 8, 8, generator=generator), torch.randint(0, 5, (n,), generator=generator)) for n in sizes
    ]


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True),
    "adam": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.01),
}


def by_hand(model, optimizer, data, *, channels_last=True, bfloat16=False, clip=None):
    """The loop that a person writes."""
    loss_function = nn.CrossEntropyLoss()
    if channels_last:
        model.to(memory_format=torch.channels_last)
    losses = []
    for x, y in data:
        if channels_last:
            x = x.to(memory_format=torch.channels_last)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = loss_function(model(x), y)
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(loss.detach())
    return losses


def train(model, optimizer, data, loss=None, **settings):
    sink = settings.pop("sink", None)
    with Sequential().bind(
        model, loss or nn.CrossEntropyLoss(), optimizer, settings=Settings(**settings), sink=sink
    ) as step:
        return [step(x, y) for x, y in data]


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "options", [{}, {"channels_last": False}, {"clip": 0.5}, {"bfloat16": True}], ids=lambda o: "-".join(o) or "plain"
)
def test_equals_a_hand_written_loop_bit_for_bit(optimizer, options):
    theirs, ours = make(), make()
    expected = by_hand(theirs, OPTIMIZERS[optimizer](theirs.parameters()), batches(), **options)
    settings = dict(options)
    if settings.pop("bfloat16", False):
        settings["precision"] = "bfloat16"
    results = train(ours, OPTIMIZERS[optimizer](ours.parameters()), batches(), **settings)
    assert [r.batch for r in results] == list(range(6))
    assert torch.equal(torch.stack([r.loss for r in results]), torch.stack(expected))
    assert_same(theirs.state_dict(), ours.state_dict())


def test_results_hold_output_and_target_without_history():
    model = make()
    (x, y), *_ = batches()
    (result,) = train(model, OPTIMIZERS["sgd"](model.parameters()), [(x, y)])
    assert result.ready and result.target is y
    assert result.output.shape == (8, 5) and not result.output.requires_grad and not result.loss.requires_grad


def test_the_parameters_stay_the_users_own_objects():
    model = make()
    before = list(model.parameters())
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    train(model, optimizer, batches())
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    assert all(p in optimizer.state for p in before)
    assert model.conv2.weight.is_contiguous(memory_format=torch.channels_last)


def test_dropout_draws_by_key_and_not_from_the_global_generator():
    def run(seed, disturb):
        model = make(dropout=0.5)
        optimizer = OPTIMIZERS["momentum"](model.parameters())
        with Sequential().bind(model, nn.CrossEntropyLoss(), optimizer, settings=Settings(seed=seed)) as step:
            for x, y in batches():
                if disturb:
                    torch.rand(100)
                step(x, y)
            plan = step.plan()
            assert plan.runs == "captured program" and len(plan.random_layers) == 1
            assert plan.random_layers[0] in plan.table() and f"{plan.threads} thread" in plan.table()
        return model.state_dict()

    first = run(3, False)
    assert_same(first, run(3, True))
    assert not torch.equal(first["fc.weight"], run(4, False)["fc.weight"])


def test_dropout_differs_from_batch_to_batch_and_goes_on_after_restore():
    def fresh():
        model = make(dropout=0.5)
        return Sequential().bind(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.0))

    (x, y), *_ = batches()
    whole = fresh()
    outputs = [whole(x, y).output for _ in range(3)]
    # lr = 0 and batch statistics: only the draws differ.
    assert not torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[1], outputs[2])
    resumed = fresh()
    resumed.restore({"batch": 2})
    result = resumed(x, y)
    assert result.batch == 2 and torch.equal(result.output, outputs[2])
    assert resumed.state() == {"batch": 3, "version": 3}


def test_a_model_in_eval_mode_runs_as_it_is():
    model = make(dropout=0.5).eval()
    running = model.norm.running_mean.clone()
    (x, y), *_ = batches()
    (result,) = train(model, torch.optim.SGD(model.parameters(), lr=0.0), [(x, y)])
    with torch.no_grad():
        assert torch.equal(result.output, model(x.contiguous(memory_format=torch.channels_last)))
    assert torch.equal(model.norm.running_mean, running)


def test_a_frozen_norm_keeps_its_statistics():
    model = make(dropout=0.5)
    model.norm.eval().requires_grad_(False)
    before = {k: v.clone() for k, v in model.norm.state_dict().items()}
    other = model.norm2.running_mean.clone()
    train(model, OPTIMIZERS["momentum"](model.parameters()), batches())
    assert_same(before, model.norm.state_dict())
    assert not torch.equal(other, model.norm2.running_mean)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, a, b):
        return self.a(a) * self.b(b)


@pytest.mark.parametrize(
    "form", [tuple, list, lambda pair: {"b": pair[1], "a": pair[0]}], ids=["tuple", "list", "dict"]
)
def test_several_inputs_become_arguments(form):
    torch.manual_seed(0)
    model = TwoInputs()
    a, b, y = torch.randn(6, 4), torch.randn(6, 2), torch.randint(0, 3, (6,))
    expected = nn.functional.cross_entropy(model(a, b), y).detach()
    (result,) = train(model, torch.optim.SGD(model.parameters(), lr=0.1), [(form((a, b)), y)])
    assert torch.equal(result.loss, expected)


@dataclass
class Output:
    loss: torch.Tensor
    logits: torch.Tensor


class WithLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, pixels, labels):
        logits = self.fc(nn.functional.dropout(pixels, 0.25, self.training))
        return Output(nn.functional.cross_entropy(logits, labels), logits)


def test_a_mapping_batch_and_a_dataclass_output_with_dropout():
    torch.manual_seed(0)
    model = WithLoss()
    batch = {"pixels": torch.randn(6, 4), "labels": torch.randint(0, 3, (6,))}
    results = train(
        model, torch.optim.SGD(model.parameters(), lr=0.1), [(batch, batch)] * 2, loss=lambda output, _: output.loss
    )
    assert isinstance(results[0].output, Output) and not results[0].output.logits.requires_grad
    assert results[0].target["labels"] is batch["labels"]
    assert not torch.equal(results[0].loss, results[1].loss)


class Counting(nn.Module):
    """The number of its loops comes from a tensor: no graph can hold that."""

    def __init__(self, dropout):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.dropout = dropout
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        for _ in range(int(x.sum().abs().item()) % 3 + 1):
            x = self.norm(self.fc(x))
        return F.dropout(x, 0.5) if self.dropout else x


@pytest.mark.parametrize("dropout", [False, True])
def test_a_model_that_cannot_be_captured_trains_and_says_so_where_it_matters(dropout):
    torch.manual_seed(0)
    theirs = Counting(dropout)
    torch.manual_seed(0)
    ours = Counting(dropout)
    data = [(torch.randn(6, 4), torch.randint(0, 4, (6,))) for _ in range(4)]
    torch.manual_seed(1)
    by_hand(theirs, OPTIMIZERS["momentum"](theirs.parameters()), data, channels_last=False)
    seen = []
    torch.manual_seed(1)
    train(ours, OPTIMIZERS["momentum"](ours.parameters()), data, sink=seen.append)
    assert_same(theirs.state_dict(), ours.state_dict())
    assert [e.kind for e in seen] == (["warning", "plan"] if dropout else ["plan"])
    assert ("cannot be captured, so its random layers" in seen[0].data.get("message", "")) == dropout


def test_threads_are_set_while_it_is_bound():
    before = torch.get_num_threads()
    seen = []

    def loss(output, y):
        seen.append(torch.get_num_threads())
        return nn.functional.cross_entropy(output, y)

    model = make()
    train(model, OPTIMIZERS["sgd"](model.parameters()), batches(2), loss=loss, threads=before + 1)
    assert set(seen) == {before + 1} and torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("settings", "value"), [({"precision": "float16"}, "float16"), ({"threads": 0}, "0"), ({"clip": -1.0}, "-1.0")]
)
def test_settings_that_make_no_sense_are_refused(settings, value):
    model = make()
    with pytest.raises(OptionError, match=value):
        Sequential().bind(
            model, nn.CrossEntropyLoss(), OPTIMIZERS["sgd"](model.parameters()), settings=Settings(**settings)
        )


def test_a_failure_names_the_batch_and_chains_the_cause():
    model = make()
    (x, y), *_ = batches()
    with pytest.raises(WorkerFailed, match="batch 1 failed with RuntimeError") as failed:
        train(model, OPTIMIZERS["sgd"](model.parameters()), [(x, y), (x[:, :, :4], y)])
    assert isinstance(failed.value.__cause__, RuntimeError)


def test_by_name():
    assert make_strategy("sequential") == Sequential()
    with pytest.raises(OptionError, match="unknown") as error:
        make_strategy("sequental")
    assert "'sequential'" in error.value.hint
    with pytest.raises(OptionError, match="no field 'stages'"):
        make_strategy("sequential", stages=2)


def test_capturing_is_spared_where_nothing_is_drawn(monkeypatch):
    def refuse(*args):
        raise AssertionError("captured")

    monkeypatch.setattr("convoy.strategies.sequential.capture", refuse)
    model = make()
    state = torch.get_rng_state()
    train(model, OPTIMIZERS["sgd"](model.parameters()), batches(1))
    assert torch.equal(state, torch.get_rng_state())
    assert model.norm.num_batches_tracked == 1
    with pytest.raises(WorkerFailed, match="captured"):
        train(make(dropout=0.5), OPTIMIZERS["sgd"](model.parameters()), batches(1))
