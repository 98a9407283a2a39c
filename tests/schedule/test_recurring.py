"""Compiled schedules allow what the scoreboard allows, no more and no less; ranks are longest ways."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.errors import InternalError
from convoy.schedule.action import Action, Ref
from convoy.schedule.recurring import Recurring, predecessors, upward_ranks
from convoy.schedule.schedule import Schedule
from convoy.schedule.scoreboard import Scoreboard

STEP = Schedule.parse(
    """
    driver | E 0 0.0 : => x@0
    pool   | F 1 0.0 : W1@0 x@0 => y@0 s@0
    pool   | I 1 0.0 : W1@0 s@0 y@0 => d@0
    pool   | G 1 0.0 : s@0 y@0 => g@0
    pool   | U 1 0.0 : W1@0 g@0 => W1@1
    pool   | N 1 0.0 : d@0 R@0 => R@1
    pool   | N 2 0.0 : R@1 => R@2
    """
)


def test_the_three_hazards():
    assert predecessors([a for _, a in STEP]) == [(), (0,), (1,), (1,), (1, 2, 3), (2,), (5,)]


@st.composite
def programs(draw):
    """Random actions over two states and a few values, in program order."""
    versions = {"A": 0, "B": 0}
    values, actions = [], []
    for place in range(draw(st.integers(1, 8))):
        reads = [Ref(n, v) for n, v in versions.items() if draw(st.booleans())]
        reads += [v for v in values if draw(st.booleans())]
        writes = [Ref(f"v{place}", 0)]
        for name in versions:
            if draw(st.booleans()):
                versions[name] += 1
                writes.append(Ref(name, versions[name]))
        values.append(writes[0])
        actions.append(Action("K", str(place), 0, 0, tuple(reads), tuple(writes)))
    return actions


@given(programs(), st.randoms(use_true_random=False))
def test_compiled_and_scoreboard_let_the_same_actions_go_at_any_moment(actions, random):
    board, before = Scoreboard(), predecessors(actions)
    for action in actions:
        board.admit(action)
    done = set()
    while len(done) < len(actions):
        left = [i for i in range(len(actions)) if i not in done]
        free = [i for i in left if board.blocker(actions[i]) is None]
        assert free == [i for i in left if done.issuperset(before[i])]
        chosen = random.choice(free)
        board.finish(actions[chosen])
        done.add(chosen)


def test_later_occurrences_have_later_numbers():
    recurring = Recurring(STEP)
    assert recurring.advances == {"W1": 1, "R": 2}
    later = recurring.at(3, {"W1": 3, "R": 6})
    assert [str(a) for _, a in later][4:] == [
        "U 1 3.0 : W1@3 g@3 => W1@4",
        "N 1 3.0 : d@3 R@6 => R@7",
        "N 2 3.0 : R@7 => R@8",
    ]
    assert later.recurring is recurring and recurring.at(0, {}) == list(STEP)


def test_upward_ranks():
    assert upward_ranks([1, 2, 4, 1], [(1, 2), (3,), (3,), ()]) == [6, 3, 5, 1]


def test_ranks_follow_the_least_seconds_seen():
    recurring = Recurring(STEP, [0, 1, 1, 1, 1, 1, 1])
    assert recurring.ranks == [4, 4, 3, 2, 1, 2, 1]
    for seconds in (5.0, 3.0, 7.0):
        recurring.observe(3, seconds)
    recurring.rank()
    assert recurring.ranks == [5, 5, 3, 4, 1, 2, 1]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("pool | F 1 0.0 : x@0 =>", "F1.0 reads x@0, which nothing before it writes"),
        ("pool | F 1 0.0 : W@1 =>", "F1.0 reads W@1, but program order has 0"),
        ("pool | U 1 0.0 : => W@2", "U1.0 writes W@2 after version 0"),
    ],
)
def test_what_no_order_allows(text, match):
    with pytest.raises(InternalError, match=match):
        Recurring(Schedule.parse(text))
