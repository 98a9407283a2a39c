"""``convoy export``: a trained network as a file for other programs."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from convoy.cli.flags import Debug, Json, Quiet, Run, Which, check_choice
from convoy.cli.output import result
from convoy.errors import MachineError, ModelError, OptionError

if TYPE_CHECKING:
    from convoy.cli.saved import Facts, Saved

_SUFFIXES = {".safetensors": "safetensors", ".onnx": "onnx"}


def export(
    run: Run,
    out: Annotated[str, Parameter(help="The file to write.", metavar="OUT")],
    /,
    *,
    to: Annotated[str | None, Parameter(help="The format. By default as OUT ends.", metavar="safetensors|onnx")] = None,
    which: Which = "best",
    force: Annotated[bool, Parameter(help="Write over a file that is there.", negative="", show_default=False)] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Write the weights under the model's own names (safetensors), or the whole network (ONNX).

    The ONNX file takes float32 [batch, channels, height, width], normalised as in training, and returns class scores.
    """
    target = Path(out)
    check_choice("--which", which, ("best", "latest"))
    form = to or _SUFFIXES.get(target.suffix.lower())
    if form is None:
        raise OptionError(f"{out!r} does not say which format is meant", hint="add --to safetensors or --to onnx")
    check_choice("--to", form, ("safetensors", "onnx"))
    if target.exists() and not force:
        raise OptionError(f"{out} exists already", hint="choose another name, or write over it with --force")
    if target.is_dir() or not target.parent.is_dir():
        reason = "is a folder" if target.is_dir() else f"cannot be written: there is no folder {target.parent}"
        raise OptionError(f"{out} {reason}", hint="name a file in a folder that exists")
    if form == "onnx" and importlib.util.find_spec("onnxscript") is None:
        raise MachineError("export to ONNX needs onnxscript, which is not installed", hint="pip install onnxscript")

    from convoy.cli.saved import open_saved

    saved = open_saved(run, which)
    content = _safetensors(saved) if form == "safetensors" else _onnx(saved)
    _write(target, content)
    values = {"run": run, "file": out, "format": form, "bytes": len(content)}
    result(values, f"wrote {out} ({form}, {len(content) / 1e6:.2f} MB)", as_json=json)
    return 0


def _safetensors(saved: Saved) -> bytes:
    import json

    import safetensors.torch
    import torch

    from convoy.cli.saved import METADATA_KEY

    tensors = {name: v.contiguous() for name, v in saved.weights.model.items() if isinstance(v, torch.Tensor)}
    metadata = {"format": "pt"}
    if saved.facts is not None:
        metadata[METADATA_KEY] = json.dumps(saved.facts.to_dict())
    return safetensors.torch.save(tensors, metadata=metadata)


def _onnx(saved: Saved) -> bytes:
    from convoy.cli.saved import needs_facts, put

    facts = needs_facts(saved)
    network = put(facts.build(), saved.weights).eval()
    try:
        return _converted(network, facts)
    except Exception as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"model {facts.model} cannot be written as ONNX: {first[0]}", hint="export it as safetensors"
        ) from error


def _converted(network: Any, facts: Facts) -> bytes:
    import torch

    example = torch.zeros(2, *facts.sample_shape)
    buffer = io.BytesIO()
    # What the exporter says to itself is not for the user.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (example,),
            input_names=["images"],
            output_names=["scores"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            dynamo=True,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("the exporter returned nothing")
        buffer.write(program.model_proto.SerializeToString())
    return buffer.getvalue()


def _write(target: Path, content: bytes) -> None:
    """Write aside, then rename: the file is whole or not there."""
    from convoy.training.files import machine_errors, sync_directory, write_synced

    aside = target.with_name(f".writing-{target.name}-{os.getpid()}")
    with machine_errors(target, "choose another file"):
        try:
            write_synced(aside, content)
            os.replace(aside, target)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        sync_directory(target.parent)
