"""A machine as a small description with sources: memory, units in it, host, energy. Presets, or the user's own TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convoy.errors import OptionError
from convoy.hardware.host import Energy, Host
from convoy.hardware.memory.address import MAPS, MapName
from convoy.hardware.memory.timing import Memory, memory_from
from convoy.hardware.pim.units import Units
from convoy.hardware.profile import Profile

if TYPE_CHECKING:
    from convoy.hardware.tasks import HostTask

PRESETS = ("v100-pim4", "v100-pim2", "v100-pim4-fp32")


@dataclass(frozen=True)
class Hardware:
    """``channels`` equal pseudo-channels of ``memory``, each with ``units``, and the ``host``. Clocks are those of the
    memory; seconds = clocks x ``memory.clock_ns`` / 1e9. ``profile``: measured times of the host's tasks."""

    name: str
    source: str
    channels: int
    memory: Memory
    units: Units
    host: Host
    energy: Energy
    address_map: MapName = "col"
    profile: Profile | None = None

    def __post_init__(self) -> None:
        if isinstance(self.channels, bool) or not isinstance(self.channels, int) or self.channels < 1:
            raise OptionError(f"hardware {self.name} has channels = {self.channels!r}", hint="give 1 or more")
        if self.profile is not None and self.profile.element_bytes != self.units.element_bytes:
            raise OptionError(
                f"the profile is of {self.profile.element_bytes}-byte elements, hardware {self.name} has "
                f"{self.units.element_bytes}",
                hint="calibrate with the same --hardware",
            )
        if self.address_map not in MAPS:
            raise OptionError(f"there is no address map {self.address_map!r}", hint=f"the maps are {', '.join(MAPS)}")
        self.units.check(self.memory)
        staging = self.host.staging_bytes / self.channels
        if staging < self.memory.burst_bytes:
            raise OptionError(
                f"{self.host.staging_bytes} staging bytes are less than one burst for each of {self.channels} channels",
                hint=f"give {self.channels * self.memory.burst_bytes} or more",
            )

    @property
    def element_bytes(self) -> int:
        return self.units.element_bytes

    def host_seconds(self, task: HostTask) -> float:
        """How long the host computes at ``task``, its data there: measured, where there is a profile."""
        if self.profile is not None:
            return self.profile.seconds_of(task)
        return self.host.compute_seconds(task.flops)

    @property
    def bytes_per_second(self) -> float:
        """Peak of all channels."""
        return self.channels * self.memory.peak_bytes_per_clock / self.memory.clock_ns * 1e9

    @property
    def clocks_per_second(self) -> float:
        return 1e9 / self.memory.clock_ns


def load_hardware(name: str) -> Hardware:
    """Hardware by the name of a preset or the path of a TOML file. Raises OptionError with the reason."""
    return _load(name, ())


def _load(name: str, begun: tuple[str, ...]) -> Hardware:
    """``begun``: the files that are being read, each like the next; none of them may come again."""
    where = str(Path(name).resolve())
    if name in PRESETS:
        text = files("convoy.hardware").joinpath("presets", f"{name}.toml").read_text(encoding="utf-8")
    elif Path(name).is_dir():
        raise OptionError(f"{name} is a folder", hint="give the path of a .toml file")
    elif name.endswith(".toml"):
        if where in begun:
            raise OptionError(f"hardware {name} is like itself", hint=f'like = "{PRESETS[0]}" ends the circle')
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as problem:
            reason = problem.strerror if isinstance(problem, OSError) else "it is no UTF-8 text"
            raise OptionError(f"{name} cannot be read: {reason}", hint="give the path of a TOML file") from None
    else:
        near = get_close_matches(name, PRESETS, n=1)
        hint = (
            f"did you mean {near[0]}?" if near else f"the presets are {', '.join(PRESETS)}; or a path ending in .toml"
        )
        raise OptionError(f"there is no hardware {name!r}", hint=hint)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise OptionError(f"{name} is no TOML: {problem}", hint="mend the file") from None
    return _from(table, name, (*begun, where))


def hardware_from(table: Mapping[str, Any], where: str = "the hardware") -> Hardware:
    """Hardware from tables as TOML gives them: ``like`` (a preset or file whose values are the defaults), ``name``,
    ``source``, ``channels``, ``address_map`` and the tables memory, units, host and energy."""
    return _from(table, where, ())


def _from(table: Mapping[str, Any], where: str, begun: tuple[str, ...]) -> Hardware:
    parts = {"memory": Memory, "units": Units, "host": Host, "energy": Energy}
    known = ("like", "name", "source", "channels", "address_map", *parts)
    _refuse_unknown(table, known, where)
    base = _load(str(table["like"]), begun) if "like" in table else None
    if base is None:
        missing = [key for key in known[1:4] + tuple(parts) if key not in table]
        if missing:
            raise OptionError(
                f"{where} does not say {', '.join(missing)}", hint=f'like = "{PRESETS[0]}" takes the rest'
            )
    built: dict[str, Any] = {}
    for key, kind in parts.items():
        given = table.get(key, {})
        if not isinstance(given, Mapping):
            raise OptionError(f"{key} of {where} is {given!r}, but must be a table", hint=f"write [{key}]")
        under = getattr(base, key) if base is not None else None
        built[key] = _part(kind, given, under, f"[{key}] of {where}")
    plain = {key: table[key] for key in known[1:5] if key in table}
    if base is not None:
        plain = {key: getattr(base, key) for key in known[1:5]} | {"source": f"like {base.name}"} | plain
    return Hardware(**plain, **built)


def _part(kind: Any, given: Mapping[str, Any], base: Any, where: str) -> Any:
    names = [field.name for field in fields(kind)]
    start = {name: getattr(base, name) for name in names} if base is not None and "like" not in given else {}
    if kind is Memory:
        return memory_from(start | dict(given), where)
    _refuse_unknown(given, names, where)
    try:
        return kind(**(start | dict(given)))
    except TypeError:
        required = [field.name for field in fields(kind) if field.default is field.default_factory]
        missing = [name for name in required if name not in given and name not in start]
        raise OptionError(f"{where} does not say {', '.join(missing)}", hint="see the presets") from None


def _refuse_unknown(table: Mapping[str, Any], known: Any, where: str) -> None:
    for key in table:
        if key not in known:
            near = get_close_matches(key, list(known), n=1)
            hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(known)}"
            raise OptionError(f"{where} has an unknown key {key!r}", hint=hint)
