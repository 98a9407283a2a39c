"""Untiled, in one thread: weights, running statistics and optimizer state equal plain PyTorch bit for bit."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from convoy.models import build
from convoy.strategies.base import Settings
from convoy.strategies.sequential import Sequential


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_small_net_with_an_uneven_last_batch(both, images, small_net, clip, channels_last):
    assert both(small_net(), images([6, 6, 4]), clip=clip, channels_last=channels_last) == []


@pytest.mark.parametrize(
    ("name", "options", "channels", "size", "sizes"),
    [
        ("lenet5", {"image_size": 28}, 1, 28, [4, 4, 3]),
        ("resnet20", {"image_size": 16}, 3, 16, [4, 3]),
        ("resnet20", {"image_size": 8, "shortcut": "B"}, 3, 8, [4, 3]),
        ("vgg16", {"image_size": 32, "dropout": 0.0}, 3, 32, [2, 3]),
    ],
)
def test_published_networks(both, images, name, options, channels, size, sizes):
    model = build(name, classes=10, channels=channels, seed=0, **options)
    assert both(model, images(sizes, channels, size, 10), clip=1.0 if "shortcut" in options else None) == []


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2),
        lambda m: torch.optim.SGD(
            [{"params": m.fc.parameters(), "lr": 0.2}, {"params": [*m.conv.parameters(), *m.bn.parameters()]}], lr=0.1
        ),
    ],
    ids=["adamw", "groups"],
)
def test_optimizers_and_schedules(both, images, small_net, optimizer):
    def steps(o):
        return torch.optim.lr_scheduler.StepLR(o, 1, 0.5)

    assert both(small_net(), images([6, 6, 6]), optimizer=optimizer, scheduler=steps) == []


@pytest.mark.parametrize("frozen", [["conv"], ["bn"], ["conv", "bn"], ["fc"]])
def test_frozen_layers(both, images, small_net, frozen):
    net = small_net()
    for name in frozen:
        net.get_submodule(name).requires_grad_(False)
    start = copy.deepcopy(net.state_dict())
    assert both(net, images([6, 5])) == []
    for name in frozen:
        assert torch.equal(net.get_submodule(name).weight, start[f"{name}.weight"])


def test_frozen_statistics_and_a_change_of_mode_between_two_batches(images, small_net, tasks, plain, differing):
    net = small_net()
    net.bn.eval()
    other = copy.deepcopy(net)
    mine, theirs = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (net, other))
    data = images([5, 5, 5])

    def switching(model):
        for number, batch in enumerate(data):
            model.bn.train(number == 1)
            model.conv.requires_grad_(number != 2)
            yield batch

    plain(other, theirs, switching(other))
    tasks(net, mine, switching(net))
    assert differing(net, mine, other, theirs) == []
    assert net.bn.num_batches_tracked == 1


def test_dropout_draws_as_the_captured_program_does(images, tasks, differing):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Dropout(0.3), nn.ReLU(), nn.Dropout2d(0.2), nn.Flatten(), nn.Linear(4 * 36, 5)
    )
    other = copy.deepcopy(net)
    mine, theirs = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (net, other))
    data = images([6, 6])
    got = tasks(net, mine, data, seed=5)
    with Sequential().bind(other, nn.CrossEntropyLoss(), theirs, settings=Settings(seed=5, threads=1)) as step:
        expected = [step(x, y).loss for x, y in data]
    assert [v.item() for v in got] == [v.item() for v in expected]
    assert differing(net, mine, other, theirs) == []
    again = tasks(copy.deepcopy(other), torch.optim.SGD(other.parameters(), lr=0.1), data, seed=6)
    assert again[0] != got[0]


class Odd(nn.Module):
    """What has no rule: several results, products, writes in place, views, sizes, tied weights, own functions."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.shared = nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.unused = nn.Linear(3, 3)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.stem(x))
        a, b = x.chunk(2, 1)
        x = torch.cat([a * torch.sigmoid(b), b], 1)
        x = self.shared(self.twice(x)) + x + x
        x = F.elu(self.twice(x)) + self.shared(x)
        x = x * self.scale
        y = x.clone()
        y[:, :2] += 1.0
        y = y.view(y.size(0), y.size(1), -1).permute(0, 2, 1)
        y = (y @ y.transpose(1, 2)).softmax(-1) @ y
        return {"logits": self.fc(y.mean(1)), "features": x.flatten(1)}


def test_what_has_no_rule_runs_whole(both, images):
    torch.manual_seed(0)

    def loss(output, y):
        return F.cross_entropy(output["logits"], y) + 0.01 * output["features"].pow(2).mean()

    assert both(Odd(), images([4, 3]), loss=loss) == []


class Coarse(nn.Module):
    """A loop over values keeps ``inner`` whole; it holds weights, statistics and dropout."""

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x):
            if x.sum() > 1e9:
                return x
            return checkpoint(lambda v: F.relu(self.bn(self.conv(v))), x, use_reentrant=False)

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.fc = nn.Conv2d(3, 4, 3), self.Inner(), nn.Linear(4 * 36, 5)

    def forward(self, x):
        return self.fc(self.inner(self.stem(x)).flatten(1))


def test_a_module_that_stays_whole(both, images):
    torch.manual_seed(0)
    assert both(Coarse(), images([4, 3]), channels_last=False) == []


def test_a_loss_with_weights_of_its_own(plain, tasks, images, small_net, differing):
    def parts():
        net, loss = small_net(), nn.Module()
        loss.scale = nn.Parameter(torch.ones(()))
        loss.forward = lambda output, y: F.cross_entropy(output * loss.scale, y)
        return net, loss, torch.optim.SGD([*net.parameters(), *loss.parameters()], lr=0.1, momentum=0.9)

    for clip in (None, 0.1):
        net, loss, mine = parts()
        other, other_loss, theirs = parts()
        plain(other, theirs, images([5, 5]), loss=other_loss, clip=clip)
        tasks(net, mine, images([5, 5]), loss=loss, clip=clip)
        assert differing(net, mine, other, theirs) == []
        assert torch.equal(loss.scale, other_loss.scale) and loss.scale != 1


def test_a_penalty_on_weights_in_the_loss(plain, tasks, images, small_net, differing):
    def parts():
        net = small_net()

        def loss(output, y):
            return F.cross_entropy(output, y) + 0.1 * net.fc.weight.pow(2).sum() + 0.1 * net.conv.bias.abs().sum()

        return net, torch.optim.SGD(net.parameters(), lr=0.1), loss

    (net, mine, loss), (other, theirs, other_loss) = parts(), parts()
    plain(other, theirs, images([5, 5]), loss=other_loss)
    tasks(net, mine, images([5, 5]), loss=loss)
    assert differing(net, mine, other, theirs) == []


def test_bfloat16_equals_autocast(images, small_net, tasks, differing):
    net = small_net()
    other = copy.deepcopy(net)
    mine, theirs = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (net, other))
    data = images([6, 6])
    tasks(net, mine, data, precision="bfloat16")
    with Sequential().bind(
        other, nn.CrossEntropyLoss(), theirs, settings=Settings(precision="bfloat16", threads=1)
    ) as step:
        for x, y in data:
            step(x, y)
    assert differing(net, mine, other, theirs) == []
