"""A node: a lease and weights in, a push and a parcel out. Its optimizer's state never leaves it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from convoy.errors import InternalError
from convoy.strategies.base import Loss, Settings
from convoy.strategies.batch import batch_size
from convoy.strategies.bilayered import tensors
from convoy.strategies.bilayered.course import Rows, apply, hyper_parameters
from convoy.strategies.bilayered.layout import Flat, Layout
from convoy.strategies.bilayered.ledger import Range
from convoy.strategies.bilayered.messages import Grant, Push
from convoy.strategies.bilayered.parcel import Parcel, seal
from convoy.strategies.bilayered.samples import Samples
from convoy.strategies.scoring import count_correct
from convoy.strategies.sequential import Sequential

PROBE_SECONDS = 0.3
_PROBE_MOST = 1000  # mini-batches


@dataclass(frozen=True, slots=True)
class Lease:
    """What a node is sent beside the weights: the grant, and the hyper-parameters of each mini-batch."""

    grant: Grant
    rows: Rows

    def header(self) -> dict[str, Any]:
        """JSON-ready; ``Lease.parse`` reads it back."""
        return {"grant": asdict(self.grant), "rows": self.rows}

    @classmethod
    def parse(cls, header: Mapping[str, Any]) -> Lease:
        grant = dict(header["grant"])
        ranges: tuple[Range, ...] = tuple((int(a), int(b)) for a, b in grant["ranges"])
        return cls(Grant(**{**grant, "ranges": ranges}), [list(row) for row in header["rows"]])


@dataclass(frozen=True, slots=True)
class Report:
    """What a round came to: ``loss_sum`` and ``correct`` over its ``samples`` (correct None where it has no meaning),
    ``steps`` mini-batches, ``seconds`` of work."""

    loss_sum: float
    correct: int | None
    samples: int
    steps: int
    seconds: float

    def header(self) -> dict[str, Any]:
        return asdict(self)


class Node:
    """Replica ``index`` of the model with an optimizer of its own.

    ``form``: of its parcels, "weights" or "bfloat16". ``clock`` measures rounds. Replica 0 draws the random numbers of
    a sequential run, the others their own.
    """

    def __init__(
        self,
        index: int,
        model: nn.Module,
        loss: Loss,
        optimizer: Optimizer,
        samples: Samples,
        *,
        settings: Settings,
        inner: str = "whole",
        form: str = "weights",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.index, self.model, self.optimizer = index, model, optimizer
        self.layout: Layout = tensors.layout_of(model)
        self._samples, self._form, self._clock = samples, form, clock
        self._plain, self._loss, self._settings = Sequential(inner), loss, settings
        self._step = self._plain.bind(model, loss, optimizer, settings=settings)
        self._sent: tuple[tuple[int, int], Flat, Flat] | None = None  # until the next lease: it may be asked for again

    def work(self, lease: Lease, weights: Flat) -> tuple[Push, Report, Parcel]:
        """Train the lease from ``weights``. What comes out depends on these, the optimizer's state and nothing else.

        Raises WorkerFailed, with the mini-batch named, when the model or the data do.
        """
        grant, began = lease.grant, self._clock()
        tensors.write(self.model, self.layout, weights)
        before = hyper_parameters(self.optimizer)
        batches = self._samples.minibatches(grant.ranges, grant.number, grant.start, grant.stop)
        rows = [groups for count, groups in lease.rows for _ in range(count)]
        if len(rows) < len(batches):
            raise InternalError(f"a lease of {len(batches)} mini-batches has hyper-parameters for {len(rows)}")
        self._step.restore({"batch": grant.step, "version": grant.step})
        loss_sum, correct, count = 0.0, 0, 0
        classified = True
        try:
            with _closing(self._samples.fetch(batches, grant.number)) as fetched:
                for (x, y), groups in zip(fetched, rows, strict=False):
                    apply(self.optimizer, groups)
                    result = self._step(x, y)
                    assert result is not None
                    size = batch_size(x)
                    loss_sum += float(result.loss) * size
                    right = count_correct(result.output, result.target) if classified else None
                    classified, correct, count = right is not None, correct + (right or 0), count + size
        finally:
            apply(self.optimizer, before)
        trained = tensors.read(self.model, self.layout)
        self._sent = ((grant.incarnation, grant.sequence), trained, weights)
        seconds = self._clock() - began
        report = Report(loss_sum, correct if classified else None, count, len(batches), seconds)
        push = Push(self.index, grant.incarnation, grant.sequence, seconds)
        return push, report, seal(self._form, trained, weights)

    def probe(self, seconds: float = PROBE_SECONDS) -> float:
        """Samples a second in training, data included: measured for so long, and two mini-batches at least, on a copy.
        Nothing of the node changes, and no random number is drawn from what it has."""
        model, optimizer = copy.deepcopy((self.model, self.optimizer))
        places = np.arange(min(self._samples.batch_size, self._samples.count))
        began = ended = self._clock()
        done = -1  # the first one warms up
        with (
            torch.random.fork_rng(devices=[]),
            self._plain.bind(model, self._loss, optimizer, settings=self._settings) as step,
            _closing(self._samples.fetch([places] * _PROBE_MOST, 1)) as fetched,
        ):
            for x, y in fetched:
                step(x, y)
                done, ended = done + 1, self._clock()
                if done == 0:
                    began = ended
                elif done > 1 and ended - began >= seconds:
                    break
        return done * len(places) / max(ended - began, 1e-9)

    def again(self, incarnation: int, sequence: int) -> Parcel:
        """The last parcel as a delta, for a server that has forgotten the version it began with."""
        if self._sent is None or self._sent[0] != (incarnation, sequence):
            raise InternalError(f"push {sequence} of node {self.index} is not at hand any more")
        _, trained, base = self._sent
        return seal("delta", trained, base)

    def reset(self) -> None:
        """A new incarnation begins: the optimizer forgets what it gathered."""
        self.optimizer.state.clear()
        self._sent = None

    def close(self) -> None:
        self._step.close()


@contextmanager
def _closing(fetched: Iterator[Any]) -> Iterator[Iterator[Any]]:
    """Ends the thread that reads ahead, where there is one."""
    try:
        yield fetched
    finally:
        close = getattr(fetched, "close", None)
        if close is not None:
            close()
