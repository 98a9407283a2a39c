from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from convoy.errors import DataError
from convoy.strategies.base import Settings
from convoy.training.evaluation import count_correct, evaluate

SCORES = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
LABELS = torch.tensor([1, 1, 1])


@pytest.mark.parametrize(
    "output",
    [
        SCORES,
        {"logits": SCORES},
        SimpleNamespace(logits=SCORES),
        (SCORES, "more"),
        [SCORES],
        namedtuple("Out", "scores aux")(SCORES, None),
    ],
    ids=lambda o: type(o).__name__,
)
def test_scores_are_found_in_what_models_return(output):
    assert count_correct(output, LABELS) == 2


@pytest.mark.parametrize("target", [LABELS.int(), LABELS.to(torch.uint8), {"labels": LABELS}, {"x": 1, "y": LABELS}])
def test_labels_are_found(target):
    assert count_correct(SCORES, target) == 2


@pytest.mark.parametrize(
    ("output", "target"),
    [
        (SCORES, torch.rand(3)),
        (SCORES, torch.rand(3, 2)),
        (SCORES[0], LABELS),
        (SCORES, LABELS[:2]),
        (SCORES, LABELS.bool()),
        (SCORES.reshape(3, 2, 1), LABELS),
        ({"other": SCORES}, LABELS),
        ((), LABELS),
        (SCORES, {"x": LABELS}),
    ],
)
def test_where_accuracy_makes_no_sense(output, target):
    assert count_correct(output, target) is None


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(2, 3)

    def forward(self, x):
        return self.fc(self.drop(self.norm(x)).mean((2, 3)))


def test_loss_and_accuracy_are_means_per_sample_in_eval_mode_and_flags_come_back():
    torch.manual_seed(0)
    model = Net().train()
    model.norm.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x, y = torch.randn(7, 2, 4, 4), torch.randint(0, 3, (7,))
    seen = []

    def loss(output, target):
        seen.append((torch.get_num_threads(), torch.is_grad_enabled()))
        return nn.functional.cross_entropy(output, target)

    threads = torch.get_num_threads()
    result = evaluate(model, loss, [(x[:4], y[:4]), (x[4:], y[4:])], Settings(), threads + 1)
    assert seen == [(threads + 1, False)] * 2 and torch.get_num_threads() == threads
    assert [model.training, model.norm.training, model.drop.training] == [True, False, True]
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    model.eval()
    with torch.no_grad():
        output = model(x)
    assert result.loss == pytest.approx(nn.functional.cross_entropy(output, y).item(), rel=1e-6)
    assert result.accuracy == (output.argmax(1) == y).sum().item() / 7 and result.samples == 7


def test_bfloat16_is_used_where_asked_for():
    types = []

    def loss(output, target):
        types.append(output.dtype)
        return output.float().mean()

    evaluate(Net(), loss, [(torch.randn(2, 2, 4, 4), torch.rand(2))], Settings(precision="bfloat16"), 1)
    assert types == [torch.bfloat16]


def test_flags_come_back_after_a_failure():
    model = Net().train()
    with pytest.raises(DataError):
        evaluate(model, nn.functional.cross_entropy, [(1, 2, 3)], Settings(), 1)
    assert model.training and model.drop.training
