"""The inner layer: one training step as a graph of tasks, node by node and tile by tile."""
