"""Corrections for staleness: names, factors, and what each needs.

D is a stage's delay in weight updates (fractions included), m the momentum, eta the learning rate, v torch's momentum
buffer, w the weights. Sources: PipeDream (Narayanan et al. 2019) for stash; SpecTrain (Chen et al. 2018) and linear
weight prediction and spike compensation (Kosson et al. 2021); PipeMare (Yang et al. 2021); DC-ASGD (Zheng et al.
2017). ``stage-lr`` follows the stability bound of delayed gradient descent, eta <= (2 / L) sin(pi / (4 D + 2)).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, exp, log, pi, sin

from torch.optim import SGD, Optimizer

from convoy.errors import OptionError

NAMES = ("stash", "predict:linear", "predict:momentum", "spike", "pipemare", "dc-asgd", "stage-lr")
_ALONE = ("stash", "pipemare", "dc-asgd")
_MOMENTUM = ("predict:linear", "predict:momentum", "spike")
RECOMMENDED = "predict:linear+spike"
"""With micro-batches, four stages of ResNet-20 ended level with plain SGD by it (docs/lab/README.md)."""
_SHORT = {"predict": "predict:linear"}


@dataclass(frozen=True, slots=True)
class Corrections:
    """Which corrections are in force. ``names`` as the user gave them, in order."""

    names: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str | None) -> Corrections:
        """``"predict:linear+spike"``, or ``"predict+spike"``, → both. Raises OptionError for unknown names and for
        pairs that contradict."""
        if text is None or text in ("", "none"):
            return cls()
        names = tuple(_SHORT.get(name, name) for name in map(str.strip, text.split("+")))
        for name in names:
            if name not in NAMES:
                raise OptionError(
                    f"there is no correction {name!r}",
                    hint=f"choose from {', '.join(NAMES)}, or join two as predict+spike",
                )
        if len(set(names)) < len(names):
            raise OptionError(f"correction {text!r} names one twice", hint="name each once")
        if len(names) > 1 and any(name in _ALONE for name in names):
            alone = next(name for name in names if name in _ALONE)
            raise OptionError(
                f"correction {alone!r} cannot be joined with others", hint="predict, spike and stage-lr can be joined"
            )
        if "predict:linear" in names and "predict:momentum" in names:
            raise OptionError("predict:linear and predict:momentum exclude each other", hint="choose one of them")
        return cls(names)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __bool__(self) -> bool:
        return bool(self.names)

    def __str__(self) -> str:
        return "+".join(self.names) or "none"

    @property
    def prediction(self) -> str | None:
        """ "linear" or "momentum", where a prediction is in force."""
        return next((name.partition(":")[2] for name in self.names if name.startswith("predict:")), None)

    def copies(self, delay: float) -> float:
        """How many more times a stage's weights are held than without corrections, at a delay in updates."""
        if not delay:
            return 0.0
        if "stash" in self or "dc-asgd" in self:
            return float(ceil(delay))
        if "pipemare" in self:
            return 2.0  # the estimate and the running mean of the updates
        return 1.0 if self.prediction is not None else 0.0

    def check(self, optimizer: Optimizer, accumulate: int | None) -> None:
        """Refuse in one sentence what the optimizer or the other options do not allow; ``accumulate`` may be open."""
        needs = [name for name in self.names if name in _MOMENTUM]
        if needs:
            wrong = without_plain_momentum(optimizer)
            if wrong:
                raise OptionError(
                    f"correction {needs[0]!r} is made of SGD's momentum and does not apply to {wrong}",
                    hint="use SGD with momentum and without nesterov, or stage-lr or stash",
                )
        if "dc-asgd" in self and (accumulate or 1) > 1:
            raise OptionError(
                f"correction 'dc-asgd' compares two versions of the weights and is not for accumulate={accumulate}",
                hint="set accumulate=1 or choose another correction",
            )

    def check_length(self, total_steps: int | None) -> None:
        """Refuse PipeMare where the length of the run is not known; asked when the first batch comes."""
        if "pipemare" in self and not total_steps:
            raise OptionError(
                "correction 'pipemare' has to know how long the run is",
                hint="train with Trainer.fit, or give Settings(total_steps=...)",
            )

    def warnings(self, delays: tuple[float, ...], momentum: float) -> tuple[str, ...]:
        """What to say before training: corrections that make the effective step larger."""
        if "spike" not in self or not delays:
            return ()
        _, b = spike_factors(max(delays), momentum)
        if b <= 2.0:
            return ()
        message = f"spike compensation multiplies the first response of stage 1 to a gradient by {b:.1f}"
        if self.prediction is None:
            message += "; without prediction it diverged at a learning rate of 0.1: watch the loss or lower the rate"
        return (message,)


def spike_factors(delay: float, momentum: float) -> tuple[float, float]:
    """(a, b) of w ← w - eta (a v + b g): a = m^D, b = (1 - m^D) / (1 - m). D = 1 is PyTorch's Nesterov."""
    a = float(momentum**delay)
    return a, (1 - a) / (1 - momentum)


def prediction_factor(kind: str, delay: float, momentum: float) -> float:
    """c of the look-ahead w - eta_i c v: D (linear), or (m - m^(D + 1)) / (1 - m) (momentum)."""
    if kind == "linear":
        return delay
    return float((momentum - momentum ** (delay + 1)) / (1 - momentum))


def stage_lr_factor(delay: float) -> float:
    """sin(pi / (4 D + 2)): 1, 0.5, 0.309, 0.174, 0.092 at D = 0, 1, 2, 4, 8."""
    return sin(pi / (4 * delay + 2))


def pipemare_lr_factor(delay: float, update: int, total: int) -> float:
    """T1: 1 / max(D, 1)^(1 - min(k / k0, 1)), k the pipeline's update (from 0), k0 a quarter of the run."""
    progress = min(update / max(total // 4, 1), 1.0)
    return float(max(delay, 1.0) ** (progress - 1.0))


def pipemare_decay(delay: float) -> float:
    """gamma of T2: 0.135^(1 / D)."""
    return exp(log(0.135) / delay)


def without_plain_momentum(optimizer: Optimizer) -> str:
    """Why ``optimizer`` is not SGD with plain momentum; empty where it is."""
    if type(optimizer) is not SGD:
        return type(optimizer).__name__
    for group in optimizer.param_groups:
        if not group["momentum"]:
            return "SGD without momentum"
        if group["nesterov"]:
            return "SGD with nesterov"
        if group["dampening"]:
            return "SGD with dampening"
        if group.get("maximize"):
            return "SGD that maximizes"
    return ""
