"""The embedded digits, the default data set: nothing to download. See digits.md for their source and licence."""

from __future__ import annotations

from importlib.resources import files

import numpy as np

from convoy.data.keys import key, permutation
from convoy.data.source import ArraySource, Parts, numbered

_SPLIT = key(1998)  # fixed: the test part is the same whatever the seed of a run
_TEST = 360
NATIVE_SIZE = 8
DEFAULT_SIZE = 28


def read_digits() -> Parts:
    """1,437 training and 360 test images of 8 x 8 pixels, 1 channel, 10 classes; 0…16 stretched to 0…255."""
    with files("convoy.data").joinpath("digits.npz").open("rb") as stream, np.load(stream) as stored:
        images, labels = stored["images"].astype(np.uint16), stored["labels"]
    everything = ArraySource(((images * 255 + 8) // 16).astype(np.uint8)[:, None], labels)
    order = permutation(_SPLIT, len(labels))
    test, train = np.sort(order[:_TEST]), np.sort(order[_TEST:])
    return Parts("digits", everything.select(train), everything.select(test), numbered(10))
