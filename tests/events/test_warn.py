import warnings

import pytest

from convoy.errors import ConvoyWarning
from convoy.events.event import Event
from convoy.events.warn import issue, tell

WARNING = Event("warning", "correction", data={"message": "mind the step"})


def test_a_warning_that_nobody_listens_to_is_one_of_pythons_at_the_callers_line():
    with pytest.warns(ConvoyWarning, match="^mind the step$") as caught:
        tell(None, WARNING)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UserWarning, match="slow node") as caught:
        issue(Event("warning", "slow node"))
    assert [warning.filename for warning in caught] == [__file__]


def test_who_listens_gets_the_event_and_there_is_no_second_warning():
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tell(seen.append, WARNING)
        tell(None, Event("decision", "drain"))
        issue(Event("epoch", "epoch 1"))
    assert seen == [WARNING]
