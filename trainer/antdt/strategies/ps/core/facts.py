"""What servers tell each other of contributions, as plain values.

Must not know tensors, sockets or the ledger.

    Contribution    one worker's gradient of some ranges, pushed in parts to all servers
    Order           one entry of the order that all servers obey: the primary decides it, and sends it first in, first
                    out. What comes into a version, who is answered at that point, what is saved there
    Version         what the ledger is told of a version
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from antdt_schemas.errors import UsageError

PULL = -1  # the attempt of a request for parameters that brings no gradient


class Key(NamedTuple):
    """Names a contribution, or a pull. n: dense for each incarnation in a generation, the same for the same ranges.
    attempt: how often it was computed anew; PULL: it brings nothing.
    """

    incarnation: str
    n: int
    attempt: int


class Contribution(NamedTuple):
    """base: the version that it was computed on. ranges: flat quintuples (lease, token, epoch, start, length). weight:
    what the sum of the gradients is divided by. scale: what it counts beside others of another size.
    """

    key: Key
    base: int
    ranges: tuple[int, ...] = ()
    samples: int = 0
    weight: float = 0.0
    scale: float = 1.0


class Order(NamedTuple):
    """number: dense from 1 in a generation. version, lineage: of the model after it. include: contributions that make
    the version, in this order; none: the version stays. answer, late: who hears of it here. drop: incarnations whose
    contributions nobody includes any more. save: the name of a checkpoint that is taken here.
    """

    number: int
    version: int
    lineage: bytes
    include: tuple[Key, ...] = ()
    answer: tuple[Key, ...] = ()
    late: tuple[Key, ...] = ()
    drop: tuple[str, ...] = ()
    plan: int = 0
    factor: float = 1.0
    save: str = ""


class Included(NamedTuple):
    """A contribution in a version. staleness: versions between the one it was computed on and the one before this."""

    incarnation: str
    ranges: tuple[int, ...]
    samples: int
    staleness: int


class Version(NamedTuple):
    """A version that was decided, for the ledger."""

    version: int
    contributions: tuple[Included, ...]
    lineage: bytes
    plan: int


@dataclass(frozen=True, slots=True)
class Mode:
    """When a version is made, and when a worker may go on.

    bsp     of a contribution of every active worker; of all but `backup` of them, where the plan says so
    asp     of each contribution by itself
    ssp     so too, and nobody is more than `staleness` contributions ahead of the slowest active worker

    drops: with bsp, what is late is thrown away, and is in no version; else it is computed anew.
    """

    kind: Literal["bsp", "asp", "ssp"] = "bsp"
    staleness: int = 3
    drops: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("bsp", "asp", "ssp") or self.staleness < 0:
            raise UsageError('A parameter server\'s mode is "bsp", "asp" or "ssp", and its staleness is >= 0.')
