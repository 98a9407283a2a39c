import builtins
import contextlib
import errno
import json
import os
import shutil

import pytest
import safetensors.torch
import torch
from torch import nn

from convoy.errors import CheckpointError, MachineError
from convoy.training import files
from convoy.training.checkpoint import find_checkpoint, names_in, prune, read_checkpoint, save_checkpoint


def save(folder, batches, value=None, **more):
    model = {"w": torch.full((3, 2), float(batches if value is None else value))}
    return save_checkpoint(folder, batches, model, {"n": batches, "t": torch.arange(3), **more})


def test_a_checkpoint_comes_back(tmp_path):
    path = save(tmp_path / "checkpoints", 12, deep=[(1, 2.5)])
    assert path.name == "00000012"
    assert sorted(p.name for p in path.iterdir()) == ["model.safetensors", "state.json", "state.safetensors"]
    found = read_checkpoint(path)
    assert torch.equal(found.model["w"], torch.full((3, 2), 12.0))
    assert (
        found.state["n"] == 12 and found.state["deep"] == [(1, 2.5)] and torch.equal(found.state["t"], torch.arange(3))
    )


class Odd(nn.Module):
    """Tied weights, channels last, a buffer that is a view, and a state of its own."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3, bias=False)
        self.b = nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.register_buffer("turned", torch.randn(2, 5).t())
        self.extra = {"seen": 3, "shape": (1, 2)}

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


def test_tied_and_strided_tensors_keep_names_values_and_layout(tmp_path):
    model = Odd()
    path = save_checkpoint(tmp_path / "checkpoints", 1, model.state_dict(), {})
    plain = safetensors.torch.load_file(path / "model.safetensors")
    assert set(plain) == set(model.state_dict()) - {"_extra_state"}
    found = read_checkpoint(path).model
    for name, value in model.state_dict().items():
        if name != "_extra_state":
            assert torch.equal(found[name], value) and found[name].stride() == value.stride()
            assert torch.equal(plain[name], value)
    other = Odd()
    other.extra = None
    other.load_state_dict(dict(found))
    assert other.extra == model.extra and other.a.weight is other.b.weight
    assert torch.equal(other.a.weight, model.a.weight)


def test_names_count_up_and_nothing_is_written_over(tmp_path):
    folder = tmp_path / "checkpoints"
    first = save(folder, 5)
    content = (first / "state.json").read_bytes()
    save(folder, 100_000_000)
    second = save(folder, 5, value=7)
    assert second.name == "00000005-2" and (first / "state.json").read_bytes() == content
    assert names_in(folder) == ["00000005", "00000005-2", "100000000"]
    assert find_checkpoint(tmp_path).state["n"] == 100_000_000


def test_prune_keeps_the_latest_and_the_protected(tmp_path):
    for batches in range(1, 7):
        save(tmp_path / "checkpoints", batches)
    prune(tmp_path / "checkpoints", 2, [None, "00000003"])
    assert names_in(tmp_path / "checkpoints") == ["00000003", "00000005", "00000006"]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == names_in(tmp_path / "checkpoints")


def test_the_best_is_the_one_that_the_latest_names(tmp_path):
    for batches in (1, 2, 3):
        save(tmp_path / "checkpoints", batches, best={"checkpoint": "00000002"})
    assert find_checkpoint(tmp_path, "best").path.name == "00000002"
    assert find_checkpoint(tmp_path / "checkpoints").path.name == "00000003"


# --- damage --------------------------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGE = {
    "missing": lambda p: p.unlink(),
    "cut": cut,
    "empty": lambda p: p.write_bytes(b""),
    "flipped": flip,
    "other": lambda p: p.write_bytes(b"[]"),
}


@pytest.mark.parametrize("file", ["model.safetensors", "state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_the_one_before_is_taken(tmp_path, file, damage):
    good = save(tmp_path / "checkpoints", 1)
    bad = save(tmp_path / "checkpoints", 2)
    DAMAGE[damage](bad / file)
    with pytest.raises(CheckpointError, match=f"checkpoint {bad} is damaged") as error:
        find_checkpoint(bad)
    assert "earlier checkpoint" in error.value.hint
    assert find_checkpoint(tmp_path).path == good
    shutil.rmtree(good)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole; the latest: .* is damaged"):
        find_checkpoint(tmp_path)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="there is no "):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        find_checkpoint(tmp_path)
    path = save(tmp_path / "checkpoints", 1)
    sealed = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**sealed, "format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        find_checkpoint(path)


# --- a crash at any moment -----------------------------------------------------------------------------------------


class PowerCut(BaseException):
    """Nothing after it happens: not even the clearing away."""


CALLS = [(builtins, "open"), (os, "open"), (os, "fsync"), (os, "rename"), (os, "close"), (os, "mkdir")]


def crash_at(monkeypatch, number, *, torn):
    """Let the ``number``-th call to the file system be the last; ``torn``: a file's write gets half through."""
    count = [0]
    dead = [False]

    def guard(original, name):
        def call(*args, **kwargs):
            if dead[0]:
                raise PowerCut
            count[0] += 1
            if count[0] == number:
                dead[0] = True
                raise PowerCut
            result = original(*args, **kwargs)
            if name == "open" and original is OPEN and torn and len(args) > 1 and args[1] == "xb":
                write = result.write
                return Halved(
                    result, lambda content: write(content[: len(content) // 2]), lambda: count[0] + 1 == number
                )
            return result

        return call

    for module, name in CALLS:
        monkeypatch.setattr(module, name, guard(getattr(module, name), name))
    remove = shutil.rmtree
    monkeypatch.setattr(files.shutil, "rmtree", lambda *a, **k: None if dead[0] else remove(*a, **k))
    return dead


OPEN = builtins.open


class Halved:
    """A file whose last write before the crash is cut in half."""

    def __init__(self, file, half, last):
        self.file, self.half, self.last = file, half, last

    def write(self, content):
        return self.half(content) if self.last() else self.file.write(content)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.file.close()


@pytest.mark.parametrize("torn", [False, True], ids=["whole", "torn"])
def test_after_a_crash_at_any_call_the_old_or_the_new_is_found(tmp_path, monkeypatch, torn):
    folder = tmp_path / "checkpoints"
    save(folder, 1)
    found = []
    for number in range(1, 100):
        with monkeypatch.context() as patch:
            dead = crash_at(patch, number, torn=torn)
            with contextlib.suppress(PowerCut):
                save(folder, 2)
        latest = find_checkpoint(tmp_path)
        found.append(latest.state["n"])
        assert torch.equal(latest.model["w"], torch.full((3, 2), float(latest.state["n"])))
        if not dead[0]:
            break
        shutil.rmtree(folder / "00000002", ignore_errors=True)
    else:
        raise AssertionError("it never got through")
    assert found == sorted(found) and {1, 2} == set(found) and len(found) > 10
    # What the crashes left aside is cleared away by the next write.
    save(folder, 3)
    assert sorted(os.listdir(folder)) == ["00000001", "00000002", "00000003"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("name", ["fsync", "rename"])
def test_a_disk_that_refuses_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, name, code):
    folder = tmp_path / "checkpoints"
    save(folder, 1)

    def refuse(*args):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, name, refuse)
        with pytest.raises(MachineError, match=r"cannot write .*00000002: ") as error:
            save(folder, 2)
    assert error.value.hint and os.listdir(folder) == ["00000001"]


def test_a_file_size_limit_is_one_sentence(tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(MachineError, match="larger than allowed"):
            save_checkpoint(tmp_path / "checkpoints", 1, {"w": torch.zeros(5000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path / "checkpoints") == []
