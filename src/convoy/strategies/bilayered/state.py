"""All that the parameter server knows, as one frozen value, and the same as JSON for the journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from convoy.strategies.bilayered.ledger import Job, Segment, Slice, visits

SYNCHRONOUS = ("sgwu", "sgwu-mended", "local-sgd")
UPDATES = ("agwu", "agwu-mended", *SYNCHRONOUS)
DELTAS = ("float32", "bfloat16")
ALLOCATIONS = ("idpa", "idpa-mended", "even")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What does not change in a run. ``samples``: N, without the held-out part; ``batches``: A allocation batches;
    ``round``: mini-batches between pushes, None for a local pass. A lease runs out after ``patience`` times the
    seconds that it should take, and ``grace_seconds`` more."""

    samples: int
    batch_size: int = 1
    update: str = "agwu-mended"
    allocation: str = "even"
    batches: int = 1
    round: int | None = None
    patience: float = 4.0
    grace_seconds: float = 5.0

    @property
    def synchronous(self) -> bool:
        return self.update in SYNCHRONOUS

    @property
    def mended(self) -> bool:
        return self.allocation == "idpa-mended"


@dataclass(frozen=True, slots=True)
class Lease:
    """The round that a node works on, from version ``base``; ``at``: when it was granted."""

    sequence: int
    base: int
    piece: Slice
    step: int
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node. ``sequence``: its last push that was merged or refused. ``number``: its local pass. ``todo``: slices that
    it is to train before its next pass. ``passes``, ``rounds``: (samples, seconds) of the last ones. ``idle_at``: since
    when it waits. The rest counts for people: samples merged, seconds worked and waited (without a lease, for it to
    arrive, or for its push to be heard), lag of the last push."""

    live: bool = False
    incarnation: int = -1
    speed: float = 1.0
    sequence: int = 0
    number: int = 0
    lease: Lease | None = None
    todo: tuple[Slice, ...] = ()
    passes: tuple[tuple[int, float], ...] = ()
    rounds: tuple[tuple[int, float], ...] = ()
    pass_samples: int = 0
    pass_seconds: float = 0.0
    quality: float | None = None
    idle_at: float | None = None
    steps: int = 0
    samples: int = 0
    pushes: int = 0
    refused: int = 0
    worked: float = 0.0
    waited: float = 0.0
    lag: int = 0


@dataclass(frozen=True, slots=True)
class Received:
    """A push that waits for the others at the barrier."""

    node: int
    incarnation: int
    sequence: int
    base: int
    piece: Slice
    quality: float | None


@dataclass(frozen=True, slots=True)
class State:
    """``accepted``: samples merged; ``allotted``: allocation batches shared out; ``balanced``: the version at which it
    was last looked whether samples should change hands; ``again``: samples that were leased once more after a death or
    a refusal, and so may have been trained twice but are merged once."""

    rules: Rules
    goal: int = 0
    begun: bool = False
    version: int = 0
    accepted: int = 0
    allotted: int = 0
    segments: tuple[Segment, ...] = ()
    jobs: tuple[Job, ...] = ()
    orphans: tuple[Slice, ...] = ()
    received: tuple[Received, ...] = ()
    nodes: tuple[NodeState, ...] = ()
    next_job: int = 0
    balanced: int = 0
    again: int = 0
    duplicates: int = 0
    dead: int = 0
    stale: int = 0
    not_finite: int = 0

    @property
    def total(self) -> int:
        """Samples to be merged in all, K·N."""
        return self.goal * self.rules.samples

    @property
    def done(self) -> bool:
        return self.begun and self.accepted >= self.total

    @property
    def owed(self) -> int:
        """Samples that still have to be merged, as the shared out part of the ledger says."""
        return visits(self.segments).total() + sum(job.size - job.done for job in self.jobs)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values; ``State.from_dict`` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> State:
        plain = dict(values)
        return cls(
            **{
                **plain,
                "rules": Rules(**plain["rules"]),
                "segments": tuple(Segment(**s) for s in plain["segments"]),
                "jobs": tuple(_job(j) for j in plain["jobs"]),
                "orphans": tuple(Slice(**s) for s in plain["orphans"]),
                "received": tuple(Received(**{**r, "piece": Slice(**r["piece"])}) for r in plain["received"]),
                "nodes": tuple(_node(n) for n in plain["nodes"]),
            }
        )


def _job(values: Mapping[str, Any]) -> Job:
    return Job(**{**values, "ranges": tuple((int(a), int(b)) for a, b in values["ranges"])})


def _node(values: Mapping[str, Any]) -> NodeState:
    lease = values["lease"]
    timed = {key: tuple((int(n), float(t)) for n, t in values[key]) for key in ("passes", "rounds")}
    return NodeState(
        **{
            **values,
            **timed,
            "todo": tuple(Slice(**s) for s in values["todo"]),
            "lease": None if lease is None else Lease(**{**lease, "piece": Slice(**lease["piece"])}),
        }
    )
