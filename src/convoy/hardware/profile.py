"""Times of the host's tasks measured on a device, in place of the roofline.

The file is JSON: ``format`` 1, ``device`` (its name), ``precision``, ``element_bytes``, and ``seconds``: the key of a
task (kind, phase, operations and elements moved) → seconds of one execution. Tasks of the same key take the same time.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from convoy.errors import DataError, MachineError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from convoy.graph.rules import BoundRule, Saved
    from convoy.hardware.tasks import HostTask


@dataclass(frozen=True)
class Profile:
    """Measured seconds by the key of a task."""

    device: str
    precision: str
    element_bytes: int
    seconds: Mapping[str, float]

    def seconds_of(self, task: HostTask) -> float:
        """Seconds of ``task``; raises DataError where it was not measured."""
        whole = self.seconds.get(task.key)
        if whole is None:
            raise DataError(
                f"the profile of {self.device} has no time for {task.name} ({task.key})",
                hint="calibrate with the same network, batch size and image size: convoy simulate ... --calibrate FILE",
            )
        return whole * task.part


def load_profile(path: Path) -> Profile:
    """A profile from its file. Raises DataError for what is none."""
    try:
        table: Any = json.loads(path.read_text(encoding="utf-8"))
        seconds = {str(key): float(value) for key, value in table["seconds"].items()}
        if table["format"] != 1 or not all(math.isfinite(s) and s >= 0 for s in seconds.values()):
            raise ValueError
        return Profile(str(table["device"]), str(table["precision"]), int(table["element_bytes"]), seconds)
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror}", hint="give the file of --calibrate") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{path} is no profile of a host", hint="convoy simulate ... --calibrate FILE makes one"
        ) from None


def write_profile(profile: Profile, path: Path) -> None:
    """Write ``profile`` so that ``load_profile`` reads it."""
    table = {"format": 1, "device": profile.device, "precision": profile.precision}
    table |= {"element_bytes": profile.element_bytes, "seconds": dict(profile.seconds)}
    try:
        path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    except OSError as problem:
        raise MachineError(f"{path} cannot be written: {problem.strerror}", hint="choose another place") from None


def calibrate(
    model: nn.Module,
    batch_size: int,
    image: Sequence[int],
    device: str,
    *,
    element_bytes: int = 2,
    repeats: int = 5,
) -> Profile:
    """Measure every CONV task of a training step of ``model`` on ``device``, one by one on random data: the median of
    ``repeats``, after one that does not count. Elements of 2 bytes are FP16 (bfloat16 on a CPU), of 4 bytes FP32."""
    import torch

    from convoy.graph.capture import capture
    from convoy.graph.kinds import WEIGHTED
    from convoy.graph.rules import bind
    from convoy.hardware.tasks import training_step

    where = torch.device(device)
    dtype = torch.float32 if element_bytes == 4 else torch.bfloat16 if where.type == "cpu" else torch.float16
    graph = capture(model, (torch.empty(batch_size, *image),))
    tasks = [task for segment in training_step(graph).segments for task in segment.host]
    fx_nodes = {node.name: node for node in graph.program.graph.nodes}
    seconds: dict[str, float] = {}
    with torch.no_grad():
        for node in graph.nodes:
            mine = [t for t in tasks if t.name == (node.path or node.name) and t.key not in seconds]
            bound = bind(fx_nodes[node.name], graph.program) if node.kind in WEIGHTED and mine else None
            if bound is None:
                continue

            def random(shape: Sequence[int]) -> torch.Tensor:
                return torch.randn(tuple(shape), device=where, dtype=torch.float32).to(dtype)

            x = random(graph.by_name[bound.inputs[0]].outputs[0].shape)
            own = {k: None if t is None else t.detach().to(where, dtype) for k, t in bound.parameters.items()}
            y, saved = bound.rule.forward(bound.options, own, [x])
            grad = random(y.shape)
            for task in mine:
                seconds[task.key] = _time(_call(bound, task.phase, own, x, saved, grad), where, repeats)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else "CPU"
    return Profile(name, str(dtype).removeprefix("torch."), element_bytes, seconds)


def _call(
    bound: BoundRule,
    phase: str,
    own: Mapping[str, torch.Tensor | None],
    x: torch.Tensor,
    saved: Saved,
    grad: torch.Tensor,
) -> Callable[[], object]:
    """One phase of a layer, ready to be called again and again."""
    rule, options = bound.rule, bound.options
    if phase == "forward":
        return lambda: rule.forward(options, own, [x])
    if phase == "input_grad":
        return lambda: rule.input_grad(options, own, saved, grad)
    return lambda: rule.weight_grad(options, own, saved, grad)


def _time(call: Callable[[], object], where: torch.device, repeats: int) -> float:
    import torch

    taken = []
    for number in range(repeats + 1):
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        began = time.perf_counter()
        call()
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        if number:
            taken.append(time.perf_counter() - began)
    return median(taken)
