"""What the operations of speculation do to tensors; the plain ones are those of ``strategies/tasks/kernels``.

Two chains of signals run backwards through the part that is speculated: ``e``, the speculated ones of all samples, and
``r``, the exact ones of the rejected samples. A weight gradient is that of the mixed rows. The backward pass of a layer
is linear in the signal, so it may be had at once, or as the speculated gradient plus that of the differences of the
rejected rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from convoy.graph.rules import Parameters, Saved
from convoy.graph.rules import batch_norm_sums as sums
from convoy.strategies.speculative.acceptance import Selection, products
from convoy.strategies.speculative.frame import notes
from convoy.strategies.speculative.predictors import Predictor
from convoy.strategies.tasks.ops import Frame, Run
from convoy.strategies.tasks.units import Unit

Test = Callable[[Frame, "Tensor | None", Tensor], Selection]
"""(frame, speculated, exact signal [N, *S]) → who is computed exactly."""


def coupled(unit: Unit) -> bool:
    """Whether a sample's gradient depends on the other samples' gradients."""
    return unit.rule.rule.kind == "batch_norm" and bool(unit.rule.options.batch_statistics)


def predict(predictor: Predictor, wants: Sequence[str], layout: torch.memory_format) -> Run:
    """Target, then what the predictor wants → the speculated signal, as part of a mean over the mini-batch."""

    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        labels, *rest = args
        signal = predictor.predict(labels, _given(wants, rest)) / labels.shape[0]
        return (signal.contiguous(memory_format=layout) if signal.dim() == 4 else signal,)

    return run


def learn(predictor: Predictor, wants: Sequence[str], layout: torch.memory_format) -> Run:
    """Target, exact signal, then what the predictor wants."""

    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        labels, signal, *rest = args
        signal = signal * labels.shape[0]
        signal = signal.contiguous(memory_format=layout) if signal.dim() == 4 else signal
        predictor.learn(labels, signal, _given(wants, rest))
        return ()

    return run


def _given(wants: Sequence[str], values: Sequence[Tensor]) -> Mapping[str, Tensor]:
    return {
        want: torch.softmax(value.float(), 1) if want == "softmax" else value
        for want, value in zip(wants, values, strict=True)
    }


def compare(test: Test) -> Run:
    """Exact signal and, where there is one, the speculated one → who is rejected."""

    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        exact, speculated = args if len(args) == 2 else (args[0], None)
        selection = test(frame, speculated, exact)
        notes(frame)["selection"] = selection
        if speculated is not None:
            notes(frame)["signal"] = products([speculated], [exact])
        return (selection,)

    return run


def start_rows(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
    """Who is rejected, the exact signal and, where there is one, the speculated one → the rejected samples' rows."""
    selection, exact, *speculated = args
    if selection.none:
        return (None,)
    return (selection.scaled(speculated[0] if speculated else None, exact),)


def rows_input_grad(unit: Unit, wanted: Sequence[int]) -> Run:
    """Saved, who is rejected, their rows (and, of a layer that couples samples, all speculated signals) → their rows
    of the gradients of the inputs ``wanted``."""
    rule, mixes = unit.rule.rule, coupled(unit)

    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        (options, parameters, saved), selection, rows, *speculated = args
        if rows is None:
            return (None,) * len(wanted)
        if selection.all:
            gradients = rule.input_grad(options, parameters, saved, rows)
        elif mixes and not speculated:
            of, x = _normalised(unit, saved, parameters, selection)
            gradients = (sums.input_grad(x, sums.grad_affine(of, sums.grad_sums(options, x, of, rows)), rows),)
        elif mixes:
            whole = selection.mixed(speculated[0], rows)
            gradients = tuple(
                None if g is None else selection.rows(g) for g in rule.input_grad(options, parameters, saved, whole)
            )
        else:
            gradients = rule.input_grad(options, parameters, rule.select_samples(options, saved, selection.index), rows)
        return [gradients[place] for place in wanted]

    return run


def late_weight_grad(unit: Unit) -> Run:
    """Saved, who is rejected, their rows and, where there are any, the speculated signals → gradients of the mixed
    rows, one a trained parameter."""

    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        saved, selection, rows, *speculated = args
        return (_of_mixed(unit, saved, selection, rows, speculated[0] if speculated else None),)

    return run


def mended_weight_grad(unit: Unit) -> Run:
    """Saved, who is rejected, their rows, the speculated signals and the gradients these gave → those gradients, the
    differences of the rejected rows added."""
    rule, local, mixes = unit.rule.rule, unit.local, coupled(unit)

    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        saved, selection, rows, speculated, early = args
        if rows is None:
            return (early,)
        if selection.all or mixes:
            return (_of_mixed(unit, saved, selection, rows, speculated),)
        options, parameters, kept = saved
        difference = rows - selection.rows(speculated)
        gradients = rule.weight_grad(
            options, parameters, rule.select_samples(options, kept, selection.index), difference
        )
        return ([gradients[name].add_(e) for name, e in zip(local, early, strict=True)],)

    return run


def probed_weight_grad(unit: Unit) -> Run:
    """Saved, who would be rejected, the exact signals and the speculated ones, if any → the exact gradients. How those
    that speculation would have given compare with them goes to the frame."""

    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        saved, selection, exact, *speculated = args
        everything = Selection(selection.samples, torch.arange(selection.samples))
        gradients = _of_mixed(unit, saved, everything, exact, None)
        guess = speculated[0] if speculated else None
        rows = None if selection.none else selection.scaled(guess, exact)
        mixed = _of_mixed(unit, saved, selection, rows, guess)
        notes(frame)[f"agreement.{unit.name}"] = products(mixed, gradients)
        return (gradients,)

    return run


def _of_mixed(
    unit: Unit, saved: Any, selection: Selection, rows: Tensor | None, speculated: Tensor | None
) -> list[Any]:
    """Gradients of the trained parameters; zeros where nothing is sent back."""
    rule, (options, parameters, kept) = unit.rule.rule, saved
    if rows is None and speculated is None:
        return [torch.zeros_like(p) for p in unit.parameters]
    if rows is None:
        grad = speculated
    elif selection.all:
        grad = rows
    elif speculated is None and coupled(unit):
        of, x = _normalised(unit, kept, parameters, selection)
        gradients = sums.weight_grad(parameters, sums.grad_sums(options, x, of, rows))
        return [gradients[name] for name in unit.local]
    elif speculated is None:
        kept, grad = rule.select_samples(options, kept, selection.index), rows
    else:
        grad = selection.mixed(speculated, rows)
    assert grad is not None
    gradients = rule.weight_grad(options, parameters, kept, grad)
    return [gradients[name] for name in unit.local]


def _normalised(unit: Unit, saved: Saved, parameters: Parameters, selection: Selection) -> tuple[sums.Affine, Tensor]:
    """How BatchNorm normalised the whole mini-batch, and the rejected samples' rows of its input. Where the others'
    signals are zero, their rows add nothing to its sums, and their own gradients are not asked for."""
    return sums.affine_of(unit.rule.options, parameters, saved), selection.rows(saved.tensors[0])
