"""The strategy bound to a model and its data, with an actor for the server and one for every node.

Turns are those of the inline engine, which this one extends: there, messages come out of virtual time, here out of
real nodes. So a run's arrivals replay there to the same bits.
"""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from convoy.engines.ray.extra import ray_module
from convoy.engines.ray.session import Session, by_value, check_address, connect
from convoy.errors import CheckpointError, OptionError
from convoy.strategies.base import TurnResult
from convoy.strategies.bilayered.layout import Flat, Layout
from convoy.strategies.bilayered.messages import Dead, Effect, Message, Push
from convoy.strategies.bilayered.node import Node
from convoy.strategies.bilayered.remote.clock import Clock
from convoy.strategies.bilayered.remote.crew import Crew
from convoy.strategies.bilayered.remote.folder import journal_folder
from convoy.strategies.bilayered.remote.recipe import Recipe
from convoy.strategies.bilayered.remote.server import ParcelLost, RemoteServer
from convoy.strategies.bilayered.server import Server
from convoy.strategies.bilayered.state import Rules, State
from convoy.strategies.bilayered.step import BiLayeredStep
from convoy.strategies.pipelined.remote.modules import modules_of
from convoy.strategies.pipelined.remote.numbers import Numbers
from convoy.strategies.pipelined.remote.stage import StageRecipe

TABLE_SECONDS = 15.0
"""How often, at most, it is said how the nodes stand."""


def most_nodes() -> int:
    """On this machine alone: four a core, or eight. Each is a process with a PyTorch of its own."""
    return max(8, 4 * (os.cpu_count() or 1))


class RemoteStep(BiLayeredStep):
    """Implements ``DataStep`` with actors. ``settings.threads`` are those of each node; by default all cores of this
    machine divided by the nodes."""

    _engine = "ray"
    _notes: tuple[str, ...] = ()

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        nodes = len(self._strategy.speeds)
        threads = self._settings.threads or max(1, (os.cpu_count() or 1) // nodes)
        self._settings = replace(self._settings, threads=threads)
        if torch.device(self._settings.device).type != "cpu":
            raise OptionError(
                f"engine 'ray' runs on processors, and device is {self._settings.device!r}", hint="use device='cpu'"
            )
        ray = ray_module()
        if self._strategy.address is not None and not ray.is_initialized():
            check_address(self._strategy.address, self._strategy.insecure)
        elif not ray.is_initialized() and nodes > most_nodes():
            raise OptionError(
                f"{nodes} nodes would be {nodes} processes on this machine, which has {os.cpu_count() or 1} cores",
                hint=f"take {most_nodes()} at most, a Ray cluster with address=…, or engine='inline' in virtual time",
            )
        self._session: Session | None = None
        self._crew: Crew | None = None
        self._folder: Path | None = None
        self._clock = Clock()
        self._table_at = 0.0
        self._data = keywords["data"] if "data" in keywords else args[4]

    def __call__(self, x: Any, y: Any) -> TurnResult:
        result = super().__call__(x, y)
        if self._clock.now - self._table_at > TABLE_SECONDS and self._server is not None:
            self._table_at = self._clock.now
            self._tell_nodes(self._server.state)
        return result

    def close(self) -> None:
        super().close()
        if self._crew is not None:
            self._crew.close()
        if isinstance(self._server, RemoteServer):
            self._server.close()
        if self._session is not None:
            self._session.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def state(self) -> Mapping[str, Any]:
        """What is under way is leased again by a resumed run, and optimizers begin anew: their state stays on nodes."""
        values = dict(super().state())
        if self._server is not None:
            empty = {**self._optimizer.state_dict(), "state": {}}
            values |= {"leases": [], "grants": [], "optimizers": [empty] * (len(self._strategy.speeds) - 1)}
        return values

    @property
    def processes(self) -> dict[str, dict[str, Any]]:
        """Process and machine of the server and of each node that is there."""
        found = {}
        if isinstance(self._server, RemoteServer):
            found["server"] = self._server.process
        for j, member in enumerate([] if self._crew is None else self._crew.members):
            if member.process is not None:
                found[f"node {j}"] = member.process
        return found

    # --- inside --------------------------------------------------------------------------------------------------

    def _called(self, node: int) -> str:
        about = self.processes.get(f"node {node}")
        return f"node {node}" + (f" (process {about['process']} on {about['machine']})" if about else "")

    def _serve(self, rules: Rules, layout: Layout, weights: Flat) -> Server:
        strategy, settings = self._strategy, self._settings
        nodes, threads = len(strategy.speeds), settings.threads or 1
        session = connect(strategy.address, insecure=strategy.insecure, cpus=nodes * threads + 1)
        self._session = session
        weakref.finalize(self, session.close)
        session.need_cpus(nodes * threads + 1, f"{nodes} nodes of {threads} threads and a server")
        self._folder = journal_folder(layout.bytes)
        recipe = Recipe(
            model=self._model,
            loss=self._loss,
            optimizer=type(self._optimizer),
            attributes=StageRecipe.attributes_of(self._optimizer),
            data=self._data,
            settings=settings,
            inner=strategy.inner,
            form="bfloat16" if strategy.deltas == "bfloat16" else "weights",
            held_out=strategy.measures_quality,
            numbers=Numbers.here(),
            checksum="",
        ).with_checksum(self._samples)
        data = getattr(self._data, "dataset", self._data)
        with by_value(session.ray, modules_of(self._model, self._loss, self._optimizer, data)):
            reference = session.ray.put(recipe)
        saved = self._saved if self._saved is not None and "server" in self._saved else None
        state = State(rules) if saved is None else State.from_dict(saved["server"])
        self._clock = Clock(0.0 if saved is None else float(saved["cluster"]["now"]))
        known = [node.incarnation + 1 for node in state.nodes]
        self._crew = self._cluster = Crew(
            session,
            reference,
            self._script,
            threads=threads,
            clock=self._clock,
            incarnations=[*known, *[0] * (nodes - len(known))],
            watchdog_seconds=settings.watchdog_seconds,
            probes=nodes > 1 and strategy.allocation == "idpa-mended",
        )
        server = RemoteServer(
            session,
            self._folder,
            layout,
            state,
            weights,
            recipe=reference if strategy.measures_quality else None,
            clock=self._clock,
            told=self._restarted,
        )
        server.start()
        return server

    def _make_nodes(self) -> list[Node]:
        return []

    def _take_up(self, server: Server, saved: Mapping[str, Any], weights: Flat) -> None:
        before = len(saved["optimizers"]) + 1
        if before != len(self._strategy.speeds):
            raise CheckpointError(
                f"the checkpoint is of a run with {before} nodes, this one has {len(self._strategy.speeds)}",
                hint="resume with the nodes of the run",
            )
        self._opening.extend(self._cluster.opening())
        self._written = server.state.version

    def _restarted(self, why: str) -> None:
        self._report("decision", "server restarted", {"cause": "timing", "why": why})

    def _outfit(self) -> None:
        """Besides, send what is leased to the nodes."""
        super()._outfit()
        server, crew = self._server, self._crew
        if not isinstance(server, RemoteServer) or crew is None:
            return
        for j, lease in sorted(self._leases.items()):
            node = server.state.nodes[j]
            given = None if node.lease is None else (node.incarnation, node.lease.sequence)
            if node.live and given == (lease.grant.incarnation, lease.grant.sequence):
                crew.send(lease, server.reference(lease.grant.base))

    def _handle(self, server: Server, message: Message, parcel: Any) -> tuple[Effect, ...]:
        try:
            return super()._handle(server, message, parcel)
        except ParcelLost:
            assert isinstance(message, Push) and self._crew is not None
            self._reports.pop((message.node, message.incarnation, message.sequence), None)
            dead: Dead = self._crew.lose(message.node)
            return super()._handle(server, dead, None)

    def _work(self, push: Push) -> tuple[Push, Any]:
        """The node did it already."""
        assert self._crew is not None and self._server is not None
        sent = self._crew.take(push)
        self._reports[push.node, push.incarnation, push.sequence] = sent.report
        self._report_round(push, sent.base, sent.bytes, sent.report.samples, sent.began, sent.ended)
        return push, sent.parcel
