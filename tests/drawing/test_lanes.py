import itertools
import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.drawing.lanes import Lanes, Span, describe, lanes_svg, rows_of

SVG = "{http://www.w3.org/2000/svg}"


def span(lane, start, end, name="F1.0"):
    return Span(lane, start, end, name, f"title of {name}", 0)


def lanes(*spans, start=0.0, end=1.0):
    return Lanes("Timeline", start, end, spans, ((0, "forward"),))


def test_waits_are_what_is_left():
    drawn = lanes(span("w1", 0.2, 0.4), span("w1", 0.5, 1.2), span("w2", -1, 0.25))
    assert drawn.waits("w1") == [(0.0, 0.2), (0.4, 0.5)]
    assert drawn.waits("w2") == [(0.25, 1.0)]
    assert drawn.busy("w1") == pytest.approx(0.7)
    assert describe(drawn) == "1000.0 ms: w1 worked 70%, w2 worked 25%"


SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), max_size=20)


@given(SPANS)
def test_rows_hold_every_span_once_and_none_overlap(pairs):
    spans = [span("pool", start, start + length) for start, length in pairs]
    rows = rows_of(spans)
    assert sorted(map(id, (s for row in rows for s in row))) == sorted(map(id, spans))
    for row in rows:
        assert all(a.end <= b.start for a, b in itertools.pairwise(row))
    most = max((sum(s.start <= t < s.end for s in spans) for t in range(61)), default=0)
    assert len(rows) == most, "as few rows as work was done at once"


@given(SPANS)
def test_waits_and_work_fill_the_time(pairs):
    spans = [span("w", start, start + length) for start, length in pairs]
    drawn = lanes(*spans, start=0, end=60)
    busy = len({t for s in spans for t in range(s.start, s.end)})
    assert math.isclose(drawn.busy("w") if spans else 0.0, busy / 60, abs_tol=1e-9)


def test_every_action_is_a_bar_with_its_name_where_there_is_room():
    svg = ElementTree.fromstring(lanes_svg(lanes(span("w1", 0, 0.5, "F1.0"), span("w1", 0.5, 0.51, "B1.0"))))
    titles = [title.text for title in svg.iter(f"{SVG}title")]
    assert {"title of F1.0", "title of B1.0"} <= set(titles)
    texts = [text.text for text in svg.iter(f"{SVG}text")]
    assert "F1.0" in texts and "B1.0" not in texts
    assert "forward" in texts and "waits" in texts


def test_names_cannot_become_markup():
    svg = lanes_svg(lanes(Span("<b>w", 0, 0.9, "<i>x", "<u>y", 0)))
    assert not any(tag in svg for tag in ("<b>", "<i>", "<u>"))
    ElementTree.fromstring(svg)


def test_nothing_makes_no_drawing():
    assert lanes_svg(lanes()) == ""
    assert lanes_svg(lanes(span("w", 0, 1), start=1, end=1)) == ""
