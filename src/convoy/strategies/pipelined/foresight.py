"""A plan made before its turn: a hybrid plans its second pipeline on the first mini-batch of the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from convoy.graph.split import cut_at_module
from convoy.strategies.base import Loss, Settings
from convoy.strategies.pipelined.assembly import feeds_of
from convoy.strategies.pipelined.balance_bench import Bench
from convoy.strategies.pipelined.optimizer import extent
from convoy.strategies.pipelined.planned import Planned
from convoy.strategies.pipelined.planner import plan_on, plan_pipeline

if TYPE_CHECKING:
    from convoy.strategies.pipelined.strategy import Pipelined


@dataclass(frozen=True)
class Foreseen:
    """``planned`` for a model in the ``form`` that it had."""

    planned: Planned
    form: tuple[Any, ...]

    @classmethod
    def of(
        cls, strategy: Pipelined, model: nn.Module, loss: Loss, x: Any, y: Any, settings: Settings, optimizer: Optimizer
    ) -> Foreseen:
        """Raises what planning, and taking in this batch, would."""
        planned = plan_pipeline(strategy, model, loss, x, y, settings, optimizer)
        feeds_of(planned, loss, x, y)
        return cls(planned, _form(model, optimizer))

    def now(self, model: nn.Module, loss: Loss, x: Any, y: Any, settings: Settings, optimizer: Optimizer) -> Planned:
        """What to train: that plan or, where the model was changed since (layers thawed, weights replaced), a new one
        of the same decisions."""
        if _form(model, optimizer) == self.form:
            return self.planned
        bench = Bench(model, loss, x, y, settings, optimizer)
        planned = self.planned
        cuts = [cut_at_module(bench.graph, name) for name in planned.names(planned.cuts)]
        return plan_on(bench, planned.strategy, loss, cuts)


def _form(model: nn.Module, optimizer: Optimizer) -> tuple[Any, ...]:
    """What a captured graph depends on besides values. The graph keeps the weights alive, so no id is used twice."""
    return (
        tuple(module.training for module in model.modules()),
        tuple((id(p), p.requires_grad) for p in model.parameters()),
        tuple(map(id, model.buffers())),
        extent(optimizer),
    )
