from convoy.training.evaluation import Evaluation
from convoy.training.history import EpochRecord, EpochSums, History


def test_sums_become_a_record():
    sums = EpochSums(1)
    sums.add(10, 2.0, 3, 4, 0.1)
    sums.add(11, 1.0, 1, 2, 0.05)
    sums.seconds = 3.0
    record = sums.record({"worker 1": 0.5}, Evaluation(0.5, 0.75, 8))
    assert record == EpochRecord(
        epoch=2,
        train_loss=10 / 6,
        train_accuracy=4 / 6,
        validation_loss=0.5,
        validation_accuracy=0.75,
        seconds=3.0,
        samples=6,
        samples_per_second=2.0,
        lr=0.05,
        busy={"worker 1": 0.5},
    )
    assert sums.last_batch == 11


def test_one_batch_without_accuracy_leaves_the_epoch_without():
    sums = EpochSums(0)
    sums.add(0, 2.0, 3, 4, 0.1)
    sums.add(1, 2.0, None, 4, 0.1)
    sums.add(2, 2.0, 3, 4, 0.1)
    assert sums.record({}).train_accuracy is None


def test_a_history_goes_through_plain_values():
    history = History([EpochRecord(epoch=1, train_loss=0.5, busy={"w": 0.25})], best_epoch=1, stopped_early="why")
    assert History.from_dict(history.to_dict()) == history
    assert history.last is history[0] and len(history) == 1


def test_the_table_leaves_empty_columns_out_and_marks_the_best():
    history = History(
        [
            EpochRecord(epoch=1, train_loss=1.5, train_accuracy=0.5, lr=0.1, samples_per_second=1234.4, seconds=2),
            EpochRecord(epoch=2, train_loss=0.25, train_accuracy=0.975, lr=0.01, samples_per_second=99, seconds=2),
        ],
        best_epoch=2,
    )
    assert history.table().splitlines() == [
        "epoch    loss  accuracy    lr  samples/s  seconds",
        "    1  1.5000    50.00%   0.1       1234      2.0",
        "   2*  0.2500    97.50%  0.01         99      2.0",
    ]
    assert str(History()) == "no epoch yet"
