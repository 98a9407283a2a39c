import random
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convoy.comparison.runner import seeded
from convoy.comparison.turns import Paused, order


@given(st.lists(st.integers(), unique=True, min_size=1, max_size=6), st.integers(0, 50))
def test_over_as_many_rounds_each_has_had_every_place_once(items, begin):
    rounds = [order(items, begin + turn) for turn in range(len(items))]
    assert all(sorted(one) == sorted(items) for one in rounds)
    for place in range(len(items)):
        assert sorted(one[place] for one in rounds) == sorted(items)


def test_nothing_has_no_order():
    assert order([], 3) == []


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_only_one_works_at_a_time_and_only_in_its_turn(lengths, chance):
    log, inside = [], []

    def work(name, count):
        def run(paused):
            for number in range(count):
                inside.append(name)
                assert inside == [name]
                log.append((name, number))
                inside.remove(name)
                paused.pause()

        return run

    all_of = {i: Paused(str(i), work(i, count), seeded(0)) for i, count in enumerate(lengths)}
    expected, done = [], dict.fromkeys(all_of, 0)
    try:
        while all_of:
            name = chance.choice(sorted(all_of))
            more = all_of[name].turn()
            if done[name] < lengths[name]:
                expected.append((name, done[name]))
                done[name] += 1
                assert more
            else:  # the last turn only runs to the end
                assert not more and all_of[name].over
                del all_of[name]
            assert log == expected
    finally:  # hypothesis may end an example in the middle
        for left in all_of.values():
            left.stop()
    assert done == dict(enumerate(lengths))


@given(st.lists(st.integers(0, 2), max_size=12))
def test_random_numbers_are_those_of_the_work_alone(turns):
    drawn = {0: [], 1: [], 2: []}

    def work(name):
        def run(paused):
            while True:
                drawn[name].append((torch.rand(()).item(), random.random()))
                if not paused.pause():
                    return

        return run

    torch.manual_seed(99)
    before = torch.get_rng_state()
    several = [Paused(str(name), work(name), seeded(name)) for name in drawn]
    for name in turns:
        several[name].turn()
    assert torch.equal(torch.get_rng_state(), before), "the caller's generators are left alone"
    for paused in several:
        paused.stop()
    for name, values in drawn.items():
        random.seed(name)
        torch.manual_seed(name)
        assert values == [(torch.rand(()).item(), random.random()) for _ in values]


def test_what_the_work_raises_is_kept_and_ends_it():
    def work(paused):
        paused.pause()
        raise ValueError("broken")

    paused = Paused("p", work, seeded(0))
    assert paused.turn()
    assert not paused.turn()
    assert isinstance(paused.error, ValueError) and paused.over
    assert not paused.turn(), "a turn of what is over does nothing"


def test_stopping_lets_it_end_by_itself():
    seen = []

    def work(paused):
        while paused.pause():
            seen.append("on")
        seen.append("tidied up")

    paused = Paused("mine", work, seeded(0))
    paused.turn()
    paused.turn()
    paused.stop()
    assert seen == ["on", "tidied up"]
    never = Paused("p", work, seeded(0))
    never.stop()
    assert never.over and seen == ["on", "tidied up"]
    assert "convoy compare mine" not in {thread.name for thread in threading.enumerate()}


def test_work_in_a_long_turn_is_hurried_when_someone_wants_it_to_stop():
    hurried = threading.Event()

    def work(paused):
        paused.hurry = hurried.set
        assert hurried.wait(60)
        assert not paused.pause()

    paused = Paused("p", work, seeded(0))
    assert paused.turn(lambda: True)
    paused.stop()
    assert paused.error is None


def test_an_interrupt_while_waiting_leaves_no_work_behind():
    hurried = threading.Event()

    def work(paused):
        paused.hurry = hurried.set
        assert hurried.wait(60)

    def interrupt():
        raise KeyboardInterrupt

    paused = Paused("p", work, seeded(0))
    with pytest.raises(KeyboardInterrupt):
        paused.turn(interrupt)
    assert paused.over and paused.error is None
