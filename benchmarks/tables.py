"""The README's results from the files under benchmarks/*/results.

python benchmarks/tables.py            prints the section
python benchmarks/tables.py --write    puts it between the markers in README.md
python benchmarks/tables.py --check    fails when README.md says something else
python benchmarks/tables.py --screened prints the short runs, for docs/lab
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from convoy.comparison.statistics import interval

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
NAMES = {
    "one": "one core",
    "convoy": "**convoy, 2 stages, automatic cut**",
    "registers": "convoy, published clock, one cut for all clocks",
    "1f1b-clock": 'convoy, `clock="1f1b"`, the same cut',
    "registers-acc4": "convoy, `accumulate=4`, the same cut",
    "1f1b-acc4": 'convoy, `clock="1f1b", accumulate=4`, the same cut',
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
        "Training speed as a multiple of one core, float32, two cores: median (min–max) of the rounds. Where all "
        "clocks have one cut, it is after layer 25 of ResNet-56 and layer 6 of VGG-16.",
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


STUDIES = {
    "k3": ("ResNet-20, four stages (PPV 7, 13, 17)", "k3"),
    "k1-early": ("ResNet-20, two stages, early cut (PPV 7)", "k3"),
    "k1-deep": ("ResNet-20, two stages, deep cut (PPV 17)", "k3"),
    "k7-resnet56": ("ResNet-56, eight stages (PPV 7, 13, 19, 27, 35, 43, 49)", "k7-resnet56"),
    "k3-vgg16": ("VGG-16, four stages (PPV 4, 7, 10)", "k3-vgg16"),
}
"""Title and the study whose sequential runs are compared with. Files: STUDY-VARIANT-eEPOCHS-sSEED.json."""
SCREENED = 4
"""Runs of so many epochs, or fewer, are for screening, and stand in the lab."""
WIDE = "wide"
"""The wider screening, on half of the images and in bfloat16: files wide-VARIANT-eEPOCHS-sSEED.json."""

Runs = dict[str, dict[int, list[float]]]
"""Variant → seed → test accuracy after every epoch."""


def paths_of(study: str, epochs: int) -> list[Path]:
    paths = sorted((HERE / "accuracy" / "results").glob(f"{study}-*-e{epochs}-s*.json"))
    return [path for path in paths if belongs(path.stem, study)]


def runs_of(study: str, epochs: int) -> Runs:
    found: Runs = {}
    for path in paths_of(study, epochs):
        variant, _, seed = path.stem.removeprefix(f"{study}-").rsplit("-", 2)
        reached = json.loads(path.read_text())["accuracy"]
        assert len(reached) == epochs, path
        found.setdefault(variant, {})[int(seed[1:])] = reached
    return found


def conditions(paths: Iterable[Path]) -> str:
    """The highest rate and the precision, which all runs of a table have in common."""
    found = set()
    for path in paths:
        given = options(json.loads(path.read_text())["command"])
        assert "--limit" not in given, path
        found.add((given.get("--lr", "0.1"), given.get("--precision", "float32")))
    ((rate, precision),) = found
    return f"highest rate {rate} for all, {precision}"


def options(command: str) -> dict[str, str]:
    return {word: value for word, value in pairwise(command.split()) if word.startswith("--")}


def belongs(name: str, study: str) -> bool:
    """Not to a study with a longer name that begins alike: k3 and k3-vgg16."""
    return not any(len(other) > len(study) and name.startswith(f"{other}-") for other in STUDIES)


FIRST = ("sequential", "sequential-acc4", "registers")


def ordered(variants: Iterable[str]) -> list[str]:
    return sorted(variants, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))


def shown_variant(name: str) -> str:
    """``1f1b-acc8-predict-spike`` → `clock="1f1b", accumulate=8, correction="predict+spike"`."""
    clock, *rest = name.split("-")
    parts = [] if clock == "registers" else [f'clock="{clock}"']
    micro = [part.removeprefix("acc") for part in rest if part.startswith("acc")]
    parts += [f"accumulate={m}" for m in micro]
    corrections = "+".join(part.replace("_", "-") for part in rest if not part.startswith("acc"))
    parts += [f'correction="{corrections}"'] if corrections else []
    if clock == "sequential":
        return f"one stage, `accumulate={micro[0]}`" if micro else "sequential"
    if clock not in ("registers", "1f1b"):
        return name
    return f"`{', '.join(parts)}`" if parts else "published clock (`registers`)"


def gap(runs: dict[int, list[float]], base: dict[int, list[float]]) -> str:
    """Mean difference of the last accuracies from the same seeds, with its 95 % interval where there are three."""
    pairs = [reached[-1] - base[seed][-1] for seed, reached in runs.items() if seed in base]
    if not pairs:
        return "–"
    mean, half = interval(pairs)
    return f"{mean:+.2f}" + ("" if half is None else f" ± {half:.2f}")


def deep() -> list[str]:
    """Accuracy of every study: last accuracy of its variants, and the paired difference to sequential training."""
    lines: list[str] = []
    for study, (title, base_of) in STUDIES.items():
        paths = (HERE / "accuracy" / "results").glob(f"{study}-*-e*-s*.json")
        lengths = {int(path.stem.rsplit("-", 2)[1][1:]) for path in paths if belongs(path.stem, study)}
        for epochs in sorted((length for length in lengths if length > SCREENED), reverse=True):
            variants = runs_of(study, epochs)
            base = runs_of(base_of, epochs).get("sequential", {})
            if not variants:
                continue
            beside = [path for path in paths_of(base_of, epochs) if "-sequential-e" in path.stem]
            lines += [
                f"{title}, CIFAR-10, {epochs} epochs, {conditions([*paths_of(study, epochs), *beside])}: test accuracy "
                "after the last epoch, and the difference to sequential training from the same seeds (of three: ± 95 % "
                "interval).",
                "",
                "| | seeds | accuracy | difference |",
                "|---|---:|---:|---:|",
            ]
            if study != base_of and base:
                seeds = {seed for reached in variants.values() for seed in reached}
                variants = {"sequential": {seed: base[seed] for seed in sorted(seeds & set(base))}, **variants}
            for name in ordered(variants):
                mean = fmean(reached[-1] for reached in variants[name].values())
                apart = "–" if name == "sequential" else gap(variants[name], base)
                lines.append(f"| {shown_variant(name)} | {len(variants[name])} | {mean:.2f} % | {apart} |")
            lines.append("")
    return lines


def screened() -> list[str]:
    """The runs of four epochs, for the lab: accuracy after every epoch, best last; then the wider screening."""
    tables = []
    for study in ("k3", WIDE):
        lines = [
            "| variant | " + " | ".join(str(e + 1) for e in range(SCREENED)) + " | BatchNorm's estimates anew |",
            "|---|" + "---:|" * (SCREENED + 1),
        ]
        paths = (HERE / "accuracy" / "results").glob(f"{study}-*-e{SCREENED}-s*.json")
        runs = [json.loads(path.read_text()) for path in paths if belongs(path.stem, study)]
        for run in sorted(runs, key=lambda run: run["accuracy"][-1]):
            reached = " | ".join(f"{a:.2f}" for a in run["accuracy"])
            anew = f"{run['recalibrated']:.2f}" if "recalibrated" in run else "–"
            lines.append(f"| {said(run['command'])} | {reached} | {anew} |")
        tables.append("\n".join([*lines, ""]))
    return tables


def said(command: str) -> str:
    """A variant in words, from the options of its command."""
    given = options(command)
    parts = [given.get("--clock", "registers" if "--ppv" in given else "one stage")]
    if given.get("--strategy") == "sequential":
        parts = ["sequential"]
    for option, text in (
        ("--accumulate", "accumulate {}"),
        ("--correction", "{}"),
        ("--sequential-first", "first {} epoch sequentially"),
        ("--warmup", "rate rises over {} of the run"),
        ("--momentum", "momentum by stage {}"),
        ("--lr", "rate to {}"),
        ("--ppv", "PPV {}"),
    ):
        if option in given and given[option] != "7,13,17":
            parts.append(text.format(given[option]))
    parts += [f"seed {given['--seed']}"] if given.get("--seed", "0") != "0" else []
    return ", ".join(parts)


def section() -> str:
    paths = [path for name in SPEED if (path := HERE / "speed" / "results" / f"{name}.json").exists()]
    held = memory(HERE / "memory" / "results" / "published-b128.json")
    return "\n".join([*speed(paths), *held, *accuracy(), *deep()])


def main() -> None:
    if "--screened" in sys.argv:
        print("\n".join(screened()))
        return
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
