"""A pickle may name anything; nothing but arrays of bytes, strings, numbers, lists and dictionaries comes through."""

from __future__ import annotations

import contextlib
import os
import pickle
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convoy.data.unpickle import read_pickle
from convoy.errors import DataError

ROWS = np.arange(12, dtype=np.uint8).reshape(3, 4)


def written(folder: Path, data: bytes) -> Path:
    (folder / "batch").write_bytes(data)
    return folder / "batch"


def test_reads_what_python_2_wrote(tmp_path: Path, make: SimpleNamespace) -> None:
    data = make.python2_pickle({"batch_label": "one", "labels": [1, 2, 255], "data": ROWS, "filenames": ["a", "b"]})
    with_numpy = pickle.loads(data, encoding="bytes")  # the file made for this test is a true one
    assert (with_numpy[b"data"] == ROWS).all()
    read = read_pickle(written(tmp_path, data))
    assert (read.pop("data") == ROWS).all()
    assert read == {"batch_label": b"one", "labels": [1, 2, 255], "filenames": [b"a", b"b"]}


@pytest.mark.parametrize("protocol", [3, 4])
def test_reads_arrays_pickled_today(tmp_path: Path, protocol: int) -> None:
    entries = {"data": ROWS, "turned": np.asfortranarray(ROWS), "labels": [3]}
    read = read_pickle(written(tmp_path, pickle.dumps(entries, protocol)))
    assert (read["data"] == ROWS).all()
    assert (read["turned"] == ROWS).all()


class Call:
    """Pickles as a call of anything with anything."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


MARK = "was-run"


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "bad",
    [
        Call(os.system, f"touch {MARK}"),
        Call(eval, f"open({MARK!r}, 'w')"),
        Call(exec, f"open({MARK!r}, 'w')"),
        Call(os.mkdir, MARK),
        Call(np.savetxt, MARK, [1.0]),
        Call(pickle.loads, b"N."),
    ],
    ids=["system", "eval", "exec", "mkdir", "numpy", "pickle"],
)
def test_a_malicious_pickle_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: Call, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="was refused: it wants to use") as caught:
        read_pickle(written(tmp_path, pickle.dumps({"data": bad}, protocol)))
    assert caught.value.hint
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'touch was-run'\ntR.",
        b"(S'touch was-run'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch was-run'\no.",
        b"cposix\nsystem\n(S'touch was-run'\ntR.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'was-run'\ntR.",
        b"cnumpy\nsave\n.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
        b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__base__\x93.",
        b"\x80\x02\x82\x01.",
        b"P1\n.",
    ],
)
def test_hand_written_programs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        read_pickle(written(tmp_path, data))
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("name", [b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n"])
@pytest.mark.parametrize("attribute", [b"U\x08as_array", b"X\x08\x00\x00\x00as_array"])
def test_one_file_cannot_alter_how_the_next_is_read(
    tmp_path: Path, make: SimpleNamespace, name: bytes, attribute: bytes
) -> None:
    # BUILD sets attributes of what lies on the stack: here of the stand-in itself.
    for state in (b"}" + attribute + b"K\x01s", b"N}" + attribute + b"K\x01s\x86"):
        with pytest.raises(DataError):
            read_pickle(written(tmp_path, b"\x80\x02}(U\x01a" + name + state + b"bu."))
    good = make.python2_pickle({"data": ROWS})
    assert (read_pickle(written(tmp_path, good))["data"] == ROWS).all()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a complete CIFAR batch"),
        (b"no pickle at all", "not a complete CIFAR batch"),
        (b"\x1f\x8b\x08\x00", "not a complete CIFAR batch"),
        (b"\x80\x02}U\x01acnumpy\nndarray\ns.", "holds more than strings, numbers and an array"),
        (pickle.dumps([1, 2]), "holds a list, not the dictionary"),
        (pickle.dumps({"data": np.zeros((2, 2), np.float32)}, 4), "its values are not bytes"),
        (pickle.dumps({"data": np.array([None, "x"])}, 4), "its values are not bytes"),
    ],
)
def test_what_is_no_batch(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read_pickle(written(tmp_path, data))
    assert str(tmp_path / "batch") in caught.value.message
    assert caught.value.hint


def test_a_shape_that_does_not_fit_its_bytes(tmp_path: Path, make: SimpleNamespace) -> None:
    data = make.python2_pickle({"data": ROWS}).replace(b"J\x03\x00\x00\x00J\x04", b"J\x03\x00\x00\x00J\x05")
    with pytest.raises(DataError, match="damaged array"):
        read_pickle(written(tmp_path, data))
    data = make.python2_pickle({"data": ROWS}).replace(b"J\x03\x00\x00\x00J", b"J\xff\xff\xff\xffJ")
    with pytest.raises(DataError, match="damaged array: its shape"):
        read_pickle(written(tmp_path, data))


def test_a_huge_memo_number_takes_no_memory(tmp_path: Path) -> None:
    tracemalloc.start()
    read_pickle(written(tmp_path, b"\x80\x02}r\xff\xff\xff\x0f."))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_cut_or_changed_files_raise_data_errors_only(
    tmp_path: Path, make: SimpleNamespace, data: st.DataObject
) -> None:
    whole = bytearray(make.python2_pickle({"labels": [1, 2, 3], "data": ROWS}))
    if data.draw(st.booleans()):
        cut = data.draw(st.integers(0, len(whole) - 1))
        with pytest.raises(DataError):
            read_pickle(written(tmp_path, bytes(whole[:cut])))
        return
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DataError):
        read_pickle(written(tmp_path, bytes(whole)))
