import json

import pytest

from convoy.errors import CheckpointError
from convoy.report.comparison_page import comparison_page, epoch_times, notebook, read_comparison
from convoy.report.page import render
from convoy.report.write import write_report

NASTY = "</script><b>x</b>"


def epoch(number, seconds, accuracy):
    return {
        "epoch": number, "train_loss": 1 / number, "validation_loss": 1.0, "validation_accuracy": accuracy,
        "seconds": seconds, "samples_per_second": 10 / seconds,
    }  # fmt: skip


def run(strategy, seed, *epochs, status="finished", error=None):
    made = [epoch(i, *values) for i, values in enumerate(epochs, 1)]
    return {"strategy": strategy, "seed": seed, "status": status, "error": error, "path": "runs/x", "epochs": made}


@pytest.fixture
def values():
    return {
        "title": "lenet5 · digits",
        "strategies": {"a": {"name": "sequential"}, NASTY: {"name": "pipelined", "stages": 2}},
        "budget": {"epochs": 2},
        "seeds": [0, 1],
        "outcomes": [
            run("a", 0, (2.0, 0.5), (2.0, 0.8)), run("a", 1, (4.0, 0.7), (4.0, 0.9)),
            run(NASTY, 0, (1.0, 0.6), (1.0, 0.7)), run(NASTY, 1, (3.0, 0.4), status="failed", error=NASTY),
        ],
        "turns": [{"strategy": "a", "other_cores": 0.5}, {"strategy": "a", "other_cores": None}, "odd"],
        "environment": {"convoy": "0.1.0", "processor": "P", "cores": 2},
        "config": {"lr": 0.1},
        "findings": {"head": ["strategy", "runs"], "rows": [["a", "2/2"], [NASTY, "1/2"]], "target": 0.8,
                     "sentences": ["a is first", NASTY], "warnings": [f"{NASTY} failed"]},
    }  # fmt: skip


def lines(chart):
    return {line.name: list(zip(line.x, line.y, strict=True)) for line in chart.lines}


def test_means_over_the_seeds_and_every_seed_thin(values):
    drawn = lines(epoch_times(values["outcomes"]))
    assert drawn["a"] == [(1.0, 3.0), (2.0, 3.0)]
    assert drawn["a, seed 1"] == [(1.0, 4.0), (2.0, 4.0)]
    assert drawn[NASTY] == [(1.0, 2.0), (2.0, 1.0)], "where only one seed came so far, it is its own"
    chart = epoch_times(values["outcomes"])
    assert [line.faint for line in chart.lines] == [False, True, True] * 2
    assert [line.family for line in chart.lines] == [0, 0, 0, 1, 1, 1]


def test_the_headline_has_a_sentence_about_every_strategy(values):
    values["strategies"] = {"a": {}, "b": {}, "b:stages=2": {}}
    said = ["b is slow", "b is exact", "b:stages=2 is fast", "b:stages=2 is not exact"]
    values["findings"]["sentences"] = said
    assert comparison_page(values).headline == ("b is slow", "b:stages=2 is fast")
    values["findings"]["sentences"] = said[:3]
    assert comparison_page(values).headline == tuple(said[:3])


def test_the_page_says_what_was_found(values):
    page = comparison_page(values)
    assert page.title == "lenet5 · digits" and page.status == ("1 failed", "bad")
    assert page.headline == ("a is first", NASTY) and page.problems == (f"{NASTY} failed",)
    assert dict(page.facts)["budget"] == "2 epochs each"
    first = page.first.numbers.splitlines()
    assert first[0].startswith("seconds of training,a,") and "3,0.6," in first[3]
    assert {section.key for section in page.sections} == {"result", "accuracy", "time", "runs", "configuration"}
    html = render(page)
    assert NASTY not in html.replace("<script>", "") and html.count("<script") == 1


def test_a_notebook_shows_table_curves_and_words(values):
    html = notebook(values)
    assert html.count("<svg") == 1 and NASTY not in html and "warning: " in html


def test_an_unfinished_comparison_has_a_page(values):
    values["outcomes"] = [{**values["outcomes"][0], "status": "unfinished", "epochs": []}, {"odd": 1}, None]
    values["findings"] |= {"sentences": [], "warnings": []}
    page = comparison_page(values)
    assert page.status == ("unfinished", "open") and page.first is None
    assert "</html>" in render(page)


@pytest.mark.parametrize("text", ["{", "[]", '{"outcomes": 1}', '{"outcomes": []}'])
def test_what_is_no_comparison_is_refused(tmp_path, text):
    (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(CheckpointError):
        read_comparison(tmp_path)


@pytest.mark.browser
def test_it_is_drawn_in_a_browser(browser, values, tmp_path):
    (tmp_path / "comparison.json").write_text(json.dumps(values))
    for width in (390, 1200):
        browser.open(write_report(tmp_path)[0], width=width)
        browser.wait("document.querySelectorAll('figure.live canvas').length > 0")
        rows = "[...document.querySelectorAll('.first .u-legend .u-series')]"
        hidden = f"{rows}.filter(e => !e.getClientRects().length).length"
        assert browser.run(hidden) == 4, "the seeds are drawn but not named"
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.messages == []
