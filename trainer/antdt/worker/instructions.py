"""What the life of a worker asks of whoever drives it. Each is carried out before the life goes on, and its result, or
GenerationClosed, is what the life hears of it.

Owns the names of things to be done. Must not know how any is done, nor when it is due: that is the life's.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from antdt_schemas import records
from antdt_schemas.ranges import Range

from antdt.host.whereabouts import At
from antdt.strategies.base import GenerationClosed, Outcome, Part


class Instruction:
    """Something to be done."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Enter(Instruction):
    """From now on the worker is at this, as its heartbeats say."""

    at: At
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Wait(Instruction):
    """Until something has come that makes `met` true, for so many seconds at most. The result: whether it is."""

    met: Callable[[], bool]
    patience_s: float


@dataclass(frozen=True, slots=True)
class Form(Instruction):
    """Meet the members of the grant. closed: whether the ledger has closed it meanwhile. Closable."""

    grant: records.Grant
    closed: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Align(Instruction):
    """All members hold one model afterwards. Closable."""

    grant: records.Grant


@dataclass(frozen=True, slots=True)
class Stands(Instruction):
    """The generation stands, with these members in rank order."""

    workers: Sequence[str]


@dataclass(slots=True)  # each step makes one of these; to freeze it takes longer than to make it
class Announce(Instruction):
    """This member's part of the next step; `batch_size` is what it would have taken for each step of the optimizer.
    ahead: (epoch, start, length) of what it takes next, of so many samples. Closable.
    """

    part: Part
    batch_size: int
    ahead: Callable[[int], list[tuple[int, int, int]]]


@dataclass(slots=True)  # as Announce
class Train(Instruction):
    """Go forward and backward with these samples, `batch_size` at most for each step of the optimizer, each of them in
    so many micro-batches at least. units: the same samples, as they must be computed apart, in one step. Closable.
    """

    ranges: Sequence[Range]
    accumulation: int
    batch_size: int
    units: Sequence[Sequence[Range]] = ()


@dataclass(frozen=True, slots=True)
class Finish(Instruction):
    """Reduce and apply, at REDUCING. The result: an Outcome. Closable."""


@dataclass(slots=True)  # as Announce
class Accounted(Instruction):
    """The round is complete, and the session knows of it."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class GatherRandom(Instruction):
    """Compare the models, and gather the random states of all members. The result: these. Closable."""


@dataclass(frozen=True, slots=True)
class WriteFile(Instruction):
    """Write a durable file of the model, trying for so many seconds. The result: the event to be said, or None."""

    random: Sequence[bytes]
    patience_s: float


@dataclass(frozen=True, slots=True)
class Prune(Instruction):
    """Remove files that no event can name any more."""


@dataclass(frozen=True, slots=True)
class RetryInit(Instruction):
    """The model before any step becomes a file, if it could not be one before."""


@dataclass(frozen=True, slots=True)
class Between(Instruction):
    """The round is over: the model is the script's, until the life goes on. Closable."""


@dataclass(frozen=True, slots=True)
class Leave(Instruction):
    """Out of the generation, for good: no exchange of it is completed any more. The model is that of its last step."""


@dataclass(frozen=True, slots=True)
class Renew(Instruction):
    """This incarnation is given up. The result: the Session of the next one."""

    reason: str


@dataclass(frozen=True, slots=True)
class TakeFinal(Instruction):
    """Load the final model of the job. The result: since when it is."""

    file: str


# -- of workers and servers, where these hold the model


@dataclass(frozen=True, slots=True)
class Idle(Instruction):
    """Say to the servers that nobody need wait for this worker. leaving: nor ever again."""

    leaving: bool = False


class Decided(NamedTuple):
    """A version that all servers make. ranges: flat quintuples of all its contributions, in order. plan: in force."""

    version: int
    ranges: tuple[int, ...]
    lineage: bytes
    plan: int


class Parts(NamedTuple):
    """All servers have durable files of their parts of a version: names and digests, in their order."""

    version: int
    lineage: bytes
    plan: int
    files: tuple[tuple[str, bytes], ...]


class Turned(NamedTuple):
    """What has come of a turn of a server; at any but the primary nothing is decided."""

    decided: Sequence[Decided] = ()
    saved: Sequence[Parts] = ()


@dataclass(frozen=True, slots=True)
class Serve(Instruction):
    """Take what workers and servers have sent, or wait so many seconds for it. The result: a Turned. Closable."""

    patience_s: float


@dataclass(frozen=True, slots=True)
class Obey(Instruction):
    """From now on the primary takes nothing of these incarnations, and makes versions under this plan: by so many
    contributions less than there are workers, with learning rates times this.
    """

    lost: tuple[str, ...]
    plan: int
    backup: int
    learning_rate_factor: float


@dataclass(frozen=True, slots=True)
class Mark(Instruction):
    """All servers are to save their parts behind the same version. At any but the primary: it is asked for that."""


@dataclass(frozen=True, slots=True)
class Publish(Instruction):
    """Write the file that names all parts. The result: the event to be said, or None."""

    parts: Parts


@dataclass(frozen=True, slots=True)
class Bind(Instruction):
    """Another port for the next generation: nothing of the last one can arrive there. The result: the port."""


Steps = Generator[Instruction, Any, Any]

# What every step asks for, made once.
FINISH, BETWEEN = Finish(), Between()


class Course:
    """A life under way. `asks`: what it wants done now, None at its end; then `result` is what it returned."""

    def __init__(self, steps: Steps) -> None:
        self._steps, self._send, self.result = steps, steps.send, None
        self.asks: Instruction | None = None
        self.go_on()

    def go_on(self, heard: Any = None) -> None:
        """It was done, with this result."""
        try:
            self.asks = self._send(heard)
        except StopIteration as end:
            self.asks, self.result = None, end.value

    def closed(self, error: GenerationClosed) -> None:
        """It was not done: the generation is over."""
        try:
            self.asks = self._steps.throw(error)
        except StopIteration as end:
            self.asks, self.result = None, end.value

    def carry_out(self, perform: Callable[[Instruction], Any]) -> None:
        """What it asks for, to the end."""
        assert self.asks is not None, "this life is over"
        try:
            heard = perform(self.asks)
        except GenerationClosed as error:
            self.closed(error)
        else:
            self.go_on(heard)

    def end(self) -> None:
        """It does not go on."""
        self._steps.close()
        self.asks = None
