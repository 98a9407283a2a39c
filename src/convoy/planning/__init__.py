"""Plans before training: what each strategy would bring here, and which to take."""

from convoy.planning.plans import plan

__all__ = ["plan"]
