"""One table per kind of layer: forward, input gradient and weight gradient as separate calls, tiles, outcomes.

bound = bind(node, graph.program)           # None: the node runs whole under autograd
y, saved = bound.forward([x])
dx, = bound.input_grad(saved, dy)
gradients = bound.weight_grad(saved, dy)    # {"weight": ..., "bias": ...}
"""

from __future__ import annotations

from convoy.graph.rules.bind import BoundRule, bind
from convoy.graph.rules.modules import options_of
from convoy.graph.rules.rule import Outcome, Parameters, Rule, Saved, Tiling
from convoy.graph.rules.table import RULES, rule_for

__all__ = ["RULES", "BoundRule", "Outcome", "Parameters", "Rule", "Saved", "Tiling", "bind", "options_of", "rule_for"]
