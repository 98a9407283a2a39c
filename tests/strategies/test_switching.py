from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.errors import OptionError
from convoy.strategies.switching import Switching, SwitchRule


def switches_at(rule, lengths, *, known=True, validations=None):
    """The mini-batch before which ``rule`` switches in epochs of these ``lengths``; None where it does not."""
    switching, batch = Switching(SwitchRule.parse(rule)), 0
    for epoch, length in enumerate(lengths):
        switching.begin_epoch(batch, epoch, len(lengths), length if known else None)
        for _ in range(length):
            if switching.due(batch):
                return batch
            batch += 1
        accuracy = None if validations is None else validations[epoch]
        switching.end_epoch(accuracy, None)
    return None


@pytest.mark.parametrize(
    ("rule", "expected"),
    [(1, 10), (3, 30), (0.5, 20), (0.3, 12), (0.01, 1), (0.999, 39), (0.25, 10), ("batch:17", 17), ("batch:40", None)],
)
def test_where_it_falls_in_four_epochs_of_ten(rule, expected):
    assert switches_at(rule, [10] * 4) == expected


def test_a_share_is_what_was_written():
    # 0.07 * 100 is 7.000000000000001 in floats.
    assert SwitchRule.parse(0.07).number == Fraction(7, 100)
    assert switches_at(0.07, [10] * 10) == 7


def test_a_share_waits_for_an_epochs_beginning_where_the_length_is_not_known():
    assert switches_at(0.3, [10] * 4, known=False) == 20
    switching = Switching(SwitchRule.parse(0.9))
    assert switching.begin_epoch(0, 0, 2, None) is None
    assert "will not come" in switching.begin_epoch(10, 1, 2, None)


def test_after_more_epochs_than_there_are():
    assert "10 epochs" in Switching(SwitchRule.parse(10)).begin_epoch(0, 0, 10, 5)
    assert Switching(SwitchRule.parse(9)).begin_epoch(0, 0, 10, 5) is None


def warned(rule, epochs, batches, *, batch=0, epoch=0):
    return Switching(SwitchRule.parse(rule)).begin_epoch(batch, epoch, epochs, batches)


def test_before_a_mini_batch_that_there_is_not():
    assert "12 mini-batches" in warned("batch:1000", 2, 6) and "will not come" in warned("batch:12", 2, 6)
    assert warned("batch:11", 2, 6) is None
    assert warned("batch:1000", 2, None) is None  # the loader does not know its length
    resumed = Switching(SwitchRule.parse("batch:12"))
    resumed.restore({"epoch": 1, "first": 6, "best": None, "waited": 0})
    assert "12 mini-batches" in resumed.begin_epoch(9, 1, 2, 6)
    assert resumed.begin_epoch(12, 2, 2, 6) is None  # said once


@given(st.integers(1, 6), st.integers(1, 9))
def test_a_stall_that_cannot_come_is_said_before(number, epochs):
    never_better = [1.0 - epoch / 10 for epoch in range(epochs)]
    comes = switches_at(f"stall:{number}", [2] * epochs, validations=never_better) is not None
    assert (warned(f"stall:{number}", epochs, 2) is None) == comes


def test_a_resumed_run_may_have_waited_already():
    def resumed(waited):
        switching = Switching(SwitchRule.parse("stall:3"))
        switching.restore({"epoch": 4, "first": 8, "best": 0.5, "waited": waited})
        return switching.begin_epoch(10, 5, 8, 2)

    assert "needs 9 at least" in resumed(0)
    assert resumed(1) is None and resumed(3) is None


def sentence(rule, accuracies):
    """What the end of the last epoch says."""
    switching, said = Switching(SwitchRule.parse(rule)), None
    for epoch, accuracy in enumerate(accuracies):
        assert said is None
        switching.begin_epoch(epoch, epoch, len(accuracies), 1)
        said = switching.end_epoch(accuracy, None)
    return said


def test_a_stall_that_never_came_is_said_at_the_end():
    assert "has not improved for 1 epoch, and the switch waits for 2" in sentence("stall:2", [0.1, 0.2, 0.3, 0.3])
    assert "only with the last epoch" in sentence("stall:2", [0.1, 0.2, 0.2, 0.2])
    assert sentence("stall:2", [0.1, 0.1]) is None  # said before
    assert sentence(9, [0.1, 0.1]) is None


@given(st.integers(1, 999).map(lambda n: n / 1000), st.integers(1, 12), st.integers(2, 30))
def test_both_sides_of_a_share_get_a_mini_batch(share, epochs, batches):
    at = switches_at(share, [batches] * epochs)
    total = epochs * batches
    assert 1 <= at < total
    assert abs(at - share * total) < 1 or at in (1, total - 1)


@pytest.mark.parametrize(
    ("rule", "accuracies", "expected"),
    [
        ("stall:1", [0.1, 0.2, 0.2, 0.3], 6),
        ("stall:2", [0.5, 0.4, 0.6, 0.6, 0.5, 0.9], 10),
        ("stall", [0.5, 0.5, 0.5, 0.5, 0.9], 8),
        ("stall:2", [0.1, 0.2, 0.3, 0.4], None),
        ("stall:2", [float("nan"), 0.2, 0.2, 0.2, 0.2], 8),
    ],
)
def test_a_stall_is_so_many_epochs_without_a_better_one(rule, accuracies, expected):
    assert switches_at(rule, [2] * len(accuracies), validations=accuracies) == expected


def test_a_stall_looks_at_the_loss_where_there_is_no_accuracy():
    switching = Switching(SwitchRule.parse("stall:1"))
    for epoch, loss in enumerate([2.0, 1.0, 1.5]):
        switching.begin_epoch(epoch, epoch, 9, 1)
        assert switching.at is None
        switching.end_epoch(None, loss)
    switching.begin_epoch(3, 3, 9, 1)
    assert switching.at == 3 and switching.rule.cause == "data"


def test_a_stall_without_validation_is_refused():
    with pytest.raises(OptionError, match="without one"):
        switches_at("stall", [2, 2])


@given(st.sampled_from([1, 2, 0.3, 0.62, "stall:1", "batch:7"]), st.integers(0, 14))
def test_a_restored_one_goes_on_as_if_nothing_had_been(rule, broken_at):
    accuracies = [0.5, 0.4, 0.3, 0.2]
    whole = switches_at(rule, [4] * 4, validations=accuracies)
    switching, batch, found = Switching(SwitchRule.parse(rule)), 0, None
    for epoch, accuracy in enumerate(accuracies):
        switching.begin_epoch(batch, epoch, 4, 4)
        for _ in range(4):
            if found is None and switching.due(batch):
                found = batch
            if batch == broken_at:
                state = switching.state()
                switching = Switching(SwitchRule.parse(rule))
                switching.restore(state)
                switching.begin_epoch(batch, epoch, 4, 4)
            batch += 1
        switching.end_epoch(accuracy, None)
    assert found == whole


@pytest.mark.parametrize(
    "rule",
    [0, -1, 1.0, 0.0, -0.5, 1.5, float("nan"), True, None, "", "stall:", "stall:0", "stall:x", "batch", "batch:0", "5"],
)
def test_what_is_no_rule_is_refused_with_examples(rule):
    with pytest.raises(OptionError, match="switch is") as error:
        SwitchRule.parse(rule)
    assert error.value.hint
