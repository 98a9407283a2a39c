import pytest

from convoy.errors import LOWER_RATE, RESUME, Diverged, Stalled, WorkerFailed
from convoy.training.advice import advise
from convoy.training.run_dir import RunDirectory


def advised(error, suspects=None, run=None):
    advise(error, suspects, run)
    return error.hint


def test_a_divergence_names_what_the_strategy_does_to_the_step():
    assert advised(Diverged("nan", batch=3), "correction 'spike'") == f"correction 'spike'; {LOWER_RATE}"
    assert advised(Diverged("nan")) == LOWER_RATE
    assert "no weight has been updated yet" in advised(Diverged("nan", batch=0), "correction 'spike'")


def test_what_failed_is_resumed_where_there_is_a_checkpoint_only(tmp_path):
    def failed():
        return WorkerFailed("worker 1 died", hint=RESUME)

    run = RunDirectory.create(tmp_path, model="net", strategy="pipelined", name="one")
    for hint in (advised(failed(), run=run), advised(failed())):
        assert "--resume" not in hint and "save_every" in hint
    assert "no checkpoint was written yet" in advised(failed(), run=run) and "run_dir" in advised(failed())
    (run.checkpoints / "00000008").mkdir()
    assert f"convoy train --resume {run.path}," in advised(failed(), run=run)


@pytest.mark.parametrize("hint", [None, "raise watchdog_seconds"])
def test_other_hints_stay(hint):
    assert advised(Stalled("nothing moved", hint=hint)) == hint
    error = ValueError("not ours")
    advise(error, "spike", None)
    assert not hasattr(error, "hint")
