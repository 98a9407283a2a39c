import pytest

from convoy.errors import OptionError
from convoy.training.callbacks import EarlyStopping, KeepBest, Watch
from convoy.training.history import EpochRecord


def records(*values, name="validation_loss"):
    return [EpochRecord(epoch=i + 1, train_loss=9.0, **{name: value}) for i, value in enumerate(values)]


def test_a_loss_improves_by_falling_more_than_min_delta():
    watch = Watch("validation_loss", 0.1)
    assert [watch.update(r) for r in records(1.0, 0.95, 0.9, 0.85, 0.7)] == [True, False, False, True, True]
    assert (watch.best, watch.epoch, watch.waited) == (0.7, 5, 0)


def test_an_accuracy_improves_by_rising():
    watch = Watch("validation_accuracy")
    found = [watch.update(r) for r in records(0.5, 0.4, 0.5, 0.6, 0.2, name="validation_accuracy")]
    assert found == [True, False, False, True, False] and watch.waited == 1


def test_without_a_name_the_first_that_there_is_is_watched():
    watch = Watch(None)
    watch.update(EpochRecord(epoch=1, train_loss=1.0))
    assert watch.metric == "train_loss"
    watch = Watch(None)
    watch.update(EpochRecord(epoch=1, train_loss=1.0, validation_loss=0.5, validation_accuracy=0.25))
    assert (watch.metric, watch.best) == ("validation_accuracy", 0.25)


def test_the_state_comes_back():
    watch, other = Watch("validation_loss"), Watch("validation_loss")
    for record in records(1.0, 2.0, 3.0):
        watch.update(record)
    other.restore(watch.state())
    assert vars(other) == vars(watch)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EarlyStopping(patience=0), "patience .* not 0"),
        (lambda: EarlyStopping(patience=1.5), "patience .* not 1.5"),
        (lambda: EarlyStopping(min_delta=-1), "min_delta .* not -1"),
        (lambda: EarlyStopping(metric="accuracy"), "'accuracy' is unknown"),
        (lambda: KeepBest("loss"), "'loss' is unknown"),
    ],
)
def test_values_that_make_no_sense(make, message):
    with pytest.raises(OptionError, match=message):
        make()


def test_a_metric_that_is_not_there():
    with pytest.raises(OptionError, match="validation_accuracy is watched"):
        Watch("validation_accuracy").update(EpochRecord(epoch=1, train_loss=1.0, validation_loss=2.0))
