"""How long until Python has imported convoy, and until its command has printed its help?

    python benchmarks/imports/run.py --rounds 21

Fresh processes in turns: ``python -c pass``, ``import convoy``, ``convoy --help``; wall-clock seconds, medians. The
bars are 0.2 s and 0.4 s for the whole process.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.rounds import Noise, finish, shown, spread, table

BARS = {"import convoy": 0.2, "convoy --help": 0.4}


def commands() -> dict[str, list[str]]:
    beside = Path(sys.executable).with_name("convoy")
    script = str(beside) if beside.exists() else shutil.which("convoy")
    help_page = [script, "--help"] if script else [sys.executable, "-c", _MAIN, "--help"]
    return {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import convoy": [sys.executable, "-c", "import convoy"],
        "convoy --help": help_page,
    }


_MAIN = "import sys; from convoy.cli.main import main; sys.argv[0] = 'convoy'; sys.exit(main())"


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    noise, found = Noise(), commands()
    for command in found.values():  # the first of each writes byte code and fills the file cache
        seconds(command)
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(options.rounds):
        for name, command in found.items():
            times[name].append(seconds(command))
    rows: dict[str, Any] = {}
    for name, values in times.items():
        rows[name] = {"seconds": spread(values)}
        if name in BARS:
            over = [v - base for v, base in zip(values, times["python -c pass"], strict=True)]
            rows[name] |= {"over_plain_python": spread(over), "bar": BARS[name]}
            rows[name]["within_bar"] = rows[name]["seconds"]["median"] <= BARS[name]
    cells = [
        (name, shown(row["seconds"], 0, 1e3), row.get("bar") and f"{row['bar'] * 1e3:.0f}",
         {True: "yes", False: "no"}.get(row.get("within_bar")))
        for name, row in rows.items()
    ]  # fmt: skip
    print(table(("command", "ms", "bar", "within"), cells))
    finish({"benchmark": "imports", "rounds": options.rounds, "commands": rows, "noise": noise.report()})


if __name__ == "__main__":
    main()
