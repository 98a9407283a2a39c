"""Speculative backpropagation: the backward pass starts from remembered or predicted outcomes and is mended where
these were wrong."""

from convoy.strategies.speculative.strategy import Speculative as Speculative
