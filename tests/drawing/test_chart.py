import math
import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from convoy.drawing.chart import HEIGHT, WIDTH, Chart, Line, chart_svg

SVG = "{http://www.w3.org/2000/svg}"
VALUES = st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(math.nan), st.just(math.inf))


def parsed(chart):
    return ElementTree.fromstring(chart_svg(chart))


def paths(svg):
    return [
        [tuple(map(float, pair.split())) for pair in path.get("d")[1:].split("L")] for path in svg.iter(f"{SVG}path")
    ]


def test_a_curve_goes_from_edge_to_edge_and_up_where_values_rise():
    (curve,) = paths(parsed(Chart("t", "x", "y", (Line("a", [0, 1, 2], [0.0, 5.0, 10.0]),))))
    assert [x for x, _ in curve] == [54, 280, 506]
    heights = [y for _, y in curve]
    assert heights == sorted(heights, reverse=True)
    assert math.isclose(heights[1], (heights[0] + heights[2]) / 2, abs_tol=0.11)


def test_gaps_break_a_curve_and_a_lone_value_is_a_dot():
    svg = parsed(Chart("t", "x", "y", (Line("a", [0, 1, 2, 3, 4, 5], [1.0, 2.0, None, 3.0, math.nan, 4.0]),)))
    assert [len(curve) for curve in paths(svg)] == [2]
    assert len(list(svg.iter(f"{SVG}circle"))) == 2


def test_lines_differ_in_colour_and_in_dashes():
    chart = Chart("t", "x", "y", tuple(Line(str(i), [0, 1], [float(i), 1.0]) for i in range(4)))
    drawn = list(parsed(chart).iter(f"{SVG}path"))
    assert len({path.get("style") for path in drawn}) == 4
    assert len({path.get("stroke-dasharray") for path in drawn}) == 4


def test_every_line_but_the_faint_ones_has_its_name_below():
    lines = (Line("first", [0, 1], [1, 2]), Line("second", [0, 1], [2, 1]), Line("thin", [0, 1], [1, 1], faint=True))
    svg = parsed(Chart("t", "x", "y", lines))
    texts = [text.text for text in svg.iter(f"{SVG}text")]
    assert "first" in texts and "second" in texts and "thin" not in texts
    assert float(svg.get("viewBox").split()[3]) > HEIGHT


def test_what_users_write_cannot_become_markup():
    nasty = '</text><script>alert("1")</script>&\x00'
    svg = chart_svg(
        Chart(nasty, nasty, nasty, (Line(nasty, [0, 1], [1, 2]), Line("b", [0], [1])), marks=((0.5, nasty),))
    )
    assert "<script" not in svg
    assert ElementTree.fromstring(svg).find(f"{SVG}title").text == '</text><script>alert("1")</script>& '


def test_nothing_to_draw_is_said():
    assert "no values" in chart_svg(Chart("t", "x", "y", (Line("a", [0, 1], [None, math.nan]),)))
    assert "no values" in chart_svg(Chart("t", "x", "y", ()))


def test_the_description_tells_how_a_curve_ran():
    chart = Chart("t", "epoch", "accuracy", (Line("validation", [1, 2], [0.5, 0.975]),), percent=True)
    assert parsed(chart).find(f"{SVG}desc").text == "accuracy over epoch: validation from 50% to 97.5%"


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), VALUES), max_size=20), st.booleans(), st.booleans())
def test_all_that_is_drawn_lies_inside(points, zero, dots):
    line = Line("a", [x for x, _ in points], [y for _, y in points], points=dots)
    svg = chart_svg(Chart("t", "x", "y", (line,), zero=zero, from_zero=zero))
    ElementTree.fromstring(svg)
    assert "nan" not in svg and "inf" not in svg
    for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", svg):
        assert -1 <= float(x) <= WIDTH + 1 and -1 <= float(y) <= HEIGHT + 1
