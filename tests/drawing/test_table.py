import csv
import io
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from convoy.drawing.table import csv_text, html_table, shown, value_tables

CELLS = st.one_of(st.none(), st.integers(), st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"])))


@given(st.lists(st.tuples(CELLS, CELLS), max_size=5))
def test_tables_are_well_formed_whatever_is_in_them(rows):
    table = ElementTree.fromstring(html_table(("a", "<b>"), rows))
    assert len(table.findall("tbody/tr")) == len(rows)
    assert [cell.text for cell in table.findall("thead/tr/th")] == ["a", "<b>"]


@given(st.lists(st.tuples(CELLS, CELLS), max_size=5))
def test_csv_reads_back(rows):
    read = list(csv.reader(io.StringIO(csv_text(("x", "y,z"), rows))))
    assert read[0] == ["x", "y,z"]
    assert read[1:] == [["" if cell is None else str(cell) for cell in row] for row in rows]


def test_numbers_stand_to_the_right_and_words_do_not():
    table = ElementTree.fromstring(html_table(("n", "w"), [("1.5", "a"), ("–", "2")]))
    first, second = table.findall("tbody/tr")[0]
    assert first.get("class") == "number" and second.get("class") is None


def test_values_as_people_write_them():
    assert [shown(v) for v in (None, "", [], True, 0.123456, [1, 2.5], {"stages": 2}, "x")] == [
        "–", "–", "–", "yes", "0.1235", "1, 2.5", "stages 2", "x",
    ]  # fmt: skip


def test_nested_values_become_tables_of_their_own():
    plan = {"strategy": "pipelined", "stages": [{"index": 1, "delay": 2}, {"index": 2}], "inner": {"step_seconds": 0.5}}
    root = ElementTree.fromstring(f"<div>{value_tables(plan)}</div>")
    captions = [caption.text for caption in root.iter("caption")]
    assert captions == ["stages", "inner"]
    assert [[cell.text for cell in row] for row in root.findall("table")[1].findall("tbody/tr")] == [
        ["1", "2"],
        ["2", "–"],
    ]
    assert [cell.text for cell in root.findall("table")[2].findall("tbody/tr/td")] == ["step seconds", "0.5"]
