"""Training on two machines with Ray: a parameter server and two nodes, each a process of its own.

    python two_machines.py                       both nodes here, in a Ray of their own
    python two_machines.py --address head:6379   in a cluster, which Ray spreads the nodes over

For a cluster, on the head and on the other machine, with the same Python and the same packages (docs/machines.md):

    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=…  # the same long random text on both
    ray start --head --port 6379                 # on the head
    ray start --address head:6379                # on the other
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec

import torch
from torch import nn

from convoy import BiLayered, Settings, Trainer, open_data
from convoy.models import build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", help="of the cluster, HOST:PORT; without it, this machine alone")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="cores of each node")
    options = parser.parse_args()
    if find_spec("ray") is None:
        print("skipped: ray is not installed (pip install 'convoy-train[ray]')")
        sys.exit(0)

    data = open_data("digits", batch_size=32)
    model = build("lenet5", classes=10, channels=1, image_size=28, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    strategy = BiLayered(nodes=options.nodes, round=15, engine="ray", address=options.address)
    trainer = Trainer(
        model, nn.CrossEntropyLoss(), optimizer, strategy=strategy, settings=Settings(threads=options.threads)
    )
    history = trainer.fit(data.train, data.validation, epochs=3)
    print(history.plan.table(), history, sep="\n")


if __name__ == "__main__":  # the actors' processes import this file
    main()
