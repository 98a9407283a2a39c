from __future__ import annotations

import numpy as np
import pytest

from convoy.data.augment import Augment
from convoy.data.keys import below, draws, key

RNG = np.random.default_rng(0)
BITS = draws(key(7), np.arange(2000))


def by_hand(image: np.ndarray, bits: np.ndarray, padding: int, flip: bool) -> np.ndarray:
    """One image at a time, as a reader would write it."""
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    down, right = (int(below(half, 2 * padding + 1)[0]) for half in (bits, bits >> np.uint64(32)))
    image = padded[:, down : down + height, right : right + width]
    return image[:, :, ::-1] if flip and int(bits[0]) % 2 else image


@pytest.mark.parametrize(("padding", "flip"), [(4, True), (4, False), (2, True), (0, True), (0, False)])
def test_equals_one_image_at_a_time(padding: int, flip: bool) -> None:
    images = RNG.integers(1, 256, (40, 3, 9, 7), dtype=np.uint8)
    expected = [by_hand(images[i], BITS[i : i + 1], padding, flip) for i in range(40)]
    got = Augment(padding, flip).apply(images.copy(), BITS[:40])
    assert got.dtype == np.uint8
    assert (got == np.stack(expected)).all()


def test_every_offset_and_both_directions_occur_evenly() -> None:
    # One lit pixel in the middle of 9x9 shows where the crop went; a second one beside it shows the direction.
    image = np.zeros((1, 1, 17, 17), np.uint8)
    image[0, 0, 8, 8], image[0, 0, 8, 9] = 100, 200
    out = Augment(4, True).apply(np.repeat(image, len(BITS), axis=0), BITS)[:, 0]
    rows, columns = np.nonzero(out == 100)[1:]
    second = np.nonzero(out == 200)[2]
    mirrored = second < columns
    assert abs(mirrored.mean() - 0.5) < 0.05
    seen = np.bincount((rows - 4) * 9 + (np.where(mirrored, 16 - columns, columns) - 4), minlength=81)
    assert len(seen) == 81
    assert seen.min() > 5  # 24.7 expected of each
    assert seen.max() < 50
    # the direction must not be tied to the offset
    for row in range(4, 13):
        assert 0.3 < mirrored[rows == row].mean() < 0.7
