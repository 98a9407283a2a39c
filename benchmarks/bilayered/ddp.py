"""DistributedDataParallel on the same unequal cores: what nodes do that meet after every mini-batch."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "speed"))

import numpy as np
import torch
from cores import pin, sent
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from workload import Workload

from convoy.strategies.batch import prepare_model
from convoy.strategies.bilayered.samples import samples_of


class Ddp:
    """``options["sizes"]``: samples of each process in a mini-batch; ``options["cores"]``: where it is kept.

    The loss is scaled so that the averaged gradient is that of all samples of the mini-batch."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        from contenders import join_group

        torch.set_num_threads(1)
        self._rank, self._sizes = options["rank"], options["sizes"]
        join_group(options)
        pin(0, options["cores"][self._rank])
        work = Workload(*options["work"])
        model, self._optimizer = work.parts()
        prepare_model(model, self._optimizer, "cpu", True)
        self._model, self._loss = DistributedDataParallel(model), work.loss
        self._samples = samples_of(work.data, seed=work.seed, held_out=False)
        self._bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        self._order = np.random.default_rng(work.seed).permutation(self._samples.size)
        self._steps(options["warm_up"])

    def info(self) -> Mapping[str, Any]:
        return {"bytes": self._bytes, "samples": self._samples.size, "batch": sum(self._sizes)}

    def measure(self, steps: int) -> Mapping[str, Any]:
        dist.barrier()
        began, before = time.perf_counter(), sent()
        self._steps(steps)
        return {"seconds": (time.perf_counter() - began) / steps, "bytes_sent": (sent() - before) / steps}

    def _steps(self, count: int) -> None:
        """Each process reads ahead its own part of a mini-batch, as a node of BiLayered does."""
        whole, mine = sum(self._sizes), self._sizes[self._rank]
        first = sum(self._sizes[: self._rank])
        starts = [number * whole % (len(self._order) - whole) for number in range(count)]
        batches = [np.sort(self._order[start + first : start + first + mine]) for start in starts]
        for x, y in self._samples.fetch(batches, 1):
            self._optimizer.zero_grad(set_to_none=True)
            loss = self._loss(self._model(x), y) * (mine * len(self._sizes) / whole)
            loss.backward()
            self._optimizer.step()
