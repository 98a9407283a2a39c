"""The README's results from the files under benchmarks/*/results.

python benchmarks/tables.py            prints the section
python benchmarks/tables.py --write    puts it between the markers in README.md
python benchmarks/tables.py --check    fails when README.md says something else
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
NAMES = {
    "one": "one core",
    "two": "PyTorch's two threads",
    "limit": "limit: two loops that share nothing",
    "convoy": "**convoy, 2 stages, automatic cut**",
    "ddp": "DDP, 2 processes",
    "1f1b-clock": 'convoy, `clock="1f1b"`',
    "1f1b-acc4": 'convoy, `clock="1f1b", accumulate=4`',
    "gpipe/4": "torch.distributed.pipelining, GPipe, 4 micro-batches",
    "1f1b/4": "torch.distributed.pipelining, 1F1B, 4 micro-batches",
}
ACCURACY = {
    "lenet5-mnist": ("LeNet-5, MNIST, PPV (2), 5 epochs", "lenet5-mnist-sequential", "lenet5-mnist-ppv2"),
    "resnet20-5": ("ResNet-20, CIFAR-10, PPV (7), 5 epochs", "resnet20-sequential-5", "resnet20-ppv7-5"),
}


def speed(path: Path) -> list[str]:
    run = json.loads(path.read_text())
    lines = [
        f"{run['model']}, batch {run['batch']}, {run['precision']}, two cores, {run['rounds']} rounds:",
        "",
        "| | times one core: median (min–max) | of the limit |",
        "|---|---:|---:|",
    ]
    for mode, row in run["modes"].items():
        if mode != "one" and row.get("times_one"):
            lines.append(f"| {NAMES.get(mode, mode)} | {shown(row['times_one'])} | {shown(row.get('times_limit'))} |")
    return [*lines, ""]


def shown(ratio: dict[str, float] | None) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f})" if ratio else "–"


def accuracy() -> list[str]:
    lines = ["| test accuracy after the last epoch, one seed | sequential | pipelined |", "|---|---:|---:|"]
    for title, *names in ACCURACY.values():
        paths = [HERE / "accuracy" / "results" / f"{name}.json" for name in names]
        if all(path.exists() for path in paths):
            runs: list[dict[str, Any]] = [json.loads(path.read_text()) for path in paths]
            lines.append(f"| {title} | {runs[0]['accuracy'][-1]:.2f} % | {runs[1]['accuracy'][-1]:.2f} % |")
    return [*lines, ""]


def section() -> str:
    lines: list[str] = []
    for path in sorted((HERE / "speed" / "results").glob("*.json"), key=lambda p: (len(p.name), p.name)):
        lines += speed(path)
    return "\n".join([*lines, *accuracy()])


def main() -> None:
    made = section()
    if "--write" not in sys.argv and "--check" not in sys.argv:
        print(made)
        return
    text = README.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    new = f"{head}{BEGIN}\n{made}{END}{tail}"
    if "--write" in sys.argv:
        README.write_text(new)
    elif new != text:
        sys.exit("error: the results in README.md are not those of the files; run benchmarks/tables.py --write")


if __name__ == "__main__":
    main()
