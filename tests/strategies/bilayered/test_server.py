"""Flat arrays, parcels, merging, the journal, and the server that holds them together: numbers by hand and by torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from convoy.errors import CheckpointError, ModelError, RunError
from convoy.strategies.bilayered import tensors
from convoy.strategies.bilayered.journal import Journal
from convoy.strategies.bilayered.layout import Flat, Layout, from_bfloat16, to_bfloat16
from convoy.strategies.bilayered.merging import add, average
from convoy.strategies.bilayered.messages import Acknowledge, Begin, Goal, Grant, Join, Merge, Push, Refuse
from convoy.strategies.bilayered.parcel import Parcel, open_parcel, seal
from convoy.strategies.bilayered.server import Server
from convoy.strategies.bilayered.state import Rules


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))


def filled(layout: Layout, value: float, counter: int = 0) -> Flat:
    return {
        key: np.full(size, counter if "int" in key else value, key.partition("/")[2])
        for key, size in layout.sizes.items()
    }


# --- layout and parcels ----------------------------------------------------------------------------------------------


def test_a_model_survives_its_flat_arrays_in_any_memory_format() -> None:
    model = net().to(memory_format=torch.channels_last)
    with torch.no_grad():
        model(torch.randn(4, 2, 4, 4))
    layout = tensors.layout_of(model)
    flat, other = tensors.read(model, layout), net()
    for array in flat.values():
        array.flags.writeable = False  # as they arrive from another process
    tensors.write(other, layout, flat)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    assert {e.kind for e in layout.entries} == {"weight", "mean", "variance", "counter"}
    assert Layout.parse(json.loads(json.dumps(layout.header()))) == layout


def test_shared_weights_travel_once_and_half_precision_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert tensors.layout_of(model).sizes == {"weights/float32": 9 + 3 + 3}
    with pytest.raises(ModelError, match="bfloat16"):
        tensors.layout_of(nn.Linear(2, 2).to(torch.bfloat16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("buffers/int64"), "sent the arrays"),
        (lambda a: a.update({"weights/float32": a["weights/float32"][:-1]}), r"instead of float32\["),
        (lambda a: a.update({"weights/float32": a["weights/float32"].astype(np.float64)}), "as float64"),
        (lambda a: a.update({"weights/float32": list(a["weights/float32"])}), "as list"),
    ],
)
def test_arrays_of_another_model_are_refused(change: Any, message: str) -> None:
    layout = tensors.layout_of(net())
    arrays = filled(layout, 1.0)
    change(arrays)
    with pytest.raises(RunError, match=message):
        layout.check(arrays, "node 2")


def test_numbers_that_are_not_finite_are_seen() -> None:
    layout = tensors.layout_of(net())
    arrays = filled(layout, 1.0)
    assert layout.check(arrays, "node 0")
    arrays["buffers/float32"][1] = np.inf
    assert not layout.check(arrays, "node 0")


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=30))
def test_bfloat16_rounds_as_torch_does(values: list[float]) -> None:
    array = np.array(values, np.float32)
    expected = torch.from_numpy(array).to(torch.bfloat16)
    bits = to_bfloat16(array)
    assert np.array_equal(bits.view(np.int16), expected.view(torch.int16).numpy())
    assert np.array_equal(from_bfloat16(bits, "float32"), expected.float().numpy())


@pytest.mark.parametrize("form", ["weights", "delta", "bfloat16"])
def test_a_parcel_is_opened_to_what_was_sealed(form: str) -> None:
    layout = tensors.layout_of(net())
    base, trained = filled(layout, 1.0), filled(layout, 1.5, counter=3)
    values, deltas, finite = open_parcel(seal(form, trained, base), layout, base, "node 0")
    assert finite and deltas is not None
    assert np.array_equal(deltas["weights/float32"], np.full(layout.sizes["weights/float32"], 0.5, np.float32))
    for key, array in trained.items():
        assert np.array_equal(values[key], array)
    half = seal("bfloat16", trained, base).arrays["weights/float32"].nbytes
    assert half * 2 == trained["weights/float32"].nbytes


# --- merging -----------------------------------------------------------------------------------------------------


def test_weights_are_added_and_averaged() -> None:
    layout = tensors.layout_of(net())
    current, node = filled(layout, 2.0), filled(layout, 4.0)
    deltas = {k: node[k] - current[k] for k in node if k.startswith("weights")}
    assert set(add(layout, current, 0.25, deltas, node)["weights/float32"]) == {2.5}
    assert set(average(layout, (0.25, 0.75), (current, node))["weights/float32"]) == {3.5}


def test_batch_norm_estimates_merge_as_a_mixture() -> None:
    """A mixture of two parts has the mean and (biased) variance of all their samples together."""
    layout = tensors.layout_of(net())
    a, b = np.random.default_rng(0).normal(1, 2, 300), np.random.default_rng(1).normal(-3, 0.5, 100)
    flats = []
    for part, count in ((a, 3), (b, 9)):
        flat = filled(layout, 0.0, counter=count)
        for entry in layout.entries:
            if entry.kind in ("mean", "variance"):
                flat[entry.key][entry.start : entry.stop] = part.mean() if entry.kind == "mean" else part.var()
        flats.append(flat)
    together = np.concatenate([a, b])
    merged = average(layout, (0.75, 0.25), flats)
    for entry in layout.entries:
        found = merged[entry.key][entry.start : entry.stop]
        if entry.kind in ("mean", "variance"):
            expected = together.mean() if entry.kind == "mean" else together.var()
            assert found == pytest.approx(np.full(len(found), expected), rel=1e-6)
        elif entry.kind == "counter":
            assert set(found) == {9}  # the maximum


def test_an_added_push_moves_estimates_towards_the_node_and_never_beyond() -> None:
    layout = tensors.layout_of(net())
    current, node = filled(layout, 1.0), filled(layout, 3.0)
    deltas = {k: node[k] - current[k] for k in node if k.startswith("weights")}
    far = add(layout, current, 1.7, deltas, node)
    assert set(far["buffers/float32"]) == {3.0}
    assert set(add(layout, current, 0.0, deltas, node)["buffers/float32"]) == {1.0}


# --- the server ------------------------------------------------------------------------------------------------------


class Run:
    """A server with nodes that do as they are told: weights of node j become those it was given plus j + 1."""

    def __init__(self, folder: Path | None = None, **rules: Any) -> None:
        self.layout = tensors.layout_of(net())
        made = Rules(samples=40, batch_size=5, grace_seconds=0, **rules)
        self.server = Server(
            made, self.layout, filled(self.layout, 0.0), journal=None if folder is None else Journal(folder)
        )
        self.grants: dict[int, Grant] = {}
        self.given: dict[int, Flat] = {}
        for message in (Goal(3), Join(0, 0), Join(1, 0), Begin()):
            self.tell(message)

    def tell(self, message: Any, parcel: Parcel | None = None) -> Any:
        effects = self.server.handle(message, parcel)
        for effect in effects:
            if isinstance(effect, Grant):
                self.grants[effect.node] = effect
                self.given[effect.node] = self.server.version(effect.base)
        return effects

    def push(self, node: int, form: str = "weights", step: float | None = None) -> Any:
        grant, base = self.grants[node], self.given[node]
        trained = {
            k: v + v.dtype.type(node + 1 if step is None or v.dtype.kind == "i" else step) for k, v in base.items()
        }
        push = Push(node, grant.incarnation, grant.sequence)
        return self.tell(push, seal(form, trained, base))


def test_asynchronous_pushes_are_merged_by_their_factors() -> None:
    run = Run(update="agwu-mended")
    merge = next(e for e in run.push(0) if isinstance(e, Merge))
    assert merge.parts[0].weight == 0.5
    assert set(run.server.weights["weights/float32"]) == {0.5}
    run.push(1)  # from version 0: its delta is 2, wherever the weights are now
    assert set(run.server.weights["weights/float32"]) == {1.5}
    assert set(run.server.weights["buffers/int64"]) == {2}  # the counter's maximum


def test_a_barrier_averages_and_acknowledges_all_at_once() -> None:
    run = Run(update="local-sgd")
    assert not [e for e in run.push(0) if isinstance(e, Acknowledge)]
    effects = run.push(1)
    assert [e.node for e in effects if isinstance(e, Acknowledge)] == [0, 1]
    assert set(run.server.weights["weights/float32"]) == {1.5}


def test_only_versions_that_are_in_use_are_kept() -> None:
    run = Run(update="agwu-mended", round=1)
    run.push(0)
    run.push(0)
    assert sorted(run.server.bases) == [0]  # node 1 still works from the first
    run.push(1)
    assert sorted(run.server.bases) == [2]


def test_numbers_that_are_not_finite_are_refused_and_change_nothing() -> None:
    run = Run(update="agwu-mended")
    effects = run.push(0, step=float("nan"))
    assert [e.reason for e in effects if isinstance(e, Refuse)] == ["not finite"]
    assert set(run.server.weights["weights/float32"]) == {0.0}
    assert run.server.state.not_finite == 1
    run.push(0)  # the same samples once more
    assert run.server.state.accepted == 20


@pytest.mark.parametrize("update", ["agwu-mended", "local-sgd"])
def test_a_server_that_comes_back_from_its_journal_has_lost_nothing_acknowledged(tmp_path: Path, update: str) -> None:
    run = Run(tmp_path, update=update)
    run.push(0)
    run.push(1)
    acknowledged = run.server.state
    back = Server.recover(tmp_path, run.layout)
    assert back is not None
    assert back.state == acknowledged
    assert np.array_equal(back.weights["weights/float32"], run.server.weights["weights/float32"])
    assert len(list(tmp_path.iterdir())) <= 2
    run.server = back
    for _ in range(20):
        for node in (0, 1):
            if not run.server.state.done and run.server.state.nodes[node].lease is not None:
                run.push(node)
    assert run.server.state.accepted == 120


def test_after_the_journal_a_forgotten_base_asks_for_the_delta(tmp_path: Path) -> None:
    run = Run(tmp_path, update="agwu-mended", round=1)
    for _ in range(3):
        run.push(0)  # node 1 works from version 0 all the while; the journal has 2 and 3
    expected = run.server.weights["weights/float32"] + np.float32(0.5 / np.sqrt(1 + 3 - 1) * 2)
    run.server = Server.recover(tmp_path, run.layout)  # type: ignore[assignment]
    before = run.server.state
    assert [e.reason for e in run.push(1) if isinstance(e, Refuse)] == ["base"]
    assert run.server.state == before
    run.push(1, form="delta")
    assert run.server.weights["weights/float32"] == pytest.approx(expected)


def test_a_damaged_journal_is_passed_over_and_two_are_an_error(tmp_path: Path) -> None:
    run = Run(tmp_path, update="agwu-mended", round=1)
    run.push(0)
    run.push(0)
    newest, older = sorted(tmp_path.iterdir(), reverse=True)
    newest.write_bytes(newest.read_bytes()[:100])
    back = Server.recover(tmp_path, run.layout)
    assert back is not None and back.state.version == 1
    older.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="no journal in"):
        Server.recover(tmp_path, run.layout)
    assert Server.recover(tmp_path / "empty", run.layout) is None


def test_quality_is_measured_on_the_nodes_own_weights() -> None:
    seen = []
    run = Run(update="agwu")
    run.server._quality = lambda flat: seen.append(float(flat["weights/float32"][0])) or 0.25
    merge = next(e for e in run.push(1) if isinstance(e, Merge))
    assert seen == [2.0]
    assert merge.parts[0].weight == pytest.approx(0.5 * 0.25)
