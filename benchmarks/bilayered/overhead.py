"""What does the outer layer cost where it has nothing to do: one node against ``Sequential``, and are the bits equal?

    python benchmarks/bilayered/overhead.py --data mnist:DIR --limit 12000

The same model, data, order and thread count, in this process (``inline``) and on actors (``ray``), with a round of a
local pass and of ``--round`` mini-batches. Timed: the passes after the first one, from the last merge of it to the end.
Rounds: every contender in turn; ratios within a round. Bar: 3 %.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common.rounds import Noise, finish, shown, spread, table
from torch import nn
from workload import Workload

from convoy.engines.ray.session import connect
from convoy.strategies.base import Turn
from convoy.strategies.bilayered import BiLayered
from convoy.strategies.bilayered.samples import samples_of
from convoy.strategies.sequential import Sequential

BAR = 1.03


def sequential(work: Workload, passes: int) -> tuple[nn.Module, float]:
    """Through the same reading of the data, so that the outer layer alone is the difference."""
    model, optimizer = work.parts()
    samples = samples_of(work.data, seed=work.settings.seed, held_out=False)
    whole = ((0, samples.size),)
    with Sequential().bind(model, work.loss, optimizer, settings=work.settings) as step:
        for number in range(1, passes + 1):
            if number == 2:
                began = time.perf_counter()
            for x, y in samples.fetch(samples.minibatches(whole, number, 0, samples.size), number):
                result = step(x, y)
                assert result is not None
                float(result.loss)
        ended = time.perf_counter()
    return model, (ended - began) / (passes - 1)


def one_node(work: Workload, passes: int, engine: str, size: int | str) -> tuple[nn.Module, float]:
    model, optimizer = work.parts()
    strategy = BiLayered(nodes=1, batches=1, engine=engine, round=size)
    step = strategy.bind_data(model, work.loss, optimizer, work.data, passes=passes, settings=work.settings)
    with step:
        merged: Any = step
        began = 0.0
        while merged.merged() < passes * merged.samples:
            step(Turn(), None)
            if not began and merged.merged() >= merged.samples:
                began, rest = time.perf_counter(), passes - merged.merged() / merged.samples
        ended = time.perf_counter()
        step.drain()
    return model, (ended - began) / rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--net", default="lenet5")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--round", type=int, default=100)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engines", default="inline,ray")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    contenders: dict[str, tuple[str, int | str]] = {
        f"{engine}, round {size}": (engine, size)
        for engine in asked.engines.split(",")
        for size in ("pass", asked.round)
    }
    work = Workload(asked.data, asked.net, asked.batch_size, asked.seed, asked.limit)
    noise, rounds, equal = Noise(), [], dict.fromkeys(contenders, True)
    with connect(cpus=2):
        for number in range(asked.rounds):
            plain, seconds = sequential(work, asked.passes)
            answers = {"sequential": seconds}
            for name in contenders if number % 2 == 0 else reversed(contenders):
                model, answers[name] = one_node(work, asked.passes, *contenders[name])
                pairs = zip(model.state_dict().values(), plain.state_dict().values(), strict=True)
                equal[name] &= all(torch.equal(a, b) for a, b in pairs)
            again = sequential(work, asked.passes)[1]
            answers["sequential"] = (seconds + again) / 2  # before and after
            print(f"round {number + 1}, s a pass: {answers}", file=sys.stderr, flush=True)
            rounds.append(answers)
    rows: dict[str, Any] = {}
    for name in ("sequential", *contenders):
        rows[name] = {"seconds_per_pass": spread(answers[name] for answers in rounds)}
        if name in equal:
            rows[name] |= {
                "over_sequential": spread(answers[name] / answers["sequential"] for answers in rounds),
                "equal_bits": equal[name],
            }
    head = ("one node", "s a pass", "over sequential", "bits equal", f"within {BAR}")
    print(
        table(
            head,
            (
                (
                    name,
                    shown(row["seconds_per_pass"], 3),
                    shown(row.get("over_sequential"), 3),
                    row.get("equal_bits"),
                    None if name == "sequential" else row["over_sequential"]["median"] <= BAR,
                )
                for name, row in rows.items()
            ),
        )
    )
    options = {**vars(asked), "data": asked.data.partition(":")[0]}
    finish({"benchmark": "bilayered overhead", "asked": options, "bar": BAR, "rows": rows, "noise": noise.report()})


if __name__ == "__main__":
    main()
