"""``convoy simulate``: a training step on a modelled host and on units in its memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from convoy.cli.flags import Debug, Json, Quiet, check_choice, check_count
from convoy.cli.output import note, result

if TYPE_CHECKING:
    from convoy.hardware.step import Simulation
    from convoy.hardware.tasks import Step

_SWEEPS = ("groups", "turns", "batch-size", "switch-cost", "banks-per-unit", "units")


def simulate(
    model: Annotated[str, Parameter(help="A network's name, or module:callable of your own.")],
    *,
    hardware: Annotated[str, Parameter(help="A preset or a TOML file.", metavar="NAME|FILE")] = "v100-pim4",
    batch_size: Annotated[int, Parameter(help="Samples in a step.", metavar="N")] = 32,
    image_size: Annotated[int, Parameter(help="Pixels a side.", metavar="N")] = 224,
    classes: Annotated[int, Parameter(help="Classes of the network.", metavar="N")] = 1000,
    turns: Annotated[
        str, Parameter(help="Who holds the memory when.", metavar="serial|alternate|queue|idle|partition|planned")
    ] = "queue",
    groups: Annotated[int, Parameter(help="Groups of output channels (planned chooses its own).", metavar="N")] = 4,
    reread: Annotated[bool, Parameter(help="Read a layer's inputs again for every group.")] = True,
    profile: Annotated[Path | None, Parameter(help="Measured times of the host's tasks.", metavar="FILE")] = None,
    calibrate: Annotated[
        Path | None,
        Parameter(help="Measure the host's tasks on --device, write them to FILE, and end.", metavar="FILE"),
    ] = None,
    device: Annotated[str, Parameter(help="For --calibrate: cuda, cuda:1, cpu.", metavar="NAME")] = "cuda",
    sweep: Annotated[
        str | None,
        Parameter(help="Several simulations, such as groups=1,2,4,8 or switch-cost=0.5,2.", metavar="WHAT=LIST"),
    ] = None,
    layers: Annotated[bool, Parameter(help="A line for each layer and phase.")] = True,
    trace: Annotated[
        Path | None, Parameter(help="Write the step as a Chrome trace (.json.gz).", metavar="FILE")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """A training step on a modelled host and on units in its memory that take turns.

    CONV tasks run on the host, the others in memory, group by group of output channels. Times are simulated; nothing is
    trained and the network is not run.
    """
    from convoy.hardware.step.turns import TURNS

    check_choice("--turns", turns, tuple(TURNS))
    check_count("--batch-size", batch_size, 32)
    check_count("--groups", groups, 4)
    check_count("--image-size", image_size, 224)
    check_count("--classes", classes, 1000)
    wanted = _swept(sweep)
    network = _network(model, image_size, classes)
    from convoy.hardware.engines import PRESETS

    if hardware in PRESETS:
        return _engines(network, PRESETS[hardware], batch_size, image_size, wanted, json)
    if wanted[0][0] == "units":
        from convoy.errors import OptionError

        raise OptionError(f"--sweep units is of engines, not of {hardware}", hint="add --hardware two-engines")
    from convoy.hardware.description import load_hardware
    from convoy.hardware.step import simulate as carry_out

    described = load_hardware(hardware)
    if calibrate is not None:
        return _calibrate(
            network, model, batch_size, image_size, described.element_bytes, device, calibrate, json, quiet
        )
    if profile is not None:
        from convoy.hardware.profile import load_profile

        described = replace(described, profile=load_profile(profile))
    found: list[tuple[str, Simulation]] = []
    steps: dict[int, Step] = {}
    for what, chosen in wanted:
        options: dict[str, Any] = {"turns": turns, "groups": groups, "reread": reread}
        other, size = described, batch_size
        if what == "batch-size":
            size = int(chosen)
        elif what in ("switch-cost", "banks-per-unit"):
            other = _changed(described, what, chosen)
        elif what:
            options[what] = chosen if what == "turns" else int(chosen)
        if size not in steps:
            steps[size] = _tasks(network, model, size, image_size)
        if what:
            note(f"{what} {chosen}", quiet=quiet)
        found.append((f"{what} {chosen}".strip(), carry_out(steps[size], other, **options)))
    if trace is not None:
        _write_trace(found[0][1], trace)
    if sweep is None:
        result(found[0][1].to_dict(), found[0][1].table(layers=layers), as_json=json)
    else:
        rows = [{"sweep": name, **one.to_dict()} for name, one in found]
        result({"sweep": sweep, "rows": rows}, _sweep_table(found), as_json=json)
    return 0


def _network(model: str, image_size: int, classes: int) -> Any:
    from convoy.models import load

    return load(model, classes=classes, image_size=image_size)


def _engines(
    network: Any, engines: Any, batch_size: int, image_size: int, wanted: list[tuple[str, str]], as_json: bool
) -> int:
    """Speculative training on engines of multiply-accumulate units."""
    from convoy.errors import OptionError
    from convoy.strategies.speculative.modelled import time_per_sample

    if wanted[0][0] not in ("", "units"):
        raise OptionError(
            f"--sweep {wanted[0][0]} is of units in memory, not of {engines.name}", hint="sweep units=64,128,256"
        )
    units = [int(value) for what, value in wanted if what]
    found = time_per_sample(network, engines, batch_size, (3, image_size, image_size), units)
    result(found.to_dict(), found.table(), as_json=as_json)
    return 0


def _tasks(network: Any, name: str, batch_size: int, image_size: int) -> Step:
    from convoy.hardware.step import tasks_of

    return replace(tasks_of(network, batch_size, (3, image_size, image_size)), model=name)


def _swept(sweep: str | None) -> list[tuple[str, str]]:
    """What to simulate: ("", "") alone without a sweep."""
    from convoy.errors import OptionError

    if sweep is None:
        return [("", "")]
    what, _, listed = sweep.partition("=")
    what = what.replace("_", "-")
    values = [value.strip() for value in listed.split(",") if value.strip()]
    if what not in _SWEEPS or not values:
        raise OptionError(
            f"--sweep is {sweep!r}, but must be WHAT=LIST with one of {', '.join(_SWEEPS)}",
            hint="for example --sweep groups=1,2,4,8",
        )
    for value in values:
        try:
            number = 1.0 if what == "turns" else float(value) if what == "switch-cost" else int(value)
        except ValueError:
            number = 0
        if number <= 0:
            raise OptionError(f"--sweep has {value!r} for {what}", hint="give numbers above 0, apart by commas")
        if what == "turns":
            from convoy.hardware.step.turns import TURNS

            check_choice("--sweep turns", value, tuple(TURNS))
    return [(what, value) for value in values]


def _changed(hardware: Any, what: str, value: str) -> Any:
    if what == "banks-per-unit":
        return replace(hardware, units=replace(hardware.units, banks_per_unit=int(value)))
    parts = ("park_in", "to_all_banks", "program", "to_units", "from_units", "to_single_bank", "park_out")
    names = (*parts, "overlap", "overlap_host", "program_net")
    changed = {name: round(getattr(hardware.units, name) * float(value)) for name in names}
    return replace(hardware, units=replace(hardware.units, **changed))


def _sweep_table(found: list[tuple[str, Simulation]]) -> str:
    from convoy.schedule.plan import columns

    head = ("sweep", "ms", "serial ms", "host alone ms", "times serial", "bound", "J", "% of the way")
    rows = []
    for name, one in found:
        times = [f"{1e3 * t:.3f}" for t in (one.seconds, one.serial_seconds, one.host_alone_seconds)]
        ratios = (f"{one.speedup:.3f}", f"{one.bound_speedup:.3f}", f"{one.joules:.3f}")
        rows.append((name, *times, *ratios, f"{100 * one.way_to_bound:.0f}"))
    return columns(head, rows)


def _write_trace(found: Simulation, path: Path) -> None:
    from convoy.errors import MachineError
    from convoy.events.chrome import ChromeTrace

    try:
        sink = ChromeTrace(path)
    except OSError as problem:
        raise MachineError(f"{path} cannot be written: {problem.strerror}", hint="choose another place") from None
    for event in found.events():
        sink(event)
    sink.close()
    if sink.error is not None:
        raise MachineError(f"{path} cannot be written: {sink.error.strerror}", hint="choose another place")


def _calibrate(
    network: Any, name: str, batch_size: int, image_size: int, element_bytes: int, device: str, path: Path,
    as_json: bool, quiet: bool,
) -> int:  # fmt: skip
    from convoy.cli.setup import check_device
    from convoy.hardware.profile import calibrate, write_profile

    check_device(device)
    found = calibrate(network, batch_size, (3, image_size, image_size), device, element_bytes=element_bytes)
    write_profile(found, path)
    text = f"{len(found.seconds)} tasks of {name} measured on {found.device}; use them with --profile {path}"
    result({"profile": str(path), "device": found.device, "tasks": len(found.seconds)}, text, as_json=as_json)
    note(f"precision: {found.precision}", quiet=quiet)
    return 0
