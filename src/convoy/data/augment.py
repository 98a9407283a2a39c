"""Random crop and horizontal flip of a whole batch, without a loop over images.

Padding by 4 and cropping back, then flipping every second image, is the usual recipe for CIFAR (He, Zhang, Ren, Sun:
"Deep residual learning for image recognition", 2016, section 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from convoy.data.keys import below


@dataclass(frozen=True, slots=True)
class Augment:
    """``padding`` pixels of black on each side before a crop to the old size; ``flip``: half of the images mirrored."""

    padding: int = 4
    flip: bool = True

    def apply(self, images: NDArray[np.uint8], bits: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """[n, C, H, W] to the same shape; ``bits`` [n] are each sample's own random bits.

        ``images`` may be overwritten.
        """
        if self.padding:
            count, channels, height, width = images.shape
            pad, offsets = self.padding, 2 * self.padding + 1
            padded = np.zeros((count, channels, height + 2 * pad, width + 2 * pad), np.uint8)
            padded[:, :, pad : pad + height, pad : pad + width] = images
            windows = sliding_window_view(padded, (height, width), axis=(2, 3))
            down, right = below(bits, offsets), below(bits >> np.uint64(32), offsets)
            images = windows[np.arange(count), :, down, right]
        if self.flip:
            # The lowest bit: the crop is decided by the highest ones of each half.
            mirrored = np.flatnonzero(bits & np.uint64(1))
            images[mirrored] = images[mirrored, :, :, ::-1]
        return images
