"""Warm-up, probes and hysteresis, by scenario."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.errors import OptionError
from convoy.strategies.speculative.controller import Controller, Rule


def modes(controller: Controller, batches: int, agreements: list[float]) -> str:
    """First letters of the modes; each probe takes the next agreement."""
    pending, said = list(agreements), ""
    for batch in range(batches):
        mode = controller.mode(batch)
        said += mode[0]
        if mode == "probe":
            controller.observe(pending.pop(0), 1.0)
    return said


def test_agreement_switches_on_and_off_with_hysteresis() -> None:
    rule = Rule.parse("auto:0.7,0.5,4")
    #   on, probed after 2, then 4; stays on: (0.8 + 0.5) / 2; off: 0.0; stays off: (0.325 + 1) / 2
    assert modes(Controller(rule, 3), 17, [0.8, 0.5, 0.0, 1.0]) == "eeepspssspeeepeee"


def test_probes_get_rarer_while_they_agree() -> None:
    said = modes(Controller(Rule.parse("auto:0.7,0.5,16"), 1), 64, [0.9] * 9)
    assert [i for i, mode in enumerate(said) if mode == "p"] == [1, 3, 7, 15, 31, 47, 63]


def test_one_probe_that_disagrees_ends_it_whatever_went_before() -> None:
    controller = Controller(Rule.parse("auto:0.7,0.5,2"), 1)
    for _ in range(8):
        controller.observe(1.0, 1.0)
    assert controller.observe(0.45, 1.0) and not controller.on and controller.agreement == pytest.approx(0.725)


def test_speculation_that_accepts_too_little_is_switched_off() -> None:
    controller = Controller(Rule.parse("auto:0.7,0.5,2"), 1)
    assert not controller.observe(1.0, 0.2)
    assert controller.observe(1.0, 0.4) and controller.on  # (0.2 + 0.4) / 2
    assert not controller.observe(1.0, 0.1)
    assert controller.observe(1.0, 0.0) and not controller.on


@pytest.mark.parametrize(
    ("agreement", "accepted", "said"),
    [(0.9, 0.1, "probes accept 10% of the samples, and 30% are needed; give a higher threshold"),
     (0.4, 0.9, "agreement is 0.40, and 0.7 is needed; give a lower threshold"), (0.9, 0.9, None)],
)  # fmt: skip
def test_that_nothing_was_speculated_is_told_once(agreement: float, accepted: float, said: str | None) -> None:
    controller, told = Controller(Rule.parse("auto:0.7,0.5,2"), 1), []
    for number in range(8):
        controller.observe(agreement, accepted)
        told.append(controller.idle())
        if number == 1:  # a resumed run goes on counting
            state, controller = controller.state(), Controller(Rule.parse("auto:0.7,0.5,2"), 1)
            controller.restore(state)
    assert [t is not None for t in told] == [said is not None and n == 3 for n in range(8)]
    assert said is None or said in str(told[3])


def test_always_speculates_and_probes_where_asked() -> None:
    assert modes(Controller(Rule.parse("always"), 2), 6, []) == "eessss"
    assert modes(Controller(Rule.parse("always:3"), 2), 8, [0.0, 0.0]) == "eepsspss"


@given(st.lists(st.floats(-1, 1), min_size=8, max_size=8), st.integers(0, 7))
def test_a_restored_controller_goes_on_alike(agreements: list[float], cut: int) -> None:
    rule = Rule.parse("auto:0.3,0.1,2")
    one, other = Controller(rule, 1), Controller(rule, 1)
    for place, agreement in enumerate(agreements):
        if place == cut:
            other.restore(one.state())
        one.observe(agreement, abs(agreement))
        if place >= cut:
            other.observe(agreement, abs(agreement))
    assert one.state() == other.state() and one.mode(100) == other.mode(100)


@given(st.lists(st.floats(-1, 0.29), min_size=1))
def test_noise_is_never_trained_on(agreements: list[float]) -> None:
    controller = Controller(Rule.parse("auto:0.3,0.1,2"), 1)
    assert not any(controller.observe(a, 1.0) or controller.on for a in agreements)


@pytest.mark.parametrize("text", ["", "never", "auto:1", "auto:0.5,0.7,3", "auto:0.7,0.5,0", "auto:a,b,c", "always:x",
                                  "always:0", "always:", "always:-1"])  # fmt: skip
def test_what_is_no_controller(text: str) -> None:
    with pytest.raises(OptionError, match="controller is"):
        Rule.parse(text)


@pytest.mark.parametrize("text", ["auto:0.7,0.5,1", "always:1"])
def test_probes_only_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"makes every mini-batch a probe.* never speculates"):
        Rule.parse(text)


@pytest.mark.parametrize(
    ("rule", "batches", "said"),
    [
        ("always", 5, "the run has 5 mini-batches, its warm-up 5"),
        ("always", 6, None),
        ("always:2", 6, "the run has 6 mini-batches, 5 of them warm-up and the last one a probe"),
        ("auto", 6, "the last one a probe"),
        ("auto", 7, None),
    ],
)
def test_a_run_is_too_short_exactly_where_no_mini_batch_can_speculate(
    rule: str, batches: int, said: str | None
) -> None:
    controller = Controller(Rule.parse(rule), 5)
    found = controller.too_short(batches)
    assert found is None if said is None else said in str(found)
    reached = set()
    for batch in range(batches):
        reached.add(controller.mode(batch))
        if controller.mode(batch) == "probe":
            controller.observe(1.0, 1.0)
    assert ("speculate" in reached) is (found is None)


def test_what_is_unbiased_and_only_skips_is_always_worth_it() -> None:
    controller = Controller(Rule.parse("auto:0.7,0.5,2"), 1, unbiased=True, skips=True)
    assert controller.observe(0.1, 0.0) and controller.on
    assert not controller.observe(-0.5, 0.0) and controller.on


def test_what_only_skips_still_has_to_agree() -> None:
    controller = Controller(Rule.parse("auto:0.7,0.5,2"), 1, skips=True)
    assert not controller.observe(0.4, 0.0) and not controller.on
    assert controller.observe(1.0, 0.01) and controller.on


def test_a_loss_that_rises_ends_speculation_and_each_time_it_rests_for_longer() -> None:
    controller = Controller(Rule.parse("auto:0.7,0.5,4"), 8)
    began, ended = [], []
    for batch in range(400):
        mode = controller.mode(batch)
        if mode == "probe" and controller.observe(1.0, 1.0):
            began.append(batch)
            assert controller.on
        rises = mode == "speculate" and batch - began[-1] > 2
        if controller.watch(mode, 3.0 if rises else 1.0, 256):
            ended.append(batch)
            assert not controller.on and controller.rests(batch) >= 8 * 2 ** (len(ended) - 1)
    assert len(ended) > 3 and len(began) in (len(ended), len(ended) + 1)
    rested = [begin - end for end, begin in zip(ended, began[1:], strict=False)]
    assert rested == sorted(rested) and rested[-1] > 2 * rested[0]


def test_a_loss_that_falls_wavers_or_is_of_few_samples_ends_nothing() -> None:
    controller = Controller(Rule.parse("auto:0.7,0.5,4"), 0)
    controller.observe(1.0, 1.0)
    assert not any(controller.watch("speculate", 9.0, 100) for _ in range(10))  # nothing was seen before
    assert not any(controller.watch("speculate", 9.0 / (n + 1), 100) for n in range(40))
    chance = Random(0)
    heavy = (chance.expovariate(20.0) if chance.random() < 0.3 else 0.01 for _ in range(3000))
    assert not any(controller.watch("speculate", loss, 16) for loss in heavy) and controller.on
    assert not any(controller.watch("speculate", -1.0, 16) for _ in range(300)) and controller.on


def test_a_loss_that_is_no_number_ends_it_and_is_not_remembered() -> None:
    controller = Controller(Rule.parse("auto:0.7,0.5,4"), 0)
    controller.observe(1.0, 1.0)
    for _ in range(80):
        controller.watch("speculate", 1.0, 16)
    assert controller.watch("speculate", float("nan"), 16) and not controller.on and controller.loss == 1.0


def test_a_controller_that_begins_late_probes_once() -> None:
    controller = Controller(Rule.parse("auto:0.7,0.5,8"), 4)
    said = ""
    for batch in range(1000, 1012):
        mode = controller.mode(batch)
        said += mode[0]
        if mode == "probe":
            controller.observe(0.0, 1.0)
    assert said == "peeeeeeepeee"
