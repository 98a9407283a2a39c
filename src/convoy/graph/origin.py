"""What is known of a recorded node, and what is said where recording has to stop."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx


class Untraceable(Exception):
    """User code does what cannot be recorded. ``path`` is the module in whose forward it happened; ``failed`` that
    a call raised; ``exportable`` that ``torch.export`` may know how to write it down."""

    def __init__(self, reason: str, path: str, line: str, failed: bool, exportable: bool) -> None:
        super().__init__(f"{reason} at {line}" if line else reason)
        self.path, self.line, self.failed, self.exportable = path, line, failed, exportable


@dataclass(slots=True)
class Origin:
    """What the recorder knows of a node, kept in ``node.meta["origin"]``."""

    line: str
    scope: str
    tensors: tuple[Tensor, ...] = ()  # results, without numbers
    mutates: tuple[str, ...] = ()  # names of the argument nodes that the node changes in place
    random: bool = False
    no_grad: bool = False
    coarse: bool = False


def origin_of(node: fx.Node) -> Origin:
    found: Origin = node.meta["origin"]
    return found
