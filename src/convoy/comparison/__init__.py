"""Running several strategies on the same work, in turns, and saying what the difference is."""

from convoy.comparison.comparison import Comparison
from convoy.comparison.run import compare
from convoy.comparison.workload import Workload

__all__ = ["Comparison", "Workload", "compare"]
