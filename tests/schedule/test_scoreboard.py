import pytest

from convoy.errors import InternalError
from convoy.schedule.action import Action
from convoy.schedule.scoreboard import Scoreboard


def action(text: str) -> Action:
    return Action.parse(text)


READ_0 = action("F 1 0.0 : W@0 => x@0")
READ_X = action("F 2 0.0 : x@0 => y@0")
WRITE_1 = action("U 1 0.0 : W@0 => W@1")
READ_1 = action("F 1 1.0 : W@1 => x@1")


def test_a_value_is_there_after_its_writer() -> None:
    board = Scoreboard()
    for a in (READ_0, READ_X):
        board.admit(a)
    assert board.blocker(READ_X) == READ_X.reads[0]
    board.finish(READ_0)
    assert board.blocker(READ_X) is None


def test_a_writer_waits_for_the_readers_of_the_version_before() -> None:
    board = Scoreboard()
    for a in (READ_0, WRITE_1):
        board.admit(a)
    assert board.blocker(WRITE_1) == READ_0.reads[0]
    board.finish(READ_0)
    assert board.blocker(WRITE_1) is None, "its own read does not count"


def test_a_reader_waits_for_its_version() -> None:
    board = Scoreboard()
    for a in (WRITE_1, READ_1):
        board.admit(a)
    assert board.blocker(READ_1) == READ_1.reads[0]
    board.finish(WRITE_1)
    assert board.blocker(READ_1) is None


def test_versions_are_written_in_order() -> None:
    board = Scoreboard()
    second = action("U 1 1.0 : => W@2")
    for a in (WRITE_1, second):
        board.admit(a)
    assert board.blocker(second) is not None
    board.finish(WRITE_1)
    assert board.blocker(second) is None


def test_a_value_goes_with_its_last_reader() -> None:
    board = Scoreboard()
    twice = action("F 3 0.0 : x@0 =>")
    for a in (READ_0, READ_X, twice):
        board.admit(a)
    board.finish(READ_0)
    board.finish(READ_X)
    assert board.blocker(twice) is None
    board.finish(twice)
    assert board.blocker(action("F 4 0.0 : x@0 =>")) is not None


@pytest.mark.parametrize("text", ["F 1 0.0 : W@1 =>", "U 1 0.0 : => W@2"])
def test_out_of_program_order_is_our_bug(text: str) -> None:
    with pytest.raises(InternalError):
        Scoreboard().admit(action(text))


def test_a_resumed_state_begins_at_its_version() -> None:
    board = Scoreboard()
    board.start_at("W", 1)
    board.admit(READ_1)
    assert board.blocker(READ_1) is None
