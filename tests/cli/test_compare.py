"""``convoy compare`` and ``convoy report`` as commands."""

import json
import shutil
import tomllib

import pytest

from convoy.comparison import run as comparison_run

SMALL = ("lenet5", "--limit", "64", "--batch-size", "32", "--lr", "0.02")
TWO = ("--strategy", "sequential", "--strategy", "pipelined:ppv=2,clock=1f1b")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The folder of a comparison. Not to be changed."""
    from convoy.cli.main import main

    place = tmp_path_factory.mktemp("compared")
    assert main(["compare", *SMALL, *TWO, "--epochs", "2", "--run-dir", str(place), "--name", "c", "--quiet"]) == 0
    return place / "c"


def test_it_leaves_a_folder_with_runs_that_can_be_used_and_a_report(compared, convoy):
    assert sorted(p.name for p in compared.iterdir()) == ["comparison.json", "comparison.toml", "report.html", "runs"]
    values = json.loads((compared / "comparison.json").read_text())
    assert values["title"] == "lenet5 · digits" and values["budget"] == {"epochs": 2}
    assert list(values["strategies"]) == ["sequential", "pipelined:ppv=2,clock=1f1b"]
    assert [outcome["status"] for outcome in values["outcomes"]] == ["finished", "finished"]
    assert "pipelined:ppv=2,clock=1f1b" in (compared / "report.html").read_text()
    run = compared / values["outcomes"][1]["path"]
    config = tomllib.loads((run / "config.toml").read_text())
    assert config["strategy"] == "pipelined" and config["ppv"] == [2] and config["batch_size"] == 32
    assert (run / "checkpoints").is_dir()
    assert convoy("report", run, "--quiet").out.strip() == str(run / "report.html")


def test_what_a_run_warns_of_is_among_the_warnings(convoy, tmp_path):
    """One epoch of two mini-batches is over before speculation's warm-up; and the batch is larger than the data."""
    said = convoy(
        "compare", "lenet5", "--limit", "64", "--batch-size", "100", "--strategy", "sequential",
        "--strategy", "speculative",
        "--epochs", "1", "--run-dir", tmp_path, "--name", "w",
    )  # fmt: skip
    assert "warning: speculative: the run has 1 mini-batch" in said.out and "never speculate" in said.out
    assert "note: every epoch is one mini-batch of 64 images: there are no 100 to train on" in said.err


def test_a_run_of_it_can_be_evaluated_and_exported(compared, convoy, tmp_path):
    values = json.loads((compared / "comparison.json").read_text())
    for outcome in values["outcomes"]:
        run = compared / outcome["path"]
        assert json.loads((run / "model.json").read_text())["model"] == "lenet5"
        found = convoy("evaluate", run, "--limit", "64", "--json").json
        assert found["accuracy"] == pytest.approx(outcome["epochs"][-1]["validation_accuracy"])
    assert convoy("export", run, tmp_path / "net.safetensors").code == 0


def test_the_config_can_be_used_again(compared, convoy):
    config = tomllib.loads((compared / "comparison.toml").read_text())
    assert config["strategies"] == ["sequential", "pipelined:ppv=2,clock=1f1b"]
    assert config["epochs"] == 2 and config["lr"] == 0.02
    done = convoy("compare", "--config", compared / "comparison.toml", "--name", "again", "--run-dir", "runs", "--json")
    values = done.json
    before = json.loads((compared / "comparison.json").read_text())
    for one, other in zip(values["outcomes"], before["outcomes"], strict=True):
        assert [e["train_loss"] for e in one["epochs"]] == [e["train_loss"] for e in other["epochs"]]
    assert values["report"] == "runs/again/report.html"


def test_more_seeds_on_resuming(compared, convoy, tmp_path):
    folder = tmp_path / "c"
    shutil.copytree(compared, folder)
    done = convoy("compare", "--resume", folder, "--seeds", "2")
    assert done.code == 0, done.err
    assert done.err.count("seed 1 · ") == 4 and "seed 0" not in done.err
    assert "(2 seeds, too few for an interval)" in done.out and f"report: {folder / 'report.html'}" in done.out
    done = convoy("compare", "--resume", folder, "--seeds", "1")
    assert done.code == 2 and done.error == "--seeds is 1, but the comparison has 2"


def test_tables_in_the_config_are_strategies_too(convoy, tmp_path):
    (tmp_path / "c.toml").write_text(
        'model = "lenet5"\nlimit = 64\nepochs = 1\nseeds = 1\nname = "c"\n'
        'strategies = ["sequential", {name = "pipelined", ppv = [2, 3], label = "three"}, '
        '{name = "pipelined", ppv = [2]}]'
    )
    done = convoy("compare", "--config", "c.toml", "--json")
    assert list(done.json["strategies"]) == ["sequential", "three", "pipelined:ppv=2"]
    assert done.json["strategies"]["three"]["ppv"] == [2, 3]


def test_a_failed_strategy_is_said_and_the_exit_code_is_1(convoy):
    strategies = ("--strategy", "sequential", "--strategy", "pipelined:stages=50")
    done = convoy("compare", *SMALL, *strategies, "--epochs", "1")
    assert done.code == 1
    assert "warning: pipelined:stages=50 with seed 0 failed: 50 stages need 49 cuts" in done.out
    assert "sequential           " in done.out


def test_ctrl_c_says_how_to_go_on_and_leaves_a_report(convoy, monkeypatch, tmp_path):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison_run.Rounds, "run", interrupt)
    done = convoy("compare", *SMALL, *TWO, "--epochs", "1", "--name", "c")
    assert done.code == 130
    assert done.hint == "go on with: convoy compare --resume runs/c"
    assert "not finished" in (tmp_path / "runs" / "c" / "report.html").read_text()
    monkeypatch.undo()


def test_minutes_take_a_constant_learning_rate(convoy):
    done = convoy("compare", *SMALL, *TWO, "--minutes", "0.0001", "--json")
    assert done.json["budget"] == {"minutes": 0.0001}
    assert {epoch["lr"] for outcome in done.json["outcomes"] for epoch in outcome["epochs"]} == {0.02}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((*SMALL,), "there is nothing to compare: no strategy is named"),
        ((*SMALL, "--strategy", "sequential"), "there is nothing to compare: only one strategy is named"),
        (
            (*SMALL, "--strategy", "sequential:nodes=2"),
            "'sequential:nodes=2' has nodes, which sequential does not take",
        ),
        ((*SMALL, "--strategy", "pipelned"), "strategy 'pipelned' is unknown"),
        ((*SMALL, *TWO, "--strategy", "hybrid:switch=1,keep_best=1"), "keep_best, which a comparison does not take"),
        ((*SMALL, *TWO, "--strategy", "sequential"), "strategy 'sequential' is named twice"),
        ((*SMALL, *TWO, "--strategy", "pipelned"), "strategy 'pipelned' is unknown"),
        ((*SMALL, *TWO, "--strategy", "pipelined:stges=2"), "strategy 'pipelined:stges=2' has the unknown field stges"),
        ((*SMALL, *TWO, "--strategy", "pipelined:epochs=2"), "has epochs, which is the same for all"),
        ((*SMALL, *TWO, "--strategy", "sequential:stages=2"), "has stages, which sequential does not take"),
        ((*SMALL, *TWO, "--strategy", "pipelined:stages=x"), "--stages is 'x'"),
        ((*SMALL, *TWO, "--minutes", "1", "--epochs", "2"), "--epochs and --minutes are both given"),
        ((*SMALL, *TWO, "--minutes", "1", "--lr-schedule", "cosine"), "is laid out for a number of epochs"),
        ((*SMALL, *TWO, "--minutes", "-1"), "--minutes is -1.0"),
        ((*SMALL, *TWO, "--seeds", "0"), "--seeds is 0"),
        ((*SMALL, *TWO, "--target", "97"), "--target is 97.0"),
        ((*SMALL, *TWO, "--name", "a/b"), "name 'a/b' is no folder name"),
        ((*TWO,), "no model was named"),
        (("lenet", *TWO), "there is no network named 'lenet'"),
        (("--resume", "nowhere"), "nowhere holds no comparison.toml"),
        (("--resume", "nowhere", "--epochs", "3"), "a comparison is gone on with as it was begun"),
    ],
)
def test_what_was_asked_wrongly(convoy, tmp_path, arguments, complaint):
    done = convoy("compare", *arguments)
    assert done.code == 2
    assert complaint in done.error
    assert not (tmp_path / "runs").exists(), "nothing was begun"


def test_a_wrong_key_in_the_config(convoy, tmp_path):
    for text, complaint in (
        ("stratgies = []", "unknown key stratgies"),
        ("strategy = 'sequential'", "has strategy, which a comparison does not take"),
        ("keep_best = true", "has keep_best, which a comparison does not take"),
        ("model = 'lenet5'\nstrategies = [{stages = 2}, 'sequential']", "has no name"),
        ("model = 'lenet5'\nstrategies = ['sequential', 'pipelined']\nseeds = 1.5", "--seeds is 1.5"),
    ):
        (tmp_path / "c.toml").write_text(text)
        done = convoy("compare", "--config", "c.toml")
        assert done.code == 2 and complaint in done.error, done.err


def test_report_of_a_run(trained, convoy, tmp_path):
    done = convoy("report", trained, "--output", "page.html", "--json")
    assert done.json == {"report": "page.html", "problems": []}
    assert "lenet5 · digits · sequential" in (tmp_path / "page.html").read_text()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "metrics.jsonl").write_text("{}\nx\n")
    done = convoy("report", "damaged")
    assert done.code == 0 and done.out.strip() == "damaged/report.html"
    assert "note: metrics.jsonl: 1 line is damaged and left out" in done.err
    assert convoy("report", "nowhere").error == "nowhere is no run folder"
    assert convoy("report", trained, "--output", tmp_path).code == 2
    done = convoy("report", trained, "--output", "nowhere/page.html")
    assert done.error.startswith("cannot write nowhere/page.html") and done.hint == "choose another --output"
