"""The cut form: the lower part's backward pass starts from a predicted signal, right after its own forward pass."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from convoy.errors import OptionError
from convoy.schedule.plan import megabytes
from convoy.strategies.speculative import kernels
from convoy.strategies.speculative.acceptance import Selection, by_chance, by_draw, by_signal, signal_distance
from convoy.strategies.speculative.lower import Memory, Part
from convoy.strategies.speculative.predictors import Predictor, Room
from convoy.strategies.speculative.region import Region, label_specs, logits_of
from convoy.strategies.speculative.registry import Choice
from convoy.strategies.tasks.ops import Frame
from convoy.strategies.tasks.units import Units


def make_predictor(
    units: Units, region: Region, choice: Choice, limit_bytes: int, seed: int, channels_last: bool
) -> Predictor:
    """Raises OptionError where what it remembers does not fit."""
    classes = units.specs[logits_of(units)].shape[1]
    room = Room(label_specs(units.graph, region.start), classes, limit_bytes, seed, channels_last)
    need = choice.kind.bytes(room)
    if need > limit_bytes:
        raise OptionError(
            f"predictor {choice.kind.name} holds {megabytes(need)} for {classes} classes at {region.start}, and memory "
            f"is {megabytes(limit_bytes)}",
            hint="raise memory, or cut where the tensor is smaller",
        )
    return choice.kind(room)


def cut_part(
    units: Units, region: Region, predictor: Predictor, choice: Choice, threshold: float, seed: int, channels_last: bool
) -> Part:
    """What is lowered for the cut form."""
    logits = logits_of(units)
    image = next(n.name for n in units.graph.nodes if n.kind == "input")
    values = {"softmax": f"y.{logits}", "activation": f"y.{region.start}", "image": f"y.{image}"}
    wanted = tuple(values[want] for want in predictor.wants)

    def test(frame: Frame, speculated: Tensor | None, exact: Tensor) -> Selection:
        if choice.dithered:
            return by_draw(signal_distance(speculated, exact), threshold, seed, frame.batch)
        measured = by_signal(speculated, exact, threshold)
        if choice.chance is None:
            return measured
        drawn = by_chance(exact.shape[0], choice.chance, seed, frame.batch, choice.unbiased)
        return replace(drawn, distance=measured.distance)

    part = Part(region.start, region.inside, kernels.compare(test), (), None)
    if predictor.silent:
        return part
    layout = torch.channels_last if channels_last else torch.contiguous_format
    learn = Memory(
        "signal",
        kernels.learn(predictor, predictor.wants, layout),
        ("t", f"d.{region.start}", *wanted),
    )
    return replace(
        part,
        predict=kernels.predict(predictor, predictor.wants, layout),
        predicted_from=("t", *wanted),
        start_memory=("Msignal",),
        memories=(learn,),
    )
