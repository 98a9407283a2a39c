import csv
import io
import json
import re
from html.parser import HTMLParser

import pytest

from convoy.errors import CheckpointError, MachineError, OptionError
from convoy.report.files import read_run
from convoy.report.run_page import report_run, run_page
from convoy.report.write import write_report


class Reader(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.inside = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.inside):
            self.text.append(data)


def sections(page):
    return {section.key: [part.title for part in section.parts] for section in page.sections}


def test_a_run_has_all_its_sections(folder):
    found = sections(run_page(read_run(folder.trained().end().write())))
    assert found == {
        "accuracy": ["Accuracy against epochs", "Loss against epochs", "Loss of the mini-batches", "Learning rate",
                     "Epochs"],
        "throughput": ["Throughput"],
        "timeline": ["Timeline of mini-batches 4 to 8", "Median time per mini-batch"],
        "utilisation": ["Utilisation", "At work"],
        "staleness": ["Staleness", "Observed"],
        "memory": ["Planned, pipelined"],
        "plan": ["Plan: pipelined, predicted and measured", "Plan: pipelined, all of it"],
        "configuration": ["Configuration", "Environment"],
        "again": ["Software", "Command", "config.toml", "What holds"],
    }  # fmt: skip


def test_the_first_screen_says_what_ran_and_what_came_of_it(folder):
    page = run_page(read_run(folder.trained().end().write()))
    assert page.title == "lenet5 · digits · pipelined"
    assert page.status == ("finished", "good")
    assert page.headline == ("91.00 % of the validation samples after epoch 2. 2 epochs in 0.6 s of training.",)
    assert ("best accuracy", "91.00 %", "validation, epoch 2") in page.tiles
    assert ("step", "10.0 ms", "8.0 ms predicted") in page.tiles
    facts = dict(page.facts)
    assert facts["strategy"] == "pipelined: stages 2" and facts["machine"] == "P, 2 cores"
    assert page.first.title == "Accuracy against wall time"


@pytest.mark.parametrize(
    ("end", "status", "sentence"),
    [
        (("end", {"status": "finished"}), "finished", ""),
        (("end", {"status": "stopped"}), "stopped", ""),
        (("end", {"status": "failed", "batches": 4, "error": "Diverged"}), "failed", "after 4 mini-batches: Diverged."),
        (("interrupted", {}), "interrupted", "convoy train --resume goes on with it."),
        (None, "unfinished", "goes on, or was killed"),
    ],
)  # fmt: skip
def test_how_a_run_ended(folder, end, status, sentence):
    folder.trained()
    if end is not None:
        folder.tell("run", end[0], 9.0, data=end[1])
    page = run_page(read_run(folder.write()))
    assert page.status[0] == status
    assert sentence in page.headline[0]


def test_a_run_without_a_complete_epoch(folder):
    page = run_page(read_run(folder.begin().batch(0).batch(1).write()))
    assert page.headline[-1] == "No epoch is complete; 2 mini-batches are."
    assert page.first.title == "Loss of the mini-batches"


def test_numbers_behind_a_plot_are_what_is_plotted(folder):
    page = run_page(read_run(folder.trained().write()))
    head, *rows = csv.reader(io.StringIO(page.first.numbers))
    assert head == ["seconds of training", "validation", "training"]
    assert rows == [["0.4", "0.9", "0.5"], ["0.6", "0.91", "0.5"]]
    live = json.loads(page.first.live)
    assert [line["colour"] for line in live["lines"]] == [0, 1] and live["percent"]


def test_the_page_loads_nothing(folder):
    page = report_run(folder.trained().end().write())
    reader = Reader(page)
    for tag, attributes in reader.tags:
        assert tag not in ("iframe", "object", "embed", "img", "base"), tag
        for name in ("src", "href", "action", "data"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, value)
    assert not re.search(r"@import|url\((?!#)", page)
    assert not re.search(r"\bfetch\(|XMLHttpRequest|WebSocket|import\(", page)


NASTY = '</script><script>alert("x")</script><img src=x onerror=alert(1)>&{{ 7 * 7 }}\''


def test_what_users_write_cannot_become_markup(folder):
    folder.config = f"model = {json.dumps(NASTY)}\nstrategy = {json.dumps(NASTY)}\n{json.dumps(NASTY)} = 1\n"
    folder.environment[NASTY] = NASTY
    folder.plan |= {NASTY: NASTY, "stages": [{**stage, NASTY: NASTY} for stage in folder.plan["stages"]]}
    folder.trained()
    folder.tell("warning", "w", data={"message": NASTY})
    folder.tell("decision", NASTY, data={"cause": NASTY, NASTY: NASTY})
    for row in folder.events:
        if row["kind"] == "action":
            row |= {"lane": NASTY, "name": NASTY}
            row["data"] |= {"subject": NASTY, "kind": NASTY if row["data"]["kind"] == "B" else row["data"]["kind"]}
        if row["kind"] == "epoch":
            row["data"]["busy"] = {NASTY: 0.5, "other": 0.2}
        if row["kind"] == "step":
            row["data"][NASTY] = 1.5
    folder.tell("run", "end", 9.0, data={"status": "failed", "error": NASTY})
    page = report_run(folder.write())
    plain = report_run(type(folder)(folder.path.with_name("plain")).trained().end().write())
    reader = Reader(page)
    assert [tag for tag, _ in reader.tags].count("script") == 1
    assert not {"img"} & {tag for tag, _ in reader.tags}
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert "".join(reader.text).count(NASTY) > 10
    assert plain.count("<script") == page.count("<script") == 1


def test_a_hundred_epochs_stay_below_two_megabytes(folder):
    folder.BATCHES = 390
    folder.begin()
    for number in range(100 * folder.BATCHES):
        folder.batch(number, actions=number < 20 or number % 50 == 0)
        if number % folder.BATCHES == folder.BATCHES - 1:
            folder.epoch(number // folder.BATCHES + 1)
    assert len(report_run(folder.end().write()).encode()) < 2_000_000


def test_the_page_goes_into_the_folder_or_where_it_is_wanted(folder, tmp_path):
    path = folder.trained().end().write()
    assert write_report(path) == (path / "report.html", ())
    assert write_report(path, tmp_path / "mine.html")[0].read_text() == (path / "report.html").read_text()
    assert not list(path.glob(".writing*"))


def test_places_that_cannot_be_written(folder, tmp_path):
    path = folder.trained().write()
    with pytest.raises(OptionError, match="is a folder"):
        write_report(path, tmp_path)
    with pytest.raises(MachineError, match="cannot write"):
        write_report(path, tmp_path / "no" / "such" / "folder.html")
    with pytest.raises(CheckpointError, match="is no run folder"):
        write_report(tmp_path / "gone")


def test_decisions_that_are_many_are_counted_and_the_others_listed(folder):
    folder.trained()
    for batch in range(30):
        folder.tell("decision", "accept", 2.0, batch=batch, data={"cause": "data", "accepted": batch})
        folder.tell("decision", "drain", 2.0, batch=batch, data={"cause": "user", "reason": "validation"})
    folder.tell("decision", "switch", 2.0, batch=20, data={"cause": "user", "from": "a", "to": "b", "epoch": 2})
    page = run_page(read_run(folder.write()))
    (section,) = [section for section in page.sections if section.key == "strategy"]
    assert [part.title for part in section.parts] == ["Accept: accepted", "Decisions"]
    rows = list(csv.reader(io.StringIO(section.parts[-1].numbers)))[1:]
    assert rows == [
        ["accept", "30 times", "data", ""],
        ["drain", "30 times", "user", "validation"],
        ["switch", "before mini-batch 20", "user", "from a, to b, epoch 2"],
    ]
