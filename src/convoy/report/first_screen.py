"""What the first screen says: what ran, on what, how it ended, and the few numbers that matter."""

from __future__ import annotations

import statistics

from convoy.drawing.table import shown
from convoy.report import curves, plans
from convoy.report.files import RunFiles, number

_COMMON = {
    "model", "data", "weights", "image_size", "augment", "limit", "epochs", "batch_size", "optimizer", "lr", "momentum",
    "nesterov", "weight_decay", "lr_schedule", "clip", "keep_best", "early_stopping", "strategy", "seed", "precision",
    "device", "threads", "max_memory", "run_dir", "name", "save_every", "trace", "tensorboard", "settings",
    "scheduler_interval",
}  # fmt: skip
"""Keys of a configuration that do not belong to the strategy."""


def said(run: RunFiles, key: str, default: str = "") -> str:
    """A value of the configuration, or of what the run said when it began."""
    begin = next((row for row in run.runs if row.get("name") == "begin"), {})
    value = run.config.get(key, begin.get(key))
    if isinstance(value, dict):
        value = value.get("name")
    return default if value is None else str(value)


def title(run: RunFiles) -> str:
    strategy = said(run, "strategy") or str(run.plan.get("strategy", ""))
    return " · ".join(part for part in (said(run, "model", run.path.name), said(run, "data"), strategy) if part)


def status(run: RunFiles) -> tuple[str, str]:
    """How the run ended, and whether that is good, open or bad."""
    last = run.runs[-1] if run.runs else {}
    name = last.get("name")
    if name == "end":
        ended = str(last.get("status", "finished"))
        return ended, "bad" if ended == "failed" else "good"
    if name == "interrupted":
        return "interrupted", "open"
    return ("unfinished", "open") if run.runs or run.steps else ("nothing ran", "bad")


def headline(run: RunFiles) -> list[str]:
    """What came of it, in sentences."""
    out = []
    last = run.runs[-1] if run.runs else {}
    if last.get("status") == "failed":
        out.append(
            f"The run failed after {last.get('batches', '?')} mini-batches: {last.get('error', 'no reason told')}."
        )
    elif status(run)[0] == "interrupted":
        out.append("The run was interrupted; convoy train --resume goes on with it.")
    elif status(run)[0] == "unfinished":
        out.append("The run goes on, or was killed: its end is not in the events.")
    if not run.epochs:
        out.append(f"No epoch is complete; {len(run.steps)} mini-batches are.")
        return out
    seconds = curves.training_seconds(run.epochs)[-1]
    done = run.epochs[-1]["epoch"]
    time = f"{done} {'epoch' if done == 1 else 'epochs'} in {duration(seconds)} of training"
    best = best_epoch(run)
    if best is None:
        loss = number(run.epochs[-1].get("train_loss"))
        out.append(f"{time}" + ("." if loss is None else f"; the training loss is {loss:.4f}."))
        return out
    epoch, accuracy = best
    final = number(run.epochs[-1].get("validation_accuracy"))
    end = "" if final is None or final == accuracy else f"; the last epoch's {percent(final)}"
    out.append(f"{percent(accuracy)} of the validation samples after epoch {epoch}{end}. {time}.")
    return out


def tiles(run: RunFiles) -> list[tuple[str, str, str]]:
    """The few numbers that matter."""
    out = []
    best = best_epoch(run)
    if best is not None:
        out.append(("best accuracy", percent(best[1]), f"validation, epoch {best[0]}"))
    if run.epochs:
        out.append(("training time", duration(curves.training_seconds(run.epochs)[-1]), "without validation"))
        speed = curves.settled(curves.column(run.epochs, "samples_per_second"), run.epochs)
        if speed:
            out.append(("throughput", f"{statistics.median_high(speed):.0f} samples/s", "median epoch"))
    shares = [
        curves.settled([one.get(lane) for one in curves.busy(run.epochs)], run.epochs)
        for lane in curves.workers(run.epochs)
    ]
    means = [sum(values) / len(values) for values in shares if values]
    if means:
        several = f"mean of {len(means)} workers" if len(means) > 1 else "share of the time at work"
        out.append(("utilisation", f"{sum(means) / len(means):.0%}", several))
    for plan, epochs in plans.plans(run)[-1:]:
        row = next((r for r in plans.compared(run, plan, epochs) if r[0] == "time of a step"), None)
        if row is not None and row[1] is not None and row[2] is not None:
            out.append(("step", f"{row[2]:.1f} ms", f"{row[1]:.1f} ms predicted"))
    return out


def facts(run: RunFiles) -> list[tuple[str, str]]:
    """What ran, on what."""
    e = run.environment
    machine = ", ".join(
        part
        for part in (
            str(e.get("processor", "")),
            f"{e['cores']} cores" if "cores" in e else "",
            f"{e['threads']} {'thread' if e['threads'] == 1 else 'threads'} per operator" if "threads" in e else "",
            ", ".join(map(str, e.get("cuda") or ())) if isinstance(e.get("cuda"), list) else "",
        )
        if part
    )
    software = ", ".join(f"{name} {e[key]}" for key, name in
                         (("convoy", "convoy"), ("torch", "PyTorch"), ("python", "Python")) if key in e)  # fmt: skip
    batch = said(run, "batch_size")
    training = ", ".join(
        part
        for part in (
            f"{said(run, 'optimizer')} at {said(run, 'lr')}" if said(run, "optimizer") else "",
            f"mini-batches of {batch}" if batch else "",
            f"{said(run, 'epochs')} epochs" if said(run, "epochs") else "",
            f"seed {said(run, 'seed')}" if said(run, "seed") else "",
            said(run, "precision"),
        )
        if part
    )
    rows = [
        ("model", said(run, "model")), ("data", said(run, "data")), ("strategy", strategy_in_words(run)),
        ("training", training), ("machine", machine), ("software", software),
        ("began", str(e.get("started", ""))), ("run", run.path.name),
    ]  # fmt: skip
    return [(name, value) for name, value in rows if value]


def strategy_in_words(run: RunFiles) -> str:
    """The strategy with the fields that were chosen."""
    chosen = run.config.get("strategy")
    if isinstance(chosen, dict):
        fields = {key: value for key, value in chosen.items() if key != "name" and value not in (None, False, [])}
        return f"{chosen.get('name', '')}: {shown(fields)}" if fields else str(chosen.get("name", ""))
    fields = {key: value for key, value in run.config.items() if key not in _COMMON}
    name = said(run, "strategy") or str(run.plan.get("strategy", ""))
    return f"{name}: {shown(fields)}" if fields else name


def best_epoch(run: RunFiles) -> tuple[int, float] | None:
    known = [(row["epoch"], v) for row in run.epochs if (v := number(row.get("validation_accuracy"))) is not None]
    return max(known, key=lambda pair: pair[1]) if known else None


def percent(share: float) -> str:
    return f"{share * 100:.2f} %"


def duration(seconds: float) -> str:
    """``75`` → ``1 min 15 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
