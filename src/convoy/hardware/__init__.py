"""Hardware that is modelled, not owned: memory at the level of requests, units in memory, a host, and a training step
on the three of them."""
