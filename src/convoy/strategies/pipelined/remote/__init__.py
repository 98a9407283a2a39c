"""Stages as Ray actors: ``Pipelined(engine="ray")``."""
