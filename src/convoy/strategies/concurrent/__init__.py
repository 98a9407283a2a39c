"""Concurrent execution of CONV and non-CONV tasks (after Choi et al. 2024)."""

from convoy.strategies.concurrent.strategy import Concurrent

__all__ = ["Concurrent"]
