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
    "convoy": "**convoy, 2 stages, automatic cut**",
    "1f1b-clock": 'convoy, `clock="1f1b"`',
    "1f1b-acc4": 'convoy, `clock="1f1b", accumulate=4`',
    "limit": "limit: two loops that share nothing",
    "two": "PyTorch's two threads",
    "ddp": "DDP, 2 processes",
    "gpipe/4": "torch.distributed.pipelining, GPipe, 4 micro-batches",
    "1f1b/4": "torch.distributed.pipelining, 1F1B, 4 micro-batches",
}
MODELS = {
    "lenet5": "LeNet-5",
    "alexnet": "AlexNet",
    "vgg16": "VGG-16",
    "resnet20": "ResNet-20",
    "resnet56": "ResNet-56",
    "resnet110": "ResNet-110",
    "resnet224": "ResNet-224",
    "resnet362": "ResNet-362",
}
SPEED = ("resnet56-b32", "resnet56-b128", "vgg16-b128", "resnet110-b32", "resnet224-b32", "resnet362-b32")
ACCURACY = {
    "lenet5-mnist": ("LeNet-5, MNIST, PPV (2), 5 epochs", "lenet5-mnist-sequential", "lenet5-mnist-ppv2"),
    "resnet20-5": ("ResNet-20, CIFAR-10, PPV (7), 5 epochs", "resnet20-sequential-5", "resnet20-ppv7-5"),
}


def speed(paths: list[Path]) -> list[str]:
    """One column a file, one row a contender: times one core, median and spread over the rounds."""
    runs = [json.loads(path.read_text()) for path in paths]
    order = list(NAMES)
    modes = {mode for run in runs for mode in run["modes"] if mode != "one"}
    head = " | ".join(f"{MODELS.get(run['model'], run['model'])}, batch {run['batch']}" for run in runs)
    lines = [
        "Training speed as a multiple of one core, float32, two cores: median (min–max) of the rounds.",
        "",
        f"| | {head} |",
        "|---|" + "---:|" * len(runs),
    ]
    for mode in sorted(modes, key=lambda m: (order.index(m) if m in order else len(order), m)):
        cells = " | ".join(shown((run["modes"].get(mode) or {}).get("times_one")) for run in runs)
        lines.append(f"| {NAMES.get(mode, mode)} | {cells} |")
    return [*lines, ""]


def shown(ratio: dict[str, float] | None) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f})" if ratio else "–"


def memory(path: Path) -> list[str]:
    run = json.loads(path.read_text())
    lines = [
        f"Peak memory beyond sequential training at batch {run['batch']}, in percent of activations and weights, "
        "measured (and as a multiple of what the clock's delays foretell).",
        "",
        "| network (PPV) | published | `registers` | `1f1b` | `1f1b`, `accumulate=4` |",
        "|---|---:|---:|---:|---:|",
    ]
    for net, found in run["nets"].items():
        cells = []
        for row in found["variants"].values():
            times = row["extra_of_expected"] if "extra_of_expected" in row else row["peak_of_expected"]
            cells.append(f"{row['extra_percent']:+.0f} % ({times:.2f})")
        ppv = ", ".join(str(p) for p in found["ppv"])
        published = f"+{found['published_increase_percent']} %"
        lines.append(f"| {MODELS.get(net, net)} ({ppv}) | {published} | {' | '.join(cells)} |")
    return [*lines, ""]


def accuracy() -> list[str]:
    lines = ["| test accuracy after the last epoch, one seed | sequential | pipelined |", "|---|---:|---:|"]
    for title, *names in ACCURACY.values():
        paths = [HERE / "accuracy" / "results" / f"{name}.json" for name in names]
        if all(path.exists() for path in paths):
            runs: list[dict[str, Any]] = [json.loads(path.read_text()) for path in paths]
            lines.append(f"| {title} | {runs[0]['accuracy'][-1]:.2f} % | {runs[1]['accuracy'][-1]:.2f} % |")
    return [*lines, ""]


def section() -> str:
    paths = [path for name in SPEED if (path := HERE / "speed" / "results" / f"{name}.json").exists()]
    return "\n".join([*speed(paths), *memory(HERE / "memory" / "results" / "published-b128.json"), *accuracy()])


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
