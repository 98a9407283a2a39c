from convoy.strategies.pipelined.strategy import Pipelined

__all__ = ["Pipelined"]
