import pytest

from convoy import Hybrid, Pipelined, Sequential
from convoy.comparison.spec import labelled, parse, split_spec
from convoy.errors import OptionError


@pytest.mark.parametrize(
    ("text", "strategy"),
    [
        ("sequential", Sequential()),
        ("sequential:inner=tasks", Sequential(inner="tasks")),
        ("pipelined:stages=3,clock=1f1b,slack=1", Pipelined(stages=3, clock="1f1b", slack=1)),
        ("pipelined:ppv=3,5,clock=1f1b", Pipelined(ppv=(3, 5), clock="1f1b")),
        ("pipelined:ppv=3", Pipelined(ppv=(3,))),
        ("pipelined:cuts=2", Pipelined(cuts=("2",))),
        ("hybrid:cuts=2,3,switch=5", Hybrid(Pipelined(cuts=("2", "3")), Sequential(), 5)),
        ("pipelined: cuts=conv2 , fc1", Pipelined(cuts=("conv2", "fc1"))),
        ("hybrid:stages=2,switch=0.5", Hybrid(Pipelined(stages=2), Sequential(), 0.5)),
    ],
)
def test_a_text_is_a_strategy(text, strategy):
    assert parse(text) == strategy


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("pipelned", "strategy 'pipelned' is unknown"),
        ("pipelined:stges=2", "has no field 'stges'"),
        ("pipelined:2", "has '2' where a field should be"),
        ("pipelined:stages=2,stages=3", "names 'stages' twice"),
        ("pipelined:=2", "without a name"),
        ("pipelined:stages=0", "stages is 0"),
    ],
)
def test_what_is_no_strategy_is_refused(text, complaint):
    with pytest.raises(OptionError, match=complaint):
        parse(text)


def test_fields_may_be_written_with_dashes():
    assert split_spec("pipelined:max-staleness=2") == ("pipelined", {"max_staleness": "2"})


def test_labels():
    two = Pipelined(stages=2)
    assert labelled(["sequential", two, Pipelined(stages=3)]) == {
        "sequential": Sequential(), "pipelined": two, "pipelined 2": Pipelined(stages=3),
    }  # fmt: skip
    assert labelled({"mine": two, "other": "sequential"}) == {"mine": two, "other": Sequential()}
    with pytest.raises(OptionError, match="named twice"):
        labelled(["sequential", "sequential"])
    for wrong in ("sequential", []):
        with pytest.raises(OptionError, match="must be a list"):
            labelled(wrong)
