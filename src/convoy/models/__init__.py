"""The published networks by name, and networks of the user's own by ``module:callable``.

Importing this package does not import torch; building a network does.
"""

from __future__ import annotations

from convoy.models.loading import load
from convoy.models.published import PUBLISHED_MEMORY, PUBLISHED_PPV, PublishedMemory
from convoy.models.registry import build, describe, names

__all__ = ["PUBLISHED_MEMORY", "PUBLISHED_PPV", "PublishedMemory", "build", "describe", "load", "names"]
