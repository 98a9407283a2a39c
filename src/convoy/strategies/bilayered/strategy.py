"""``BiLayered``: what a user may choose about training on unequal nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

from convoy.errors import OptionError
from convoy.strategies.base import DataStep, DataStrategy, Loss, Settings
from convoy.strategies.bilayered.state import ALLOCATIONS, DELTAS, UPDATES
from convoy.strategies.values import check_one_of, check_switch, whole_number

if TYPE_CHECKING:
    import torch
    from torch import nn

    from convoy.events.event import Sink

ENGINES = ("auto", "inline", "ray")
INNER = ("whole", "tasks")
PUBLISHED = ("agwu", "sgwu")
"""Updates whose formula needs the measured accuracy."""
MOST_NODES = 256
"""So many were simulated; one parameter server is the bottleneck long before."""
WIDEST = 1000.0
"""A node that is so many times slower than another would hold no samples to speak of."""


@dataclass(frozen=True, kw_only=True)
class BiLayered(DataStrategy):
    """Bi-layered parallel training (Chen et al. 2019): replicas on unequal nodes and a parameter server.

    ``nodes``: how many, or their nominal speeds, such as ``(2, 1, 1)``. ``update``: "agwu" and "sgwu" as published,
    "agwu-mended", "sgwu-mended", or "local-sgd". ``allocation`` of samples: "idpa" (published), "idpa-mended" or
    "even". ``batches``: allocation batches A (None: 4, or fewer in a short run; 1 where it is even). ``round``: "pass"
    (a node pushes after each local pass) or a number of mini-batches. ``quality``: whether the accuracy of each push
    on held-out samples counts (None: where the rule is a published one). ``deltas``: "float32", or "bfloat16" for
    half of the bytes. ``inner``: each node's step whole or as "tasks". ``engine``: "inline" trains all replicas in one
    thread, in virtual time: the oracle ("auto" is the same); "ray": an actor a node. ``address``: of the Ray cluster,
    "HOST:PORT" or "auto"; None is this machine. ``insecure``: take a cluster without token authentication.

    Only ``Trainer.fit`` can carry it out. Raises OptionError for values that make no sense alone or together.
    """

    name: ClassVar[str] = "bilayered"

    nodes: int | Sequence[float] = 2
    update: str = "agwu-mended"
    allocation: str = "idpa-mended"
    batches: int | None = None
    round: int | str = "pass"
    quality: bool | None = None
    deltas: str = "float32"
    inner: str = "whole"
    engine: str = "auto"
    address: str | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", _nodes(self.nodes))
        for name, choices in (
            ("update", UPDATES),
            ("allocation", ALLOCATIONS),
            ("deltas", DELTAS),
            ("inner", INNER),
            ("engine", ENGINES),
        ):
            check_one_of(name, getattr(self, name), choices)
        if self.batches is not None:
            batches = whole_number("batches", self.batches, "give 1 (all samples at once) or more")
            object.__setattr__(self, "batches", batches)
        if self.round != "pass":
            hint = "give pass, or the number of mini-batches between two pushes"
            object.__setattr__(self, "round", whole_number("round", self.round, hint))
        check_switch("quality", self.quality, (None, True, False))
        check_switch("insecure", self.insecure)
        if self.address is not None and (not isinstance(self.address, str) or not self.address):
            raise OptionError(f"address is {self.address!r}", hint="give HOST:PORT of a Ray cluster, or auto")
        if self.quality is False and self.update in PUBLISHED:
            raise OptionError(
                f"update {self.update!r} weighs every push by its measured accuracy, and quality is off",
                hint=f"leave quality out, or use {self.update}-mended",
            )
        if self.quality and self.update == "local-sgd":
            raise OptionError("local-sgd does not weigh by quality", hint="use sgwu-mended, or leave quality out")
        if self.address is not None and self.engine == "inline":
            raise OptionError(
                f"address {self.address} is given, and engine 'inline' stays in this process", hint="drop one of them"
            )
        if (self.address is not None or self.insecure) and self.engine != "ray":
            raise OptionError(
                f"address and insecure are for engine 'ray', and engine is {self.engine!r}", hint="add engine='ray'"
            )

    @property
    def speeds(self) -> tuple[float, ...]:
        """Nominal speeds, one a node."""
        return (1.0,) * self.nodes if isinstance(self.nodes, int) else tuple(self.nodes)

    @property
    def measures_quality(self) -> bool:
        return self.update in PUBLISHED if self.quality is None else self.quality

    def batches_for(self, passes: int) -> int:
        """A for a run of so many passes. Raises OptionError where a batch would never be trained."""
        most = 2 * passes - 1
        if self.batches is None:
            return 1 if self.allocation == "even" else min(4, most)
        if self.batches > most:
            raise OptionError(
                f"{self.batches} allocation batches need at least {self.batches // 2 + 1} epochs, not {passes}, "
                "or the last ones would never be trained",
                hint=f"use batches={most} or fewer, or more epochs",
            )
        return self.batches

    @property
    def suspects(self) -> str | None:
        if len(self.speeds) == 1 or self.round == 1:
            return None
        return f"merging replicas ({self.update}) acts on the step like a larger batch: try a shorter round"

    def bind_data(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        data: Any,
        *,
        passes: int,
        scheduler: Any = None,
        per_step: bool = False,
        settings: Settings | None = None,
        sink: Sink | None = None,
    ) -> DataStep:
        from convoy.strategies.bilayered.step import BiLayeredStep

        kind = BiLayeredStep
        if self.engine == "ray":
            from convoy.strategies.bilayered.remote.step import RemoteStep as kind

        return kind(
            self,
            model,
            loss,
            optimizer,
            data,
            passes=passes,
            scheduler=scheduler,
            per_step=per_step,
            settings=settings or Settings(),
            sink=sink,
        )


def _nodes(value: object) -> int | tuple[float, ...]:
    """Their number, or their nominal speeds. Raises OptionError for what is neither."""
    hint = f"give how many there are, 1 to {MOST_NODES}, or nominal speeds such as (2, 1, 1)"
    if isinstance(value, Integral | str | bytes) or not isinstance(value, Iterable):
        count = whole_number("nodes", value, hint)
        if count > MOST_NODES:
            raise OptionError(f"nodes is {count}, and one parameter server serves {MOST_NODES} at most", hint=hint)
        return count
    speeds = list(value)
    if not speeds or not all(_is_speed(speed) for speed in speeds):
        raise OptionError(
            f"nodes is {speeds}, and nominal speeds are numbers greater than 0",
            hint="for example nodes=(2, 1, 1), or nodes=3 for equal ones",
        )
    if len(speeds) > MOST_NODES:
        raise OptionError(
            f"nodes has {len(speeds)} speeds, and one server serves {MOST_NODES} nodes at most", hint=hint
        )
    if max(speeds) > WIDEST * min(speeds):
        raise OptionError(
            f"nodes is {speeds}: one is over {WIDEST:g} times as fast as another",
            hint="leave out what is too slow to take part, or check the speeds",
        )
    return tuple(float(speed) for speed in speeds)


def _is_speed(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < float("inf")
