"""Ray, for more than one process or machine. Knows no strategy; each file can be used alone.

A strategy whose workers are actors uses it in this order:

1. ``session.connect(address, insecure=..., cpus=...)`` gives a ``Session``: a local Ray that this process starts and
   ends, a cluster, or one that the user started, which is left as it is.
2. ``session.spawn(SomeClass, *args, cpus=..., groups=...)`` makes an actor. What its constructor takes (a model, a
   loss, a recipe for an optimizer) travels once, by Ray's serialiser, and only from the driver; ``by_value`` lets the
   user's own modules travel with it.
3. Everything after that travels as a ``message``: plain values in a header, all tensors in one flat array of bytes.
   ``pack`` and ``unpack`` check both; nothing is unpickled by this package. An array that several actors want is put
   into the object store once (``ray.put``) and the reference passed on.
4. ``watch.Watch`` keeps one long question open to every actor (its method ``report(seconds)``), which is answered as
   soon as there is something to say. So results arrive, a death is noticed at once, and silence by a lease.

``engine.RayEngine`` with ``host.Host`` is one use of it: a lane of a schedule is an actor, and values go from actor to
actor. A strategy with a parameter server does without them: its server is one actor, its nodes are others; a node calls
the server's ``push`` with a message whose header carries (node, incarnation, sequence), so that a push that is sent
again is applied once; the driver watches them all, and what it does on ``died`` and ``frozen`` is its own affair
(kill, start again from a journal, redistribute). Actors are never restarted by Ray: a restart runs the constructor
again and would lose their state without a word.
"""
