"""Hardware as descriptions: presets, the user's own, and what cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from convoy.errors import OptionError
from convoy.hardware.description import PRESETS, hardware_from, load_hardware
from convoy.hardware.profile import Profile


def test_presets_say_where_their_values_come_from():
    for name in PRESETS:
        found = load_hardware(name)
        assert found.name == name
        assert all(part.source for part in (found, found.memory, found.units, found.host, found.energy))
        assert found.bytes_per_second == pytest.approx(900e9, rel=0.01)
    assert [load_hardware(n).units.banks_per_unit for n in PRESETS] == [4, 2, 4]
    assert load_hardware("v100-pim4-fp32").units.lanes == 8


def test_ones_own_from_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'like = "v100-pim2"\nname = "mine"\nchannels = 32\n'
        "[host]\nefficiency = 0.5\n[memory]\ntRFC = 260\n[units]\nprogram = 0\n"
    )
    mine = load_hardware(str(path))
    assert (mine.channels, mine.host.efficiency, mine.memory.tRFC, mine.units.program) == (32, 0.5, 260, 0)
    assert (mine.units.banks_per_unit, mine.memory.clock_ns, mine.source) == (2, 1.14, "like v100-pim2")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"host": {"efficiency": 1.2}}, "cannot be above 1"),
        ({"host": {"flops_per_second": -1}}, "must be a number above 0"),
        ({"host": {"staging_bytes": 100}}, "less than one burst"),
        ({"host": {"speed": 3}}, "unknown key 'speed'"),
        ({"host": 3}, "must be a table"),
        ({"units": {"banks_per_unit": 3}}, "3 banks share a unit"),
        ({"memory": {"tRAS": 60}}, "below tRAS"),
        ({"energy": {"idle_watts": 999.0}}, "idle but"),
        ({"channels": 0}, "channels = 0"),
        ({"address_map": "row"}, "no address map 'row'"),
        ({"chanels": 3}, "unknown key 'chanels'"),
    ],
)
def test_impossible_values_are_refused_with_the_reason(table, words):
    with pytest.raises(OptionError, match=words):
        hardware_from({"like": "v100-pim4", **table})


def test_what_is_missing_is_named():
    with pytest.raises(OptionError, match=r"does not say .*units"):
        hardware_from({"name": "mine", "source": "mine", "channels": 1})
    with pytest.raises(OptionError, match="no hardware 'v100'"):
        load_hardware("v100")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.toml": b'like = "a.toml"'}, "a.toml is like itself"),
        ({"a.toml": b'like = "b.toml"', "b.toml": b'like = "./a.toml"'}, "a.toml is like itself"),
        ({"a.toml": b'name = "\xff"'}, "a.toml cannot be read: it is no UTF-8 text"),
        ({"a.toml": b"name = "}, "a.toml is no TOML"),
        ({"a.toml/b": b""}, "a.toml is a folder"),
        ({}, "a.toml cannot be read: No such file"),
    ],
)
def test_files_that_are_no_hardware(tmp_path, monkeypatch, files, words):
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(OptionError, match=words) as caught:
        load_hardware("a.toml")
    assert caught.value.hint


def test_a_file_may_be_like_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text('like = "b.toml"\nname = "a"')
    (tmp_path / "b.toml").write_text('like = "v100-pim2"\nname = "b"\nchannels = 8')
    assert (load_hardware("a.toml").name, load_hardware("a.toml").channels) == ("a", 8)


def test_a_profile_must_be_of_the_same_precision():
    base = load_hardware("v100-pim4")
    with pytest.raises(OptionError, match="4-byte elements"):
        replace(base, profile=Profile("x", "float32", 4, {}))
