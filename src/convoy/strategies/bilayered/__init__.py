from convoy.strategies.bilayered.strategy import BiLayered

__all__ = ["BiLayered"]
