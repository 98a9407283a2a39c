"""A training step on a host and on units in its memory, which take turns."""

from __future__ import annotations

from convoy.hardware.step.result import Row, Simulation
from convoy.hardware.step.simulate import GROUPS, simulate, tasks_of
from convoy.hardware.step.turns import TURNS, TurnName

__all__ = ["GROUPS", "TURNS", "Row", "Simulation", "TurnName", "simulate", "tasks_of"]
