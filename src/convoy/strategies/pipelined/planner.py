"""From a model and one batch to a plan and its stages: capture, measure, cut, predict."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from convoy.errors import OptionError
from convoy.graph.capture import capture
from convoy.graph.graph import Graph
from convoy.graph.split import Segment, allowed_cuts, cut_after_layer, cut_at_module, split
from convoy.strategies.base import Loss, Settings
from convoy.strategies.batch import batch_size
from convoy.strategies.pipelined.clock import delays, staleness_in_updates
from convoy.strategies.pipelined.plan import PipelinePlan, StagePlan, predict

if TYPE_CHECKING:
    from convoy.graph.cost import Profile
    from convoy.strategies.pipelined.strategy import Pipelined


@dataclass(frozen=True)
class Planned:
    """A plan together with the code of its stages. ``inputs`` are the value names of the model's own inputs."""

    plan: PipelinePlan
    graph: Graph
    segments: tuple[Segment, ...]
    inputs: tuple[str, ...]
    profile: Profile | None = None

    def bind_inputs(self, x: Any) -> Mapping[str, Any]:
        """``x`` as a batch brings it → value name → tensor."""
        args, kwargs = arguments(x)
        return self.graph.bind(args, kwargs)


def arguments(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a batch's ``x`` is passed to the model: a mapping by keyword, a tuple or list by position."""
    if isinstance(x, Mapping):
        return (), dict(x)
    if isinstance(x, (tuple, list)):
        return tuple(x), {}
    return (x,), {}


def available_threads(settings: Settings) -> int:
    """Cores this process may use, or fewer if the settings say so."""
    return settings.threads or len(os.sched_getaffinity(0))
