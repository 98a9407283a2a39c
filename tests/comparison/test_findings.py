import dataclasses

import pytest

from convoy.comparison import Comparison
from convoy.comparison.comparison import Turn
from convoy.comparison.findings import common_target, findings, warnings

A = [[(2.0, 0.5), (2.0, 0.8), (2.0, 0.9)]]
B = [[(3.0, 0.6), (1.0, 0.85), (1.0, 0.95)]]


def test_one_seed_is_said_without_an_interval(numbers):
    found = findings(numbers(a=A, b=B))
    assert found.target == 0.9
    assert found.sentences == (
        "b reached 90 % in 0.83 of the time of a (one seed)",
        "An epoch of b took 0.50 (0.50 to 0.50) of the time of one of a "
        "(geometric mean of 2 pairs of epochs, those in which training began left out)",
        "b ended with 5.00 percentage points more accuracy than a (one seed)",
    )
    assert found.head[-1] == "s to 90 %"
    assert found.rows[0] == ("a", "1/1", "2", "5", "90.00 %", "90.00 %", "6.0")
    assert found.rows[1] == ("b", "1/1", "1", "10", "95.00 %", "95.00 %", "5.0")
    assert found.warnings == ("one seed: differences in accuracy, and in the time to reach it, are seen once",)


def test_seeds_are_compared_in_pairs(numbers):
    slow = [[(4.0, 0.9)], [(8.0, 0.92)], [(12.0, 0.94)]]
    fast = [[(2.0, 0.91)], [(4.0, 0.93)], [(6.0, 0.95)]]
    found = findings(numbers(a=slow, b=fast))
    assert found.sentences[0] == "b reached 90 % in 0.50 ± 0.00 of the time of a (3 seeds)"
    assert found.sentences[2] == "b ended with 1.00 ± 0.00 percentage points more accuracy than a (3 seeds)"
    assert found.warnings == ()


def test_two_seeds_have_a_range_and_no_interval(numbers):
    found = findings(numbers(a=[[(1.0, 0.90)], [(3.0, 0.92)]], b=[[(2.0, 0.93)], [(2.0, 0.91)]]))
    assert found.sentences == (
        "b reached 90 % in 1.15 (0.67 to 2.00) of the time of a (2 seeds, too few for an interval)",
        "An epoch of b took 1.15 (0.67 to 2.00) of the time of one of a "
        "(geometric mean of 2 pairs of epochs, capture and measuring included)",
        "The last accuracies of b and a are not separated: +1.00 (-1.00 to +3.00) percentage points "
        "(2 seeds, too few for an interval)",
    )
    assert found.rows[0][-3:] == ("91.00 % (90.00 to 92.00)", "91.00 % (90.00 to 92.00)", "2.0 (1.0 to 3.0)")
    assert found.warnings == (
        "two seeds are too few for intervals of accuracies and of times to the target: ranges are given "
        "(--seeds 3 or more gives intervals)",
    )


@pytest.mark.parametrize(
    ("last", "sentence"),
    [
        ((0.89, 0.88), "b ended with 2.50 (1.00 to 4.00) percentage points less accuracy than a (2 seeds"),
        ((0.91, 0.93), "b ended with 1.00 (1.00 to 1.00) percentage points more accuracy than a (2 seeds"),
        ((0.85, 0.87, 0.86), "b ended with 5.00 ± 0.00 percentage points less accuracy than a (3 seeds)"),
        (
            (0.90, 0.95, 0.85),
            "The last accuracies of b and a are not separated: -1.00 ± 11.38 percentage points (3 seeds)",
        ),
    ],
)
def test_accuracies_are_told_apart_by_the_interval_or_the_range(numbers, last, sentence):
    other = [[(1.0, accuracy)] for accuracy in (0.90, 0.92, 0.91)[: len(last)]]
    found = findings(numbers(a=other, b=[[(1.0, accuracy)] for accuracy in last]))
    assert found.sentences[2].startswith(sentence)


def test_wide_intervals_are_written_out(numbers):
    found = findings(numbers(a=[[(1.0, 0.9)], [(3.0, 0.9)], [(2.0, 0.9)]], b=[[(2.0, 0.9)]] * 3))
    assert found.sentences[0].startswith("b reached 90 % in 1.10 (95 % interval 0.2")


@pytest.mark.parametrize(("chance", "used"), [(None, 0.2), (0.1, 0.2), (0.2, None), (0.25, None)])
@pytest.mark.parametrize("asked", [None, 0.2])
def test_what_guessing_reaches_is_no_target(numbers, chance, used, asked):
    made = numbers(target=asked, a=[[(1.0, 0.2)]], b=[[(1.0, 0.201)]])
    made.chance = chance
    found = findings(made)
    assert found.target == used
    assert any("reached 20 %" in sentence for sentence in found.sentences) == (used is not None)
    assert any("20 % is no more than guessing reaches" in warning for warning in found.warnings) == (used is None)


def test_the_target_is_the_highest_whole_percent_that_all_reached(numbers):
    assert common_target(numbers(a=[[(1, 0.971), (1, 0.96)]], b=[[(1, 0.99)]])) == 0.97
    assert common_target(numbers(a=[[(1, 0.97)]], b=[[(1, 0.97)]])) == 0.97
    assert common_target(numbers(a=[[(1, 0.97)]], b=[[(1, None)]])) is None
    assert common_target(numbers(a=[[(1, 0.004)]], b=[[(1, 0.5)]])) is None


def test_a_target_that_one_missed(numbers):
    found = findings(numbers(target=0.95, a=A, b=B))
    assert found.sentences[0] == "a did not always reach 95 %: both did with no seed"
    assert found.rows[0][-1] == "–" and found.rows[1][-1] == "5.0"


def test_without_accuracies_times_are_compared(numbers):
    found = findings(numbers(a=[[(1.0, None), (2.0, None)]], b=[[(1.0, None), (1.0, None)]]))
    assert found.target is None
    assert found.sentences == (
        "An epoch of b took 0.50 of the time of one of a (one pair of epochs, those in which training began left out)",
    )


def test_a_failed_run_is_left_out_and_named(numbers):
    made = numbers(a=[*A, *A], b=[*B, *B])
    made.outcome("b", 1).status, made.outcome("b", 1).error = "failed", "the loss is nan"
    found = findings(made)
    assert found.rows[1][1] == "1/2"
    assert "(one seed)" in found.sentences[0]
    assert found.warnings[0] == "b with seed 1 failed: the loss is nan"
    made.outcome("b", 0).status = "failed"
    assert findings(made).sentences == ("b cannot be compared with a: no seed of which both have an epoch",)


def test_what_makes_the_numbers_unsure(numbers):
    slow = [(1.0, 0.5)] * 5
    slow[3] = (4.0, 0.5)
    made = numbers(a=[slow, [(1.0, 0.5)] * 5])
    made.turns = [Turn(0, 1, 0, "a", load) for load in (0.1, None, 1.4)]
    made.outcome("a", 1).status = "unfinished"
    assert warnings(made) == [
        "the comparison is not finished: 1 of its 2 runs have not ended",
        "epoch 4 of a with seed 0 took 4.0 times the median: something else may have run",
        "other programs kept more than 0.5 cores busy in 1 of 2 turns (1.4 at most): repeat it on a quiet machine",
        "two seeds are too few for intervals of accuracies and of times to the target: ranges are given "
        "(--seeds 3 or more gives intervals)",
    ]


def test_a_comparison_comes_back_from_json(numbers):
    made = numbers(a=A, b=B)
    made.turns, made.chance = [Turn(0, 1, 0, "a", 0.1)], 0.1
    back = Comparison.from_dict(made.to_dict())
    assert dataclasses.asdict(back) == dataclasses.asdict(made)
    assert back.to_dict()["findings"]["sentences"] == list(findings(made).sentences) or (
        tuple(back.to_dict()["findings"]["sentences"]) == findings(made).sentences
    )


def test_seconds_count_up_and_targets_are_reached_at_the_end_of_an_epoch(numbers):
    outcome = numbers(a=A).outcome("a", 0)
    assert outcome.seconds() == [2.0, 4.0, 6.0]
    assert outcome.seconds_to(0.8) == 4.0
    assert outcome.seconds_to(0.91) is None
    assert outcome.best_accuracy() == pytest.approx(0.9)


def test_an_epoch_in_which_a_run_was_resumed_is_left_out(numbers):
    made = numbers(a=A, b=[[(3.0, 0.6), (1.0, 0.85), (9.0, 0.95)]])
    resumed = made.outcome("b", 0).epochs
    resumed[2] = dataclasses.replace(resumed[2], began=True)
    found = findings(made)
    assert "An epoch of b took 0.50 of the time of one of a (one pair of epochs, those in which" in found.sentences[1]
    assert found.rows[1][2:4] == ("1", "10")


def test_longer_epochs_count_by_their_samples(numbers):
    """Nodes that train apart do not end an epoch after the same number of samples."""
    made = numbers(a=A, b=[[(2.0, 0.9)] * 3])
    epochs = made.outcome("b", 0).epochs
    made.outcome("b", 0).epochs = [dataclasses.replace(r, samples=20) for r in epochs]
    assert "An epoch of b took 0.50 (0.50 to 0.50) of the time of one of a" in findings(made).sentences[1]


def test_seconds_and_samples_a_second_are_of_the_same_epoch(numbers):
    found = findings(numbers(a=[[(9.0, 0.5), (0.1, 0.8), (2.5, 0.9)]], b=A))
    assert found.rows[0][2:4] == ("0.1", "100")


def test_equal_accuracies_are_said_to_be_equal(numbers):
    found = findings(numbers(a=A * 2, b=A * 2))
    assert found.sentences[-1] == "b ended with the same accuracy as a (2 seeds, too few for an interval)"


def test_what_runs_warned_of_is_said_once(numbers):
    made = numbers(a=A * 2, b=A * 2)
    for seed in (0, 1):
        made.outcome("b", seed).warnings = ["too short to speculate"]
    assert warnings(made).count("b: too short to speculate") == 1


def test_runs_that_have_not_begun_count_as_unfinished(numbers):
    made = numbers(a=A * 2, b=A * 2)
    made.outcomes = [o for o in made.outcomes if o.seed == 0]
    made.outcomes[0].status = "unfinished"
    assert "the comparison is not finished: 3 of its 4 runs have not ended" in warnings(made)
