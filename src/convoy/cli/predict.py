"""``convoy predict``: the likeliest classes of image files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from convoy.cli.flags import Debug, Json, Quiet, Run, Which, check_choice, check_count
from convoy.cli.output import pairs, percent, result

_BATCH = 64


def predict(
    run: Run,
    /,
    *images: Annotated[str, Parameter(help="Image files.", metavar="IMAGE")],
    top: Annotated[int, Parameter(help="How many classes per image.", metavar="N")] = 3,
    which: Which = "best",
    device: Annotated[str, Parameter(help="cpu, cuda, cuda:1, …", metavar="NAME")] = "cpu",
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """The likeliest classes of images, which are cropped and resized to what the network was trained on."""
    check_choice("--which", which, ("best", "latest"))
    check_count("--top", top, 3)
    from convoy.errors import OptionError

    if not images:
        raise OptionError("no image was named", hint="for example: convoy predict runs/my-run picture.png")

    import numpy as np
    import torch

    from convoy.cli.saved import needs_facts, open_saved, put
    from convoy.cli.setup import check_device
    from convoy.data.folder import decode
    from convoy.strategies.batch import call
    from convoy.strategies.scoring import scores_of

    check_device(device)
    saved = open_saved(run, which)
    facts = needs_facts(saved)
    network = put(facts.build(), saved.weights).to(device).eval()
    mean = np.asarray(facts.mean, np.float32)[:, None, None]
    deviation = np.asarray(facts.deviation, np.float32)[:, None, None]
    pixels = [decode(Path(image), facts.sample_shape) for image in images]  # all are there before any is classified
    found: list[dict[str, Any]] = []
    with torch.no_grad():
        for start in range(0, len(images), _BATCH):
            batch = (np.stack(pixels[start : start + _BATCH]).astype(np.float32) - mean) / deviation
            scores = scores_of(call(network, torch.from_numpy(batch).to(device)))
            if scores is None:
                raise OptionError(f"model {facts.model} returns no class scores", hint="predict is for classifiers")
            for image, row in zip(images[start:], torch.softmax(scores.float(), 1).cpu(), strict=False):
                likely = row.topk(min(top, len(row)))
                classes = zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
                best = [{"class": facts.classes[c], "index": c, "probability": p} for c, p in classes]
                found.append({"image": image, "classes": best})
    rows = [(f["image"], ", ".join(f"{c['class']} {percent(c['probability'])}" for c in f["classes"])) for f in found]
    result({"run": run, "model": facts.model, "predictions": found}, pairs(rows), as_json=json)
    return 0
