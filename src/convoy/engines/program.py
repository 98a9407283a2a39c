"""The only place where an action meets tensors: a strategy implements ``Program`` and is handed a ``Store``."""

from __future__ import annotations

from typing import Any, Protocol

from convoy.errors import InternalError
from convoy.schedule.action import Action, Ref


class Store:
    """Tensors by name and version.

    Values (``x1>2@5``) are put once and taken once. State (``W1``) lives where the program keeps it, in place; the
    store only counts its version, so that what an action really read can be recorded beside what was planned.
    Dictionary operations are atomic under the GIL, which is all the locking that disjoint names need.
    """

    def __init__(self) -> None:
        self._values: dict[Ref, Any] = {}
        self._versions: dict[str, int] = {}

    def put(self, ref: Ref, value: Any) -> None:
        if ref in self._values:
            raise InternalError(f"{ref} is written twice")
        self._values[ref] = value

    def take(self, ref: Ref) -> Any:
        """Hand over ``ref`` and forget it."""
        try:
            return self._values.pop(ref)
        except KeyError:
            raise InternalError(f"{ref} is read before it is written, or twice") from None

    def keep(self, value: Any) -> Any:
        """Note that the running lane uses ``value``, which another lane may have made, without the store holding it."""
        return value

    def version(self, name: str) -> int:
        """Updates applied to the state ``name`` so far."""
        return self._versions.get(name, 0)

    def advance(self, ref: Ref) -> None:
        """Record that the state ``ref.name`` now has version ``ref.version``, the next one."""
        if ref.version != self.version(ref.name) + 1:
            raise InternalError(f"{ref.name} goes from version {self.version(ref.name)} to {ref.version}")
        self._versions[ref.name] = ref.version

    def reset(self, name: str, version: int) -> None:
        """Set the version of a state, when a run is resumed."""
        self._versions[name] = version

    def __len__(self) -> int:
        return len(self._values)


class Program(Protocol):
    """A strategy's map from action kind to a function on a store."""

    def run(self, action: Action, store: Store) -> int:
        """Carry out ``action``: take its reads, put its writes. Returns bytes handed over to other lanes."""
        ...


class CurrentProgram:
    """Stands for the program of the mini-batch that is on its way: one engine serves batches of any size."""

    program: Program

    def run(self, action: Action, store: Store) -> int:
        return self.program.run(action, store)
