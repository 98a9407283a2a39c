"""The bi-layered strategy on Ray: the parameter server is one actor, every node another, the driver carries between.

Control goes through the driver, which therefore knows the order of arrivals, has one clock, and owns every object that
travels: weights and parcels go from actor to actor by reference, and outlive the process that made them.
"""
