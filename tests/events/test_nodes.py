"""The table of nodes: what is shown, and what is left out."""

from convoy.events.nodes import node_table

ROW = {
    "node": 0,
    "state": "live",
    "samples_per_second": 1234.4,
    "share": 0.625,
    "lag": 2,
    "waited": 0.031,
    "quality": 0.875,
    "pushes": 7,
    "refused": 0,
}


def test_a_line_a_node_and_slow_ones_are_named() -> None:
    text = node_table([ROW, {**ROW, "node": 1, "samples_per_second": None, "share": 0.375, "state": "slow"}])
    assert text.splitlines() == [
        "node  samples/s  share  lag  waited      Q  pushes",
        "   0       1234  62.5%    2    3.1%  87.5%       7",
        "   1             37.5%    2    3.1%  87.5%       7  slow",
    ]


def test_columns_without_a_value_are_left_out() -> None:
    head = node_table([{**ROW, "quality": None}]).splitlines()[0]
    assert "Q" not in head.split() and "refused" not in head.split()
    assert "refused" in node_table([{**ROW, "refused": 1}])
