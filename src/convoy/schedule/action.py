"""An action and what it reads and writes, with a text form that parses back.

    F 1 2.0 : W1@0 i1@2 => s1@2 x1>2@2

reads "forward, stage 1, batch 2, part 0; reads version 0 of the weights of stage 1 and input 2; writes ...".

Two sorts of names. **State** begins with a capital letter (``W1``: the weights of stage 1): one copy, changed in
place; version v + 1 may be written when version v is there and all its scheduled readers are done. **Values** begin
with a small letter (``x1>2``: what stage 1 hands to stage 2): written once, and gone when their readers are done.
The version of a value is the running number of the part it belongs to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from convoy.errors import InputError

_REF = re.compile(r"^(?P<name>[^\s@:]+)@(?P<version>\d+)$")
_ACTION = re.compile(
    r"^(?P<kind>[A-Za-z]+) (?P<subject>\S+) (?P<batch>\d+)\.(?P<part>\d+) :(?P<reads>[^:]*?)=>(?P<writes>.*)$"
)


class Ref(NamedTuple):
    """One version of one named thing. A tuple, because engines hash and compare it on the hot path."""

    name: str
    version: int

    @property
    def is_state(self) -> bool:
        """Whether the name is changed in place (capital first letter) rather than written once."""
        return self.name[0].isupper()

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    @classmethod
    def parse(cls, text: str) -> Ref:
        found = _REF.match(text)
        if found is None:
            raise InputError(f"{text!r} is no reference", hint="write NAME@VERSION, such as W1@0")
        return cls(found["name"], int(found["version"]))


@dataclass(frozen=True, slots=True)
class Action:
    """One piece of work of one lane.

    ``kind`` is a short code of the strategy's program (``F`` forward, ``B`` backward, ``U`` update, ``I`` input
    gradient, ``G`` weight gradient ...), ``subject`` a stage number or a node name, ``batch`` the mini-batch and
    ``part`` its micro-batch.
    """

    kind: str
    subject: str
    batch: int
    part: int = 0
    reads: tuple[Ref, ...] = ()
    writes: tuple[Ref, ...] = ()

    def __hash__(self) -> int:  # cheap: these four are unique in a schedule, and engines hash on the hot path
        return hash((self.kind, self.subject, self.batch, self.part))

    @property
    def label(self) -> str:
        """``F1.2``: forward at stage 1 of batch 2; with a part other than 0, ``F1.2/3``."""
        return f"{self.kind}{self.subject}.{self.batch}" + (f"/{self.part}" if self.part else "")

    def __str__(self) -> str:
        reads, writes = " ".join(map(str, self.reads)), " ".join(map(str, self.writes))
        return f"{self.kind} {self.subject} {self.batch}.{self.part} : {reads} => {writes}".rstrip()

    @classmethod
    def parse(cls, text: str) -> Action:
        found = _ACTION.match(text.strip())
        if found is None:
            raise InputError(f"{text!r} is no action", hint="write KIND SUBJECT BATCH.PART : READS => WRITES")
        return cls(
            found["kind"],
            found["subject"],
            int(found["batch"]),
            int(found["part"]),
            tuple(map(Ref.parse, found["reads"].split())),
            tuple(map(Ref.parse, found["writes"].split())),
        )
