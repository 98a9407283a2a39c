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


DEEP = {
    "sequential": "sequential",
    "registers": "published clock (`registers`)",
    "1f1b": '`clock="1f1b"`',
    "1f1b-acc4": '`clock="1f1b", accumulate=4`',
    "1f1b-acc4-predict-spike": '`clock="1f1b", accumulate=4, correction="predict:linear+spike"`',
    "registers-acc4": "`accumulate=4`",
    "registers-acc4-predict-spike": '`accumulate=4, correction="predict:linear+spike"`',
    "sequential-acc4": "one stage, `accumulate=4`",
}
"""Files k3-VARIANT-eEPOCHS-sSEED.json: four stages, registers after layers 7, 13 and 17 of ResNet-20."""


def deep() -> list[str]:
    """ResNet-20 in four stages: last accuracy of every variant by epochs, and the paired difference to sequential."""
    found: dict[int, dict[str, dict[int, float]]] = {}
    for path in sorted((HERE / "accuracy" / "results").glob("k3-*.json")):
        variant, epochs, seed = path.stem.removeprefix("k3-").rsplit("-", 2)
        run = json.loads(path.read_text())
        assert len(run["accuracy"]) == int(epochs[1:]), path
        found.setdefault(int(epochs[1:]), {}).setdefault(variant, {})[int(seed[1:])] = run["accuracy"][-1]
    lines: list[str] = []
    for epochs, variants in sorted(found.items(), reverse=True):
        base = variants.get("sequential", {})
        lines += [
            f"ResNet-20, CIFAR-10, four stages (PPV 7, 13, 17), {epochs} epochs, highest rate 0.1 for all: test "
            "accuracy after the last epoch, and the difference to sequential training from the same seeds.",
            "",
            "| | seeds | accuracy | difference |",
            "|---|---:|---:|---:|",
        ]
        for name in sorted(variants, key=lambda n: (list(DEEP).index(n) if n in DEEP else len(DEEP), n)):
            runs = variants[name]
            pairs = [value - base[seed] for seed, value in runs.items() if seed in base]
            gap = f"{sum(pairs) / len(pairs):+.2f}" if pairs and name != "sequential" else "–"
            mean = sum(runs.values()) / len(runs)
            lines.append(f"| {DEEP.get(name, name)} | {len(runs)} | {mean:.2f} % | {gap} |")
        lines.append("")
    return lines


def section() -> str:
    paths = [path for name in SPEED if (path := HERE / "speed" / "results" / f"{name}.json").exists()]
    held = memory(HERE / "memory" / "results" / "published-b128.json")
    return "\n".join([*speed(paths), *held, *accuracy(), *deep()])


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
