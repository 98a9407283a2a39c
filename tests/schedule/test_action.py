import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.errors import InputError
from convoy.schedule.action import Action, Ref
from convoy.schedule.schedule import Schedule

names = st.from_regex(r"[A-Za-z][A-Za-z0-9_.>]{0,8}", fullmatch=True)
refs = st.lists(st.builds(Ref, names, st.integers(0, 10**6)), max_size=4).map(tuple)
actions = st.builds(Action, st.sampled_from("FBUE"), names, st.integers(0, 999), st.integers(0, 9), refs, refs)
lanes = st.sampled_from(["worker 1", "worker 2f", "driver"])


@given(actions)
def test_the_text_form_parses_back(action: Action) -> None:
    assert Action.parse(str(action)) == action


@given(st.lists(st.tuples(lanes, actions), max_size=6))
def test_a_schedule_parses_back(entries: list[tuple[str, Action]]) -> None:
    assert Schedule.parse(Schedule(entries).text()).entries == entries


def test_the_text_form_is_the_documented_one() -> None:
    text = "F 1 2.0 : W1@0 i1@2 => s1@2 x1>2@2"
    action = Action.parse(text)
    assert str(action) == text
    assert action.reads == (Ref("W1", 0), Ref("i1", 2))
    assert action.writes[1] == Ref("x1>2", 2)
    assert action.label == "F1.2"
    assert Action("F", "1", 2, 3).label == "F1.2/3"


def test_state_is_told_by_its_capital() -> None:
    assert Ref("W1", 3).is_state
    assert not Ref("x1>2", 3).is_state


@pytest.mark.parametrize("text", ["", "F 1 2", "F 1 2.0 W1@0", "F 1 2.0 : W1 => ", "F 1 2.0 : W1@x =>"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        Action.parse(text)


def test_a_line_without_lane_is_named() -> None:
    with pytest.raises(InputError, match="line 2"):
        Schedule.parse("worker 1 | F 1 0.0 :  =>\nF 1 1.0 :  =>")


def test_lanes_come_in_natural_order() -> None:
    work = Action("F", "1", 0)
    entries = [(lane, work) for lane in ("worker 10", "worker 2f", "driver", "worker 2b", "worker 1")]
    assert Schedule(entries).lanes == ("driver", "worker 1", "worker 2f", "worker 2b", "worker 10")
