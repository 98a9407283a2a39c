"""What holds in every state of the parameter server; the ledger's proof. Cheap enough to run at every pass's end."""

from __future__ import annotations

from itertools import pairwise

from convoy.errors import InternalError
from convoy.strategies.bilayered import ledger
from convoy.strategies.bilayered.ledger import Slice
from convoy.strategies.bilayered.state import State


def check(state: State) -> None:
    """Raise InternalError where the ledger does not add up.

    - Every position of the allocation batches shared out so far belongs to exactly one segment.
    - Of every job, each place is merged, leased, waiting at the barrier, or to be done: exactly one of these.
    - Samples merged and owed come to (passes)·(samples) exactly.
    """
    if not state.begun:
        return
    rules = state.rules
    bounds = ledger.batch_bounds(rules.samples, rules.batches)
    reached = 0
    for segment in sorted(state.segments, key=lambda s: s.start):
        if segment.start != reached or segment.stop <= segment.start or segment.left < 0:
            raise InternalError(f"the ledger has a gap, an overlap or a debt at position {reached}: {segment}")
        reached = segment.stop
    if reached != bounds[state.allotted]:
        raise InternalError(f"the ledger ends at position {reached} instead of {bounds[state.allotted]}")
    _check_jobs(state)
    later = sum(
        (b - a) * n
        for batch in range(state.allotted + 1, rules.batches + 1)
        for a, b, n in ledger.due(
            rules.samples,
            rules.batches,
            state.goal,
            batch,
            bounds[batch - 1],
            bounds[batch],
        )
    )
    if state.accepted + state.owed + later != state.total:
        raise InternalError(
            f"{state.accepted} samples are merged, {state.owed} owed and {later} to be shared out, "
            f"which is not {state.goal} passes over {rules.samples}"
        )


def _check_jobs(state: State) -> None:
    pieces: dict[int, list[Slice]] = {job.id: [] for job in state.jobs}
    open_pieces = [
        *state.orphans,
        *(r.piece for r in state.received),
        *(piece for node in state.nodes for piece in node.todo),
        *(node.lease.piece for node in state.nodes if node.lease is not None),
    ]
    for piece in open_pieces:
        if piece.job not in pieces:
            raise InternalError(f"{piece} belongs to a pass that is over")
        pieces[piece.job].append(piece)
    for job in state.jobs:
        ordered = sorted(pieces[job.id], key=lambda s: s.start)
        overlap = any(a.stop > b.start for a, b in pairwise(ordered))
        if overlap or sum(p.size for p in ordered) != job.size - job.done:
            raise InternalError(f"local pass {job.number} (job {job.id}) does not add up: {ordered}")
