"""Everything that ``convoy train`` can be told, once: as options of the command and as keys of ``run.toml``.

An option ``--batch-size 128`` is the key ``batch_size = 128``. The command line goes before the file, the file before
the defaults. Options of the command line arrive as text; both ways the same rules check them.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from convoy.cli.complaint import complaint
from convoy.errors import InputError, OptionError
from convoy.strategies.values import parsed_size


def _listed(value: Any) -> Any:
    """``"a,b"`` as ``["a", "b"]``; lists and the rest stay."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _number(value: Any) -> Any:
    """``"5"`` as 5 and ``"0.5"`` as 0.5; the rest stays."""
    if isinstance(value, str) and re.fullmatch(r"\d*\.?\d+", value):
        return float(value) if "." in value else int(value)
    return value


def _nodes(value: Any) -> Any:
    """``"3"`` as 3 and ``"2,1,1"`` as its numbers; the rest stays."""
    return _listed(value) if isinstance(value, str) and "," in value else value


def _saving(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


_SPECULATIVE = "speculative"
_PIPELINED = "pipelined hybrid"  # a hybrid hands these on to its pipeline

_BILAYERED = "bilayered"

Count = Annotated[int, Field(ge=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Numbers = Annotated[tuple[int, ...], BeforeValidator(_listed)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


def _option(group: str, text: str, default: Any = None, *, of: str = "", value: str = "", **rules: Any) -> Any:
    """A field: the group in the help, the help's text, the strategies it belongs to (none: all), its placeholder."""
    extra: Any = {"group": group, "of": of.split(), "value": value}
    return Field(default, description=text, json_schema_extra=extra, **rules)


class TrainConfig(BaseModel):
    """A run as it was asked for. ``config.toml`` of a run folder holds exactly this."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    model: str = _option("What", "A network by name, or your own as module:callable.", "", value="NAME")
    data: str = _option(
        "What",
        "digits, mnist, cifar10, cifar100 or folder; :DIR says where the files are.",
        "digits",
        value="KIND[:DIR]",
    )
    weights: str | None = _option("What", "Begin with these weights: a safetensors file or a run folder.", value="PATH")
    image_size: Count | None = _option("What", "Resize images to so many pixels a side.", value="N")
    augment: bool | None = _option("What", "Random crops and flips. By default for the CIFARs only.")
    limit: Count | None = _option("What", "Use only so many samples of each part, drawn by the seed.", value="N")

    epochs: Count = _option("Training", "Passes over the training data.", 10, value="N")
    batch_size: Count = _option("Training", "Samples in a mini-batch.", 64, value="N")
    optimizer: Literal["sgd", "adamw"] = _option("Training", "The rule for updates.", "sgd")
    lr: Positive = _option("Training", "Learning rate; with a schedule, the highest.", 0.05, value="X")
    momentum: Share = _option("Training", "Momentum of sgd.", 0.9, value="X")
    nesterov: bool = _option("Training", "Nesterov's form of momentum.", False)
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = _option(
        "Training", "Pull of the weights towards zero.", 5e-4, value="X"
    )
    lr_schedule: Literal["constant", "cosine", "one-cycle", "step"] = _option(
        "Training", "Course of the learning rate; step divides it by 10 after 1/2 and 3/4 of the epochs.", "cosine"
    )
    clip: Positive | None = _option("Training", "Bound on the norm of the gradient, per stage.", value="X")
    keep_best: bool = _option("Training", "End with the weights of the best epoch.", False)
    early_stopping: Count | None = _option(
        "Training", "Stop after so many epochs without a lower validation loss.", value="N"
    )

    strategy: str = _option("Strategy", "How the work is spread: {strategies}.", "sequential", value="NAME")
    first: str | None = _option("Strategy", "What trains until the switch: pipelined.", of="hybrid", value="NAME")
    then: str | None = _option("Strategy", "What trains after it: sequential.", of="hybrid", value="NAME")
    switch: Annotated[int | float | str, BeforeValidator(_number)] | None = _option(
        "Strategy",
        "When: after 5 epochs, after 0.5 of the run, stall[:N] (validation not better for N epochs), batch:N.",
        of="hybrid",
        value="5|0.5|stall|batch:N",
    )
    inner: str | None = _option(
        "Strategy",
        "tasks: every step as a graph of tasks, on workers of one thread each.",
        of=f"sequential hybrid {_BILAYERED}",
        value="whole|tasks",
    )
    stages: Annotated[Literal["auto"] | int, BeforeValidator(_saving)] | None = _option(
        "Strategy",
        "Stages, cut where their measured cost is balanced; auto: also clock and micro-batches from a forecast.",
        of=_PIPELINED,
        value="N|auto",
    )
    max_staleness: float | None = _option(
        "Strategy",
        "Refuse, or do not choose, weights that are on average older than so many updates.",
        of=_PIPELINED,
        value="X",
    )
    cuts: Names | None = _option(
        "Strategy", "Instead: the modules that begin stages 2, 3, …", of=_PIPELINED, value="NAME,…"
    )
    ppv: Numbers | None = _option("Strategy", "Instead: the layers after which to cut.", of=_PIPELINED, value="N,…")
    placement: str | None = _option(
        "Strategy",
        "A worker per stage, or one for either pass. Concurrent: who does a task, by costs or by its kind alone.",
        of=f"{_PIPELINED} concurrent",
        value="colocated|split, planned|kind",
    )
    clock: str | None = _option(
        "Strategy",
        "When a stage works on which batch: as published, or with half the staleness.",
        of=_PIPELINED,
        value="registers|1f1b",
    )
    slack: int | None = _option(
        "Strategy", "More batches in flight than the 1f1b clock needs, against waiting.", of=_PIPELINED, value="N"
    )
    accumulate: int | None = _option("Strategy", "Micro-batches that a mini-batch enters in.", of=_PIPELINED, value="N")
    correction: str | None = _option(
        "Strategy",
        "Against staleness: stash, predict, predict:momentum, spike, pipemare, dc-asgd, stage-lr, a sum, or none.",
        of=_PIPELINED,
        value="NAME[+NAME]",
    )
    recut: str | None = _option(
        "Strategy", "auto: cut anew where the running workers' loads differ.", of=_PIPELINED, value="off|auto"
    )
    engine: str | None = _option(
        "Strategy",
        "What runs the workers; inline: all in one thread, the oracle. threads: not bilayered. streams (CUDA): "
        "pipelined, hybrid, concurrent. ray: pipelined, hybrid, bilayered.",
        of=f"{_PIPELINED} {_SPECULATIVE} concurrent {_BILAYERED}",
        value="auto|inline|threads|streams|ray",
    )
    groups: Count | None = _option(
        "Strategy", "Groups of output channels a layer goes in. By default from costs.", of="concurrent", value="N"
    )
    form: str | None = _option(
        "Strategy",
        "What is speculated: all by outcomes, or the part below a cut.",
        of=_SPECULATIVE,
        value="faithful|cut",
    )
    cut: Annotated[int | str, BeforeValidator(_number)] | None = _option(
        "Strategy",
        "The module that begins the upper part, or the layer before it; faithful: where true outcomes begin.",
        of=_SPECULATIVE,
        value="NAME|N",
    )
    predictor: str | None = _option(
        "Strategy",
        "label-last, label-mean, error-scaled, per-sample, linear, network, zero, "
        "dithered:NAME, random:X or unbiased:NAME:X.",
        of=_SPECULATIVE,
        value="NAME",
    )
    threshold: Annotated[float, Field(ge=0)] | None = _option(
        "Strategy", "Distance below which a sample keeps what was speculated; 0 is exact.", of=_SPECULATIVE, value="X"
    )
    warmup: Count | None = _option("Strategy", "Exact mini-batches before speculating.", of=_SPECULATIVE, value="N")
    controller: str | None = _option(
        "Strategy",
        "auto: speculate while probes agree; always: regardless.",
        of=_SPECULATIVE,
        value="auto[:ON,OFF,EVERY]|always[:EVERY]",
    )
    memory: Annotated[int, Field(ge=1), BeforeValidator(parsed_size)] | None = _option(
        "Strategy", "Bound on what is remembered, such as 256MB.", of=_SPECULATIVE, value="BYTES"
    )
    nodes: Annotated[int | tuple[float, ...], BeforeValidator(_nodes)] | None = _option(
        "Strategy", "How many nodes, or their nominal speeds.", of=_BILAYERED, value="N|X,X,…"
    )
    update: str | None = _option(
        "Strategy",
        "How pushes are merged: agwu and sgwu as published, their mended forms, or local-sgd.",
        of=_BILAYERED,
        value="agwu[-mended]|sgwu[-mended]|local-sgd",
    )
    allocation: str | None = _option(
        "Strategy", "How samples are shared out.", of=_BILAYERED, value="idpa[-mended]|even"
    )
    batches: Count | None = _option("Strategy", "Batches that samples are allocated in.", of=_BILAYERED, value="N")
    round: Annotated[int | str, BeforeValidator(_number)] | None = _option(
        "Strategy", "Push after a local pass, or after so many mini-batches.", of=_BILAYERED, value="pass|N"
    )
    quality: bool | None = _option(
        "Strategy", "Weigh pushes by their accuracy on held-out samples. By default as the update needs.", of=_BILAYERED
    )
    deltas: str | None = _option(
        "Strategy", "Precision in which weights travel.", of=_BILAYERED, value="float32|bfloat16"
    )
    address: str | None = _option(
        "Strategy",
        "With --engine ray: the cluster, HOST:PORT or auto. By default this machine.",
        of=f"{_PIPELINED} {_BILAYERED}",
        value="ADDRESS",
    )
    insecure: bool | None = _option(
        "Strategy", "Take a Ray cluster that asks for no token.", of=f"{_PIPELINED} {_BILAYERED}"
    )

    seed: Annotated[int, Field(ge=0, lt=2**63)] = _option("Machine", "Keys all that is drawn by chance.", 0, value="N")
    precision: Literal["float32", "bfloat16"] = _option("Machine", "Numbers that passes compute with.", "float32")
    device: str = _option("Machine", "cpu, cuda, cuda:1, …", "cpu", value="NAME")
    threads: Count | None = _option("Machine", "Cores to use in all. By default all there are.", value="N")
    max_memory: Annotated[int, Field(ge=1), BeforeValidator(parsed_size)] | None = _option(
        "Machine", "Refuse a pipeline that would hold more, such as 2GB.", of=_PIPELINED, value="BYTES"
    )

    run_dir: str = _option("Run", "Where the run's folder is made.", "runs", value="DIR")
    name: str | None = _option("Run", "Its name. By default date, model and strategy.", value="NAME")
    save_every: Annotated[Literal["epoch", "end"] | Count, BeforeValidator(_saving)] = _option(
        "Run", "When to save: every epoch, every so many mini-batches, or at the end.", "epoch", value="epoch|end|N"
    )
    trace: bool = _option("Run", "Record every action, as a trace for Perfetto.", False)
    tensorboard: str | None = _option("Run", "Also write scalars for TensorBoard there.", value="DIR")


def applies(key: str, strategy: str) -> bool:
    """Whether the option belongs to the strategy (or to all)."""
    of = about(key)["of"]
    return not of or strategy in of


def about(key: str) -> Mapping[str, Any]:
    extra = TrainConfig.model_fields[key].json_schema_extra
    assert isinstance(extra, dict)
    return extra


def strategy_fields(config: TrainConfig) -> dict[str, Any]:
    """The fields of the strategy that were given."""
    keys = (key for key in TrainConfig.model_fields if about(key)["of"] and about(key)["group"] == "Strategy")
    return {key: value for key in keys if (value := getattr(config, key)) is not None}


def read_file(path: Path, more: Sequence[str] = ()) -> dict[str, Any]:
    """The keys of a config file, those of a run and ``more``; dashes in them count as underscores. Raises InputError,
    with a suggestion for an unknown key."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no config file {path}", hint="check the path after --config") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise InputError(f"config file {path} cannot be read: {reason}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"config file {path} is no TOML: {error}", hint="mend the line named") from error
    values = {key.replace("-", "_"): value for key, value in table.items()}
    known = (*TrainConfig.model_fields, *more)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "the keys are those of: convoy train --help"
            raise OptionError(f"config file {path} has the unknown key {key}", hint=hint)
    return values


def merge(given: Mapping[str, Any], file: Path | None = None) -> TrainConfig:
    """The config from what the command line gave and a file. Raises OptionError for the first value that is wrong."""
    from_file = {} if file is None else read_file(file)
    try:
        config = TrainConfig(**{**from_file, **given})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        value, source = (given[key], None) if key in given else (from_file[key], file)
        raise complaint(key, source, value, first, TrainConfig.model_fields[key]) from None
    if not config.model:
        raise OptionError("no model was named", hint="for example: convoy train lenet5 --data digits")
    if config.nesterov and (config.optimizer != "sgd" or config.momentum == 0):
        raise OptionError("nesterov needs optimizer sgd with a momentum", hint="drop it, or set --momentum 0.9")
    return config
