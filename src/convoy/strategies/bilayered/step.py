"""The strategy bound to a model and its data: replicas trained in one thread, in virtual time. The oracle.

A round is computed when its push arrives: it depends on its lease, the weights it began with and the node's own
optimizer alone, so nothing is ever half trained between two turns, and a checkpoint needs no more than the server's
state, older weights that are still in use, and the optimizers.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from torch.optim import Optimizer

from convoy.data.keys import key
from convoy.engines.driver import callers_threads
from convoy.errors import RESUME, CheckpointError, Diverged, InternalError, OptionError, RunError
from convoy.events.event import Event, EventKind, Sink
from convoy.events.warn import tell
from convoy.strategies.base import Loss, Settings, StepResult, Turn, TurnResult
from convoy.strategies.batch import prepare_model
from convoy.strategies.bilayered import tensors
from convoy.strategies.bilayered.checks import check
from convoy.strategies.bilayered.course import Course
from convoy.strategies.bilayered.layout import Flat, Layout
from convoy.strategies.bilayered.messages import Effect, Goal, Grant, Join, Merge, Message, Note, Push, Refuse, to_row
from convoy.strategies.bilayered.node import Lease, Node, Report
from convoy.strategies.bilayered.parcel import Parcel
from convoy.strategies.bilayered.plan import SLOW, BiLayeredPlan, node_rows, slowness
from convoy.strategies.bilayered.quality import HeldOut
from convoy.strategies.bilayered.samples import samples_of
from convoy.strategies.bilayered.server import Server
from convoy.strategies.bilayered.state import Rules, State
from convoy.strategies.bilayered.virtual import Cluster, Script

if TYPE_CHECKING:
    from convoy.strategies.bilayered.strategy import BiLayered

_NOT_FINITE = 3  # refusals of a node one after the other before the run is called off
_REPLICA = 6  # the purpose of a key: the seed of a replica's random layers


class BiLayeredStep:
    """Implements ``DataStep``. One call is one version: a merged push, or a barrier with all that it merges.

    ``script``: how the nodes behave in virtual time; by default as their nominal speeds say. ``arrivals``: the messages
    of a recorded run, in the order in which its server heard them, in place of virtual time.
    """

    _engine = "inline"
    _notes: tuple[str, ...] = ("times, speeds and shares are those of virtual time: all nodes train in this thread",)

    def __init__(
        self,
        strategy: BiLayered,
        model: nn.Module,
        loss: Loss,
        optimizer: Optimizer,
        data: Any,
        *,
        passes: int,
        scheduler: Any = None,
        per_step: bool = False,
        settings: Settings,
        sink: Sink | None = None,
        script: Script | None = None,
        arrivals: Iterable[Message] | None = None,
    ) -> None:
        self._strategy, self._model, self._loss, self._optimizer = strategy, model, loss, optimizer
        self._settings, self._sink, self._passes = settings, sink, passes
        self._samples = samples_of(data, seed=settings.seed, held_out=strategy.measures_quality)
        if len(strategy.speeds) > self._samples.size:
            raise OptionError(
                f"nodes is {len(strategy.speeds)}, and there are {self._samples.size} samples to train on",
                hint="take fewer nodes: each needs some mini-batches of its own to be of use",
            )
        self._course = Course(optimizer, scheduler, per_step=per_step)
        self._script = script or Script(tuple(1e-3 / speed for speed in strategy.speeds), speeds=strategy.speeds)
        self._cluster = Cluster(self._script)
        self._arrivals = None if arrivals is None else deque(arrivals)
        self._opening: deque[Message] = deque()
        self._server: Server | None = None
        self._saved: Mapping[str, Any] | None = None
        self._nodes: list[Node] = []
        self._grants: dict[int, Grant] = {}  # by node, the lease it works on
        self._leases: dict[int, Lease] = {}  # the same with hyper-parameters, from the next turn on
        self._reports: dict[tuple[int, int, int], Report] = {}  # of pushes that are not merged yet
        self._bad = [0] * len(strategy.speeds)
        self._named: set[int] = set()  # nodes that the user was told are slow
        self._plan: BiLayeredPlan | None = None
        self._written = -1  # the version that the user's module holds

    # --- DataStep ------------------------------------------------------------------------------------------------

    @property
    def source(self) -> _Turns:
        return _Turns(self)

    def __call__(self, x: Any, y: Any) -> TurnResult:
        server = self._server or self._build()
        self._outfit()
        while True:
            message = self._next(server)
            parcel: Parcel | None = None
            if isinstance(message, Push) and server.expects(message):
                message, parcel = self._work(message)
            effects = self._handle(server, message, parcel)
            merge = next((effect for effect in effects if isinstance(effect, Merge)), None)
            if merge is not None:
                return self._turn(server, merge)
            self._outfit()

    def begin_epoch(self, epoch: int, epochs: int, batches: int | None = None) -> None:
        """An epoch is over when the server has merged as many samples as there are; nothing waits for it."""

    def end_epoch(self, *, validation_accuracy: float | None = None, validation_loss: float | None = None) -> None:
        if self._server is not None:
            check(self._server.state)
            self._tell_nodes(self._server.state)

    def drain(self) -> list[StepResult]:
        """Put the newest weights into the user's module. Rounds under way stay so: they have no effect yet."""
        server = self._server
        if server is not None and self._written != server.state.version:
            tensors.write(self._model, server.layout, server.weights)
            self._written = server.state.version
        return []

    def close(self) -> None:
        for node in reversed(self._nodes):  # each puts the thread count back that it found
            node.close()
        self._nodes = []

    def state(self) -> Mapping[str, Any]:
        server = self._server
        if server is None:
            return self._saved or {"batch": 0, "version": 0}
        return {
            "batch": server.state.version,
            "version": server.state.version,
            "server": server.state.to_dict(),
            "bases": [[number, _to_tensors(flat)] for number, flat in sorted(server.bases.items())],
            "cluster": self._cluster.to_dict(),
            "leases": [lease.header() for _, lease in sorted(self._leases.items())],
            "grants": [Lease(grant, []).header() for _, grant in sorted(self._grants.items())],
            "optimizers": [node.optimizer.state_dict() for node in self._nodes[1:]],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        if self._server is not None:
            raise InternalError("a run is restored before its first turn")
        if state["version"] and "server" not in state:
            raise InternalError("only a bi-layered run can be gone on with")
        self._saved = state

    def plan(self) -> BiLayeredPlan | None:
        return self._plan

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            if kind is None or issubclass(kind, KeyboardInterrupt):
                self.drain()
        finally:
            self.close()

    # --- for readers of the run ----------------------------------------------------------------------------------

    @property
    def server_state(self) -> State | None:
        """The ledger and all the rest, once the run began."""
        return None if self._server is None else self._server.state

    @property
    def samples(self) -> int:
        """N, without the held-out part."""
        return self._samples.size

    def merged(self) -> int:
        """Samples merged so far, also before a resume."""
        if self._server is not None:
            return self._server.state.accepted
        saved = (self._saved or {}).get("server")
        return 0 if saved is None else int(saved["accepted"])

    # --- inside --------------------------------------------------------------------------------------------------

    def _build(self) -> Server:
        strategy, settings = self._strategy, self._settings
        prepare_model(self._model, self._optimizer, settings.device, settings.channels_last)
        layout = tensors.layout_of(self._model)
        weights = tensors.read(self._model, layout)
        saved = self._saved if self._saved is not None and "server" in self._saved else None
        if saved is None:
            rules = Rules(
                samples=self._samples.size,
                batch_size=self._samples.batch_size,
                update=strategy.update,
                allocation=strategy.allocation,
                batches=strategy.batches_for(self._passes),
                round=None if isinstance(strategy.round, str) else strategy.round,
            )
        else:
            rules = State.from_dict(saved["server"]).rules
        self._server = server = self._serve(rules, layout, weights)
        self._nodes = self._make_nodes()
        self._plan = BiLayeredPlan(
            strategy.name,
            self._engine,
            len(strategy.speeds),
            strategy.speeds,
            rules.update,
            rules.allocation,
            rules.batches,
            rules.round,
            rules.samples,
            len(self._samples.held_out),
            layout.bytes,
            settings.threads or callers_threads(),
            self._notes,
        )
        self._report("plan", strategy.name, self._plan.to_dict())
        if saved is not None:
            self._take_up(server, saved, weights)
        elif self._arrivals is None:
            self._opening.extend(self._cluster.opening())
        if self._arrivals is None:
            self._handle(server, Goal(self._passes, self._cluster.now), None)
        return server

    def _serve(self, rules: Rules, layout: Layout, weights: Flat) -> Server:
        measures = self._strategy.measures_quality
        quality = HeldOut(self._model, self._samples, self._settings) if measures else None
        return Server(rules, layout, weights, quality=quality)

    def _make_nodes(self) -> list[Node]:
        return [self._node(index) for index in range(len(self._strategy.speeds))]

    def _node(self, index: int) -> Node:
        """Node 0 trains the user's own objects, so that one node is the plain loop."""
        model, optimizer, settings = self._model, self._optimizer, self._settings
        if index:
            model, optimizer = copy.deepcopy((model, optimizer))
            settings = reseeded(settings, index)
        form = "bfloat16" if self._strategy.deltas == "bfloat16" else "weights"
        return Node(
            index,
            model,
            self._loss,
            optimizer,
            self._samples,
            settings=settings,
            inner=self._strategy.inner,
            form=form,
        )

    def _take_up(self, server: Server, saved: Mapping[str, Any], weights: Flat) -> None:
        state = State.from_dict(saved["server"])
        before = len(saved["optimizers"]) + 1
        if before != len(self._nodes):
            raise CheckpointError(
                f"the checkpoint is of a run with {before} nodes, this one has {len(self._nodes)}",
                hint="resume with the nodes of the run",
            )
        server.restore(state, {int(number): _to_arrays(flat) for number, flat in saved["bases"]}, weights)
        self._cluster.restore(saved["cluster"])
        self._leases = {lease.grant.node: lease for lease in map(Lease.parse, saved["leases"])}
        self._grants = {lease.grant.node: lease.grant for lease in map(Lease.parse, saved["grants"])}
        for node, values in zip(self._nodes[1:], saved["optimizers"], strict=True):
            node.optimizer.load_state_dict(values)
        self._written = state.version

    def _next(self, server: Server) -> Message:
        """The message that the server hears next."""
        if self._opening:
            return self._opening.popleft()
        if self._arrivals is not None:
            if not self._arrivals:
                raise RunError("the recorded run ends here", hint="ask for as many epochs as were recorded")
            return self._arrivals.popleft()
        message = self._cluster.next(server.state)
        if message is None:
            owed = server.state.total - server.state.accepted
            raise RunError(f"no node is left, and {owed} samples are owed", hint=RESUME)
        return message

    def _handle(self, server: Server, message: Message, parcel: Parcel | None) -> tuple[Effect, ...]:
        if isinstance(message, Join) and message.incarnation > 0 and message.node < len(self._nodes):
            self._nodes[message.node].reset()
        effects = server.handle(message, parcel)
        self._cluster.hear(effects)
        row = {name: value for name, value in to_row(message).items() if name != "kind"}
        self._report("decision", "arrival", {"cause": "timing", "message": type(message).__name__.lower(), **row})
        for effect in effects:
            if isinstance(effect, Grant):
                self._grants[effect.node] = effect
                self._leases.pop(effect.node, None)
            elif isinstance(effect, Note):
                self._report("decision", effect.name, {"cause": effect.cause, **effect.data})
            elif isinstance(effect, Merge):
                parts = [[p.node, p.incarnation, p.sequence, p.base, p.weight] for p in effect.parts]
                made = {"cause": "data", "version": effect.version, "how": effect.how, "parts": parts}
                self._report("decision", "merge", made)
            elif isinstance(effect, Refuse):
                self._refused(effect)
        return effects

    def _refused(self, refuse: Refuse) -> None:
        report = self._reports.pop((refuse.node, refuse.incarnation, refuse.sequence), None)
        if refuse.reason != "not finite":
            return
        self._bad[refuse.node] += 1
        if self._bad[refuse.node] >= _NOT_FINITE:
            loss = "" if report is None else f", its mean loss {report.loss_sum / report.samples:g}"
            raise Diverged(f"the weights of node {refuse.node} were not finite {_NOT_FINITE} times in a row{loss}")

    def _outfit(self) -> None:
        """Tell new leases their hyper-parameters. At the beginning of a turn, when the scheduler has stepped."""
        server = self._server
        if server is None:
            return
        total = sum(node.lease.piece.size for node in server.state.nodes if node.lease is not None)
        for node, grant in sorted(self._grants.items()):
            if node not in self._leases:
                count = len(self._samples.minibatches(grant.ranges, grant.number, grant.start, grant.stop))
                self._leases[node] = Lease(grant, self._course.rows(self._ahead(server.state, grant, count, total)))

    def _ahead(self, state: State, grant: Grant, count: int, working: int) -> list[int]:
        """For each mini-batch of the lease, scheduler steps from now: as far as all nodes will have come by then.

        Steps go by samples, so that a run has as many as the user's loader promises, however it is shared out.
        """
        done = self._steps(state.accepted)
        last = self._passes * self._samples.batches - 1
        size = self._samples.batch_size
        numerator = [state.accepted * grant.samples + i * size * working for i in range(count)]
        steps = [n * self._samples.batches // (self._samples.size * grant.samples) for n in numerator]
        return [max(0, min(n, last) - done) for n in steps]

    def _steps(self, accepted: int) -> int:
        """Scheduler steps that so many merged samples come to."""
        return accepted * self._samples.batches // self._samples.size

    def _work(self, push: Push) -> tuple[Push, Parcel]:
        """Let the node train what it was leased; the push says what came out, at the time that virtual time says."""
        server, lease = self._server, self._leases[push.node]
        assert server is not None
        began = time.perf_counter()
        made, report, parcel = self._nodes[push.node].work(lease, server.version(lease.grant.base))
        self._written = -1 if push.node == 0 else self._written
        self._reports[push.node, push.incarnation, push.sequence] = report
        self._report_round(push, lease.grant.base, parcel.bytes, report.samples, began, time.perf_counter())
        return Push(**{**_values(made), "seconds": push.seconds, "at": push.at}), parcel

    def _report_round(self, push: Push, base: int, size: int, samples: int, began: float, ended: float) -> None:
        """The action of a round; weights of ``size`` bytes went there and back."""
        data = {
            "kind": "R",
            "subject": f"node {push.node}",
            "part": 0,
            "reads": {"W": base},
            "writes": {},
            "bytes": 2 * size,
            "samples": samples,
        }
        self._report("action", f"R{push.node}.{push.sequence}", data, began, ended, f"node {push.node}")

    def _turn(self, server: Server, merge: Merge) -> TurnResult:
        """What a version came to, for epochs and progress."""
        for part in merge.parts:
            self._bad[part.node] = 0
        reports = [self._reports.pop((p.node, p.incarnation, p.sequence)) for p in merge.parts]
        samples = sum(report.samples for report in reports)
        known = [report.correct for report in reports if report.correct is not None]
        loss = sum(report.loss_sum for report in reports) / samples
        accepted = server.state.accepted
        steps = self._steps(accepted) - self._steps(accepted - samples)
        return TurnResult(
            batch=merge.version - 1,
            loss=torch.tensor(loss, dtype=torch.float64),
            samples=samples,
            correct=sum(known) if len(known) == len(reports) else None,
            steps=steps,
            measures={"nodes": [part.node for part in merge.parts], "version": merge.version},
        )

    def _tell_nodes(self, state: State) -> None:
        """The table of the nodes; who is slow is named once."""
        speeds = self._strategy.speeds
        self._report("nodes", "nodes", {"nodes": node_rows(state, speeds)})
        for j, factor in slowness(state, speeds).items():
            if factor > SLOW and j not in self._named:
                self._named.add(j)
                self._report("warning", "slow node", {"node": j, "message": self._slow(j, factor)})

    def _slow(self, node: int, factor: float) -> str:
        mended = self._strategy.allocation == "idpa-mended"
        does = "it gets fewer samples" if mended else "allocation='idpa-mended' would give it fewer samples"
        told = f"{self._called(node)} needs {factor:.1f} times the seconds that its nominal speed promises"
        return f"{told}; {does}. See what else runs there"

    def _called(self, node: int) -> str:
        return f"node {node}"

    def _report(
        self,
        kind: EventKind,
        name: str,
        data: Mapping[str, Any],
        start: float = 0.0,
        end: float = 0.0,
        lane: str = "",
        batch: int = -1,
    ) -> None:
        version = -1 if self._server is None else self._server.state.version
        tell(self._sink, Event(kind, name, start, end, lane, version if batch < 0 else batch, data))


class _Turns:
    """What the training loop goes through in place of mini-batches."""

    def __init__(self, step: BiLayeredStep) -> None:
        self._step = step

    def iterate(self, epoch: int, start_batch: int = 0) -> Iterator[tuple[Turn, None]]:
        """Turns until so many samples are merged as ``epoch`` + 1 passes have; from wherever the run stands."""
        while self._step.merged() < (epoch + 1) * self._step.samples:
            yield Turn(), None


def _values(push: Push) -> dict[str, Any]:
    return {name: value for name, value in to_row(push).items() if name != "kind"}


def reseeded(settings: Settings, replica: int) -> Settings:
    """With the random numbers of a replica's own."""
    return replace(settings, seed=key(_REPLICA, settings.seed, replica) >> 1)


def _to_tensors(flat: Flat) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in flat.items()}


def _to_arrays(values: Mapping[str, torch.Tensor]) -> Flat:
    return {name: tensor.numpy() for name, tensor in values.items()}
