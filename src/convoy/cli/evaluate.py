"""``convoy evaluate``: loss and accuracy of a trained network."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from convoy.cli.flags import Debug, Json, Quiet, Run, Which, check_choice, check_count
from convoy.cli.output import note, pairs, percent, result


def evaluate(
    run: Run,
    *,
    model: Annotated[str | None, Parameter(help="The network, where the file does not say.", metavar="NAME")] = None,
    data: Annotated[str | None, Parameter(help="Other data than the run's.", metavar="KIND[:DIR]")] = None,
    part: Annotated[str, Parameter(help="Which samples.", metavar="validation|train")] = "validation",
    which: Which = "best",
    batch_size: Annotated[int, Parameter(help="Samples at once.", metavar="N")] = 256,
    limit: Annotated[int | None, Parameter(help="Use only so many samples.", metavar="N")] = None,
    device: Annotated[str, Parameter(help="cpu, cuda, cuda:1, …", metavar="NAME")] = "cpu",
    precision: Annotated[str, Parameter(help="Numbers to compute with.", metavar="float32|bfloat16")] = "float32",
    threads: Annotated[int | None, Parameter(help="Cores to use.", metavar="N")] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Loss and accuracy of a trained network on the samples it was not trained on, or on others."""
    check_choice("--part", part, ("validation", "train"))
    check_choice("--which", which, ("best", "latest"))
    check_choice("--precision", precision, ("float32", "bfloat16"))
    check_count("--batch-size", batch_size, 256)
    check_count("--threads", threads, 2)
    check_count("--limit", limit, 1000)

    import torch

    from convoy.cli.saved import Facts, open_saved, put
    from convoy.cli.setup import check_device
    from convoy.data import Loader, open_data
    from convoy.errors import DataError, OptionError
    from convoy.strategies.base import Settings
    from convoy.training.evaluation import evaluate as measure

    check_device(device)
    saved = open_saved(run, which)
    facts = saved.facts
    spec = data or (facts.data if facts else None)
    if spec is None:
        raise OptionError(f"{saved.path} does not say what it was trained on", hint="name the data with --data")
    square = facts is not None and facts.sample_shape[1] == facts.sample_shape[2]
    size = facts.sample_shape[1] if facts is not None and square else None
    bundle = open_data(spec, batch_size=batch_size, image_size=size, augment=False, limit=limit)
    if facts is None:
        if model is None:
            raise OptionError(f"{saved.path} does not say which network it is", hint="name it with --model")
        facts = Facts.of(model, spec, bundle)
    elif bundle.sample_shape != facts.sample_shape or len(bundle.classes) != len(facts.classes):
        raise DataError(
            f"{spec} has {len(bundle.classes)} classes of {_size(bundle.sample_shape)}, but the network was made for "
            f"{len(facts.classes)} of {_size(facts.sample_shape)}",
            hint=f"it was trained on {facts.data}",
        )
    source = (bundle.validation if part == "validation" else bundle.train).source
    # Prepared as the network was trained, also where the data are others.
    loader = Loader(source, batch_size=batch_size, mean=facts.mean, deviation=facts.deviation)
    network = put(facts.build(), saved.weights).to(device)
    for sentence in bundle.notes:
        note(f"note: {sentence}", quiet=quiet)
    settings = Settings(precision=precision, device=device)
    found = measure(network, torch.nn.CrossEntropyLoss(), loader, settings, threads or torch.get_num_threads())
    values = {"run": run, "model": facts.model, "data": spec, "part": part, **found.to_dict()}
    rows = [("accuracy", f"{percent(found.accuracy)} of {found.samples} samples"), ("loss", f"{found.loss:.4f}")]
    result(values, pairs(rows), as_json=json)
    return 0


def _size(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))
