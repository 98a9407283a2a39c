"""What goes on in one action, and what must not."""

from dataclasses import replace

import pytest

from convoy.strategies.tasks.fuse import GRAIN_SECONDS, fuse, separate
from convoy.strategies.tasks.ops import WHOLE, Op, Partition, Read

CUT = Partition("samples", 2)


def nothing(frame, tile, args):
    return ()


def op(name, reads, *, cut=CUT, how="tile", **more):
    """``op("Fb", "a")`` reads ``y.a`` and writes ``y.b``."""
    found = tuple(Read(f"y.{r}", how) for r in reads)
    return Op(name[0], name[1:], cut, found, (f"y.{name[1:]}",), nothing, **more)


def names(tasks):
    return [[f"{o.kind}{o.subject}" for o in task.ops] for task in tasks]


def test_what_follows_on_the_same_tile_goes_on():
    tasks = fuse([op("Fa", ""), op("Fb", "a"), op("Fc", "b")])
    assert names(tasks) == [["Fa", "Fb", "Fc"]]
    assert (tasks[0].kind, tasks[0].subject) == ("F", "a..c")
    assert names(separate([op("Fa", ""), op("Fb", "a")])) == [["Fa"], ["Fb"]]


@pytest.mark.parametrize(
    "second",
    [
        op("Fb", "a", cut=WHOLE, how="all"),
        op("Ib", "a"),
        op("Fb", "a", cut=Partition("channels", 2)),
        op("Fb", "a", how="first"),
    ],
    ids=["joined", "backward", "cut otherwise", "of another tile"],
)
def test_other_tiles_are_another_action(second):
    assert names(fuse([op("Fa", ""), second])) == [["Fa"], [f"{second.kind}b"]]


def test_a_task_never_waits_for_what_waits_for_it():
    """b joins a; c needs both a's tile and d, which waits for a: c in a's task would be a cycle."""
    ops = [op("Fa", ""), op("Fd", "a", cut=WHOLE, how="all"), replace(op("Fc", "a"), reads=(
        Read("y.a", "tile"), Read("y.d", "whole")))]  # fmt: skip
    assert names(fuse(ops)) == [["Fa"], ["Fd"], ["Fc"]]


def test_a_heavy_operation_joins_only_short_tasks():
    long = {"heavy": True, "seconds": 2 * GRAIN_SECONDS * CUT.count}
    assert names(fuse([op("Fa", "", **long), op("Fb", "a", **long), op("Fc", "b")])) == [["Fa"], ["Fb", "Fc"]]
    short = {"heavy": True, "seconds": GRAIN_SECONDS / 2}
    assert names(fuse([op("Fa", "", **short), op("Fb", "a", **short)])) == [["Fa", "Fb"]]


def test_several_writers_of_a_state_keep_their_order():
    assert names(fuse([op("Fa", "", moves=("R",)), op("Fb", "a", moves=("R",))])) == [["Fa"], ["Fb"]]


def test_memory_is_used_again_only_where_nobody_else_reads_it():
    def into(frame, tile, args):
        return ()

    def second(reads):
        return op("Fb", reads, overwriting={0: into})

    assert fuse([op("Fa", "", fresh=True), second("a")])[0].ops[1].run is into
    assert fuse([op("Fa", ""), second("a")])[0].ops[1].run is nothing, "a's output may be saved"
    shared = [op("Fa", "", fresh=True), second("a"), op("Fc", "a")]
    assert fuse(shared)[0].ops[1].run is nothing, "c reads it too"
