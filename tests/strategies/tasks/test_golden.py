"""The schedule of a small net, as text: the whole chain from a network to named reads and writes."""

import torch
from torch import nn

from convoy.schedule.schedule import Schedule
from convoy.schedule.walk import topological
from convoy.strategies.base import Settings
from convoy.strategies.tasks.step import TaskStep

UNTILED = """
driver | E 0 0.0 :  => y.input_1@0 t@0
pool | F conv 0.0 : Wconv@0 y.input_1@0 => y.conv@0 s.conv@0
pool | F bn 0.0 : Wbn@0 Rbn@0 y.conv@0 => Rbn@1 y.bn@0 s.bn@0
pool | F relu 0.0 : y.bn@0 => y.relu@0 s.relu@0
pool | F flat 0.0 : y.relu@0 => y.flat@0 s.flat@0
pool | F fc 0.0 : Wfc@0 y.flat@0 => y.fc@0 s.fc@0
pool | L loss 0.0 : y.fc@0 t@0 => d.fc@0
pool | I fc 0.0 : Wfc@0 s.fc@0 d.fc@0 => d.flat@0
pool | G fc 0.0 : s.fc@0 d.fc@0 => w.fc@0
pool | U fc 0.0 : Wfc@0 w.fc@0 => Wfc@1
pool | I flat 0.0 : s.flat@0 d.flat@0 => d.relu@0
pool | I relu 0.0 : s.relu@0 d.relu@0 => d.bn@0
pool | I bn 0.0 : Wbn@0 s.bn@0 d.bn@0 => d.conv@0
pool | G bn 0.0 : s.bn@0 d.bn@0 => w.bn@0
pool | U bn 0.0 : Wbn@0 w.bn@0 => Wbn@1
pool | G conv 0.0 : s.conv@0 d.conv@0 => w.conv@0
pool | U conv 0.0 : Wconv@0 w.conv@0 => Wconv@1
"""


def scheduled(net, batches, **settings):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    step = TaskStep(
        net, nn.CrossEntropyLoss(), optimizer, Settings(**{"threads": 1, **settings}), None, keep_schedule=True
    )
    with step:
        for x, y in batches:
            step(x, y)
    return step.schedule


def test_convolution_batch_norm_relu_linear(small_net, images):
    schedule = scheduled(small_net(), images([4, 3]))
    text = schedule.text().splitlines()
    assert text[:17] == UNTILED.strip().splitlines()
    assert Schedule.parse(schedule.text()).entries == schedule.entries


def test_the_second_mini_batch_reads_what_the_first_one_wrote(small_net, images):
    second = scheduled(small_net(), images([4, 3])).text().splitlines()[17:]
    moved = UNTILED.strip().replace("0.0 :", "1.0 :").replace("@1", "@2").replace("@0", "@1")
    assert second == moved.splitlines()


def test_the_gradient_of_a_frozen_beginning_is_not_computed(small_net, images):
    net = small_net()
    net.conv.requires_grad_(False)
    net.bn.requires_grad_(False)
    kinds = [f"{a.kind}{a.subject}" for _, a in scheduled(net, images([4]))]
    assert kinds == ["E0", "Fconv", "Fbn", "Frelu", "Fflat", "Ffc", "Lloss", "Gfc", "Ufc"]


def test_with_clipping_all_weights_are_updated_at_the_end(small_net, images):
    last = [a for _, a in scheduled(small_net(), images([4]), clip=1.0)][-1]
    assert str(last) == "U all 0.0 : Wfc@0 Wbn@0 Wconv@0 w.fc@0 w.bn@0 w.conv@0 => Wfc@1 Wbn@1 Wconv@1"


def test_every_order_that_the_reads_allow_is_possible(small_net, images):
    assert len(topological(scheduled(small_net(), images([4, 3])))) == 34
