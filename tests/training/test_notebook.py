"""What a notebook does: values show themselves, a cell is interrupted, and run again."""

import signal
import threading
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from convoy import Hybrid, Pipelined, Sequential, Speculative, Trainer
from convoy.training.history import EpochRecord, History

STRATEGIES = {
    "sequential": Sequential(),
    "tasks": Sequential(inner="tasks"),
    "pipelined": Pipelined(cuts=("3",)),
    "hybrid": Hybrid(Pipelined(cuts=("3",)), Sequential(), switch=2),
    "speculative": Speculative(),
}


def shown(value):
    """What a notebook shows; it must be whole HTML."""
    return ElementTree.fromstring(value._repr_html_())


def history(*epochs, **more):
    return History([EpochRecord(epoch=i, train_loss=1 / i, **values) for i, values in enumerate(epochs, 1)], **more)


def test_a_history_shows_its_table_and_accuracy():
    root = shown(history({"validation_accuracy": 0.5}, {"validation_accuracy": 0.75}, best_epoch=2))
    assert [cell.text for cell in root.findall("table/thead/tr/th")][:3] == ["epoch", "loss", "val. accuracy"]
    assert [row[0].text for row in root.findall("table/tbody/tr")] == ["1", "2*"]
    svg = next(element for element in root.iter() if element.tag.endswith("svg"))
    assert svg[0].text == "Accuracy" and "validation from 50% to 75%" in svg[1].text


def test_a_history_without_accuracy_shows_its_loss():
    root = shown(history({}, {}))
    svg = next(element for element in root.iter() if element.tag.endswith("svg"))
    assert svg[0].text == "Loss" and "training from 1 to 0.5" in svg[1].text
    assert shown(History()).text == "no epoch yet"


def test_the_table_as_text_is_what_it_was():
    assert history({"seconds": 2.0}, {"seconds": 10.0}).table().splitlines()[1].split() == [
        "1",
        "1.0000",
        "0",
        "0",
        "2.0",
    ]


def build(loss):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, 3)]
    model = nn.Sequential(*layers)
    x = torch.randn(48, 1, 8, 8)
    y = (x.mean((1, 2, 3)) * 20).round().long().remainder(3)
    batches = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 48, 8)]
    return model, torch.optim.SGD(model.parameters(), lr=0.05), batches


class Interrupted:
    """A loss function during whose call the stop button is pressed, once."""

    def __init__(self, at):
        self.calls, self.at = 0, at

    def __call__(self, output, target):
        self.calls += 1
        if self.calls == self.at:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return nn.functional.cross_entropy(output, target)


@pytest.mark.filterwarnings("ignore:.*it will never speculate")
@pytest.mark.parametrize("name", STRATEGIES)
def test_interrupt_and_run_again_leaves_no_threads(name):
    before = set(threading.enumerate())
    loss = Interrupted(9)  # in the second of three epochs
    model, optimizer, batches = build(loss)
    trainer = Trainer(model, loss, optimizer, strategy=STRATEGIES[name])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(batches, batches[:2], epochs=3)
    assert set(threading.enumerate()) == before
    assert len(trainer.history) < 3
    found = trainer.fit(batches, batches[:2], epochs=3)
    assert [record.epoch for record in found.epochs] == [1, 2, 3]
    assert all(record.samples == 48 for record in found.epochs)
    assert set(threading.enumerate()) == before
    shown(found)
    trainer.fit(batches, batches[:2], epochs=1)
    assert len(trainer.history) == 4
    assert set(threading.enumerate()) == before


def test_plans_show_themselves_while_a_loop_of_ones_own_runs():
    model, optimizer, batches = build(None)
    for strategy in (Sequential(), Pipelined(cuts=("3",)), STRATEGIES["hybrid"]):
        with strategy.bind(model, nn.functional.cross_entropy, optimizer) as step:
            step.begin_epoch(0, 3, len(batches))
            step(*batches[0])
            step.drain()
            plan = step.plan()
        assert plan.to_dict()["strategy"] in "".join(shown(plan).itertext())
