from convoy.events.event import Event
from convoy.events.fan_out import fan_out


def test_every_sink_gets_every_event_in_order():
    seen = []
    sink = fan_out([lambda e: seen.append(("a", e.name)), lambda e: seen.append(("b", e.name))])
    sink(Event("run", "begin"))
    sink(Event("run", "end"))
    assert seen == [("a", "begin"), ("b", "begin"), ("a", "end"), ("b", "end")]


def test_one_sink_is_passed_on_and_none_is_fine():
    def alone(event):
        raise AssertionError

    assert fan_out([alone]) is alone
    fan_out([])(Event("run", "begin"))
