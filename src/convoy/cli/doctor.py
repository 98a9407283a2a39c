"""``convoy doctor``: whether this machine is fit for training, and what holds it back."""

from __future__ import annotations

import importlib.util
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from convoy.cli.flags import Debug, Json, Quiet
from convoy.cli.output import result

_EXTRAS = {"ray": "ray", "simulate": "numba", "tensorboard": "tensorboard", "onnx": "onnxscript"}
_TORCH = ((2, 11), (2, 14))  # from, and below


@dataclass(frozen=True, slots=True)
class Finding:
    """``verdict``: "ok", "note" (slower, or something is not there) or "bad" (training cannot work)."""

    what: str
    verdict: Literal["ok", "note", "bad"]
    text: str


def doctor(
    *,
    run_dir: Annotated[str, Parameter(help="Where runs would be written.", metavar="DIR")] = "runs",
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """See whether this machine is fit for training. Exit code 1 where it is not."""
    checks: list[Callable[[], Finding]] = [
        _python, _torch, _cores, _busy, _threads, _memory, _cuda, _timer, lambda: _writable(Path(run_dir)), _extras
    ]  # fmt: skip
    findings = [check() for check in checks]
    fit = all(finding.verdict != "bad" for finding in findings)
    width = max(len(finding.what) for finding in findings)
    lines = [f"{f.verdict:<4}  {f.what:<{width}}  {f.text}" for f in findings if not (quiet and f.verdict == "ok")]
    lines.append("fit for training" if fit else "not fit for training: see what is bad above")
    result({"fit": fit, "findings": [asdict(finding) for finding in findings]}, "\n".join(lines), as_json=json)
    return 0 if fit else 1


def _python() -> Finding:
    from convoy import __version__

    return Finding("versions", "ok", f"convoy {__version__}, Python {platform.python_version()}, {platform.platform()}")


def _torch() -> Finding:
    import torch

    # The installed version and not torch.__version__, which is of a type of its own.
    try:
        found = version("torch")
    except PackageNotFoundError:
        found = str(torch.__version__)
    number = tuple(int(part) for part in found.split("+")[0].split(".")[:2])
    text = f"{found}, {torch.backends.cpu.get_cpu_capability()}"
    if _TORCH[0] <= number < _TORCH[1]:
        return Finding("torch", "ok", text)
    wanted = f">={'.'.join(map(str, _TORCH[0]))},<{'.'.join(map(str, _TORCH[1]))}"
    return Finding("torch", "bad", f"{text}; convoy is made for torch{wanted}")


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cores() -> Finding:
    usable, there = available_cores(), os.cpu_count() or 1
    text = f"{usable} of {there} usable"
    if usable == 1:
        return Finding("cores", "note", f"{text}; a pipeline gains nothing on one core")
    return Finding("cores", "ok", text)


def _busy() -> Finding:
    """Whether other programs keep cores busy; half of one is enough to spoil a comparison."""
    from convoy.training.load import BUSY_CORES

    others = busy_cores(0.5)
    if others is None:
        return Finding("other load", "note", "not known on this system")
    text = f"other programs keep {others:.1f} cores busy"
    return Finding("other load", "note" if others > BUSY_CORES else "ok", text)


def busy_cores(seconds: float) -> float | None:
    """Cores that other processes use, averaged over ``seconds``; None where the system does not say."""
    from convoy.training.load import OtherLoad

    load = OtherLoad()
    time.sleep(seconds)
    return load.cores()


def _threads() -> Finding:
    import torch

    count, usable = torch.get_num_threads(), available_cores()
    set_by = next((name for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if os.environ.get(name)), None)
    text = f"{count} per operator" + (f" ({set_by}={os.environ[set_by]})" if set_by else "")
    if count < usable:
        return Finding("threads", "note", f"{text}, {usable} cores are there; --threads {usable} uses them")
    if count > usable:
        return Finding("threads", "note", f"{text}, but only {usable} cores; --threads {usable} is faster")
    return Finding("threads", "ok", text)


def _memory() -> Finding:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free, total = (int(lines[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
    except (OSError, ValueError, KeyError):
        return Finding("memory", "note", "not known on this system")
    return Finding("memory", "ok" if free > 2**30 else "note", f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free")


def _cuda() -> Finding:
    import torch

    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    if devices:
        return Finding("CUDA", "ok", ", ".join(f"{d.name} ({d.total_memory / 1e9:.0f} GB)" for d in devices))
    built = torch.version.cuda
    return Finding("CUDA", "ok", "none" if built is None else f"built for {built}, no device found")


def _timer() -> Finding:
    """How far equal pieces of work differ in time: what a measured cut can trust."""
    noise = timer_noise()
    text = f"equal work varies by {noise:.0%}"
    return Finding("timing", "note" if noise > 0.2 else "ok", text + ("; measure on a quieter machine" * (noise > 0.2)))


def timer_noise(repeats: int = 30) -> float:
    """Distance of the quartiles over the median of the times of equal work."""

    def work() -> float:
        began = time.perf_counter()
        sum(range(50_000))
        return time.perf_counter() - began

    work()
    low, middle, high = statistics.quantiles([work() for _ in range(repeats)], n=4)
    return (high - low) / middle


def _writable(folder: Path) -> Finding:
    where = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=where) as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return Finding("run folder", "bad", f"{where} cannot be written: {(error.strerror or str(error)).lower()}")
    free = os.statvfs(where).f_bavail * os.statvfs(where).f_frsize if hasattr(os, "statvfs") else None
    text = f"{where.absolute()} can be written" + ("" if free is None else f", {free / 1e9:.0f} GB free")
    return Finding("run folder", "note" if free is not None and free < 1e9 else "ok", text)


def _extras() -> Finding:
    there = [extra for extra, module in _EXTRAS.items() if importlib.util.find_spec(module) is not None]
    missing = [extra for extra in _EXTRAS if extra not in there]
    text = f"installed: {', '.join(there) or 'none'}" + (f"; not installed: {', '.join(missing)}" if missing else "")
    return Finding("extras", "ok", text)
