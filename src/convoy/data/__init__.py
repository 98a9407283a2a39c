"""Data sets: readers, augmentation, and loaders whose order depends on the seed alone."""

from convoy.data.augment import Augment
from convoy.data.loader import Batches, Loader
from convoy.data.open import KINDS, DataBundle, open_data
from convoy.data.user import DatasetLoader, UserLoader, as_loader

__all__ = [
    "KINDS",
    "Augment",
    "Batches",
    "DataBundle",
    "DatasetLoader",
    "Loader",
    "UserLoader",
    "as_loader",
    "open_data",
]
