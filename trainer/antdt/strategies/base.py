"""What a strategy is to the rest of a worker: how members who train one model together exchange what they learn.

Owns the interfaces between a strategy and the life of a worker. Must not know any one strategy, nor the ledger.

    StrategyOptions     a value, as a script states it: `Agent(..., strategy=antdt.AllReduce(compare_every=1))`
    Strategy            one worker's part in it, with its model; it comes of the value
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from antdt_schemas import records
from antdt_schemas.batches import Cursor
from antdt_schemas.errors import AntdtError, UsageError
from antdt_schemas.ranges import Range

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from antdt.strategies.once import Once


class GenerationClosed(AntdtError):
    """The generation is over, or never formed: abort the step, leave, claim, wait for the next grant."""


@dataclass(frozen=True, slots=True)
class Here:
    """Where and who this process is: the address at which other members meet it, that of its own connections to them;
    the job, and its name in it. serves: it is a server.
    """

    advertise: str
    listens_at: Callable[[], str]
    job: str = ""
    worker: str = ""
    serves: bool = False


class Place(NamedTuple):
    """A step of a fixed size, as every member derives it. ranges: (generation that executes it, 0, epoch, start,
    length), holes included. behind: where the model is after it. total: samples in it, without what is left out. split:
    a mark of the sizes of all parts, in their order: members with other marks would compute some samples twice. epoch:
    the one at hand, for what happens once an epoch; behind the last one, that one. first: the rank whose part is the
    first one; the others follow it in rank order, round.
    """

    ranges: tuple[int, int, int, int, int]
    behind: Cursor
    total: int
    split: int = 0
    epoch: int = 0
    first: int = 0


class Part(NamedTuple):
    """One member's part of a step, as it announces it.

    plan_seen: the newest plan it has read. reference: samples that the plan in the model expects of all members, the
    same number on each. ended: it was told END. leaving: this is its last step. checkpoint: a file is to follow it.
    place: of the whole step, where steps have a fixed size; it is applied only if all of its samples are there. empty:
    positions of its ranges at which there is no sample; a part of nothing else is a part of the step all the same.
    """

    ranges: Sequence[Range]
    plan_seen: int
    reference: int
    ended: bool = False
    leaving: bool = False
    checkpoint: bool = False
    place: Place | None = None
    empty: int = 0

    @property
    def samples(self) -> int:
        """How many it contributes."""
        return sum([taken.length for taken in self.ranges]) - self.empty


class Rates(Protocol):
    """The learning rates of an optimizer, and what they are multiplied by while it steps: by the plan, and because the
    global batch has another size than the job began with.
    """

    factor: float
    batch_factor: float

    @property
    def total(self) -> float: ...


class Said(Protocol):
    """What every member has heard of one member's part."""

    @property
    def samples(self) -> int: ...
    @property
    def plan(self) -> int: ...
    @property
    def reference(self) -> int: ...
    @property
    def leaving(self) -> bool: ...
    @property
    def checkpoint(self) -> bool: ...
    @property
    def stopping(self) -> bool: ...


class Timings(NamedTuple):
    """Of one `finish`: until all compositions were there, until all gradients were, and the optimizer."""

    composition_s: float
    reduction_s: float
    apply_s: float


class Outcome(NamedTuple):
    """What all members conclude alike. total: samples of all. rows: in rank order. applied: the step number moved.
    ended: some member was told END. skipped: whose part of the gradient was not finite, where the step was skipped for
    that, or who asked for it; `why` then says so.
    """

    total: int
    rows: Sequence[Said]
    applied: bool
    ended: bool
    timings: Timings
    skipped: tuple[str, ...] | None = None
    why: str = ""


class Made(Protocol):
    """An applied step that is not seen committed yet. ranges: flat quintuples, as in a commit."""

    @property
    def step(self) -> int: ...
    @property
    def ranges(self) -> tuple[int, ...]: ...
    @property
    def plan(self) -> int: ...
    @property
    def skipped(self) -> tuple[str, ...] | None: ...


class Head(Protocol):
    """Of which step, lineage (16 bytes) and plan the model is. `void`: it holds no valid state. `pending`: applied
    steps not seen committed, in order. `cursor`: the next position, where steps have a fixed size.
    """

    void: bool

    @property
    def step_number(self) -> int: ...
    @property
    def lineage(self) -> bytes: ...
    @property
    def plan(self) -> int: ...
    @property
    def cursor(self) -> Cursor: ...
    @property
    def pending(self) -> Sequence[Made]: ...

    def drop_pending(self, up_to_step: int) -> None:
        """These are committed: nobody has to report them again."""


class Model(Head, Protocol):
    """The model as files know it. `out`, `labels`, `data`, `check`, `of`: see `AllReduceReplica`."""

    def gather_random(self) -> list[bytes]: ...
    def save(self, out: Any, random: Sequence[bytes] = (), labels: Mapping[str, str] | None = None) -> None: ...
    def snapshot(self, random: Sequence[bytes] = (), labels: Mapping[str, str] | None = None) -> bytes: ...
    def restore(self, data: Any, check: Callable[[Any], None] | None = None, of: str = "The state") -> None: ...
    def check_finite(self) -> None: ...
    def holds(self, path: Path) -> bool: ...


class Restores(Protocol):
    """Files that a model can be restored from."""

    def restore(self, grant: records.Grant, rank: int) -> None: ...


@runtime_checkable
class LooksAhead(Protocol):
    """A strategy that makes use of batches before the script has them."""

    def look_ahead(self, batch: Any, following: Callable[[], Sequence[Any]]) -> None:
        """The script is given this batch. following: gives those behind it, as far as they are known and loaded."""


@runtime_checkable
class Watches(Protocol):
    """A strategy that looks at what a script computes of its batch. watcher: a `Watcher`, which is told when the
    script goes on, and when it is held up.
    """

    @property
    def watcher(self) -> Any: ...

    def watch(self, batch: Any, samples: int) -> None:
        """The script is given this batch next."""

    def unwatch(self, *, whole: bool) -> None:
        """The body is over. whole: it has come to its end. Raises UsageError for what it must not have changed."""


class Strategy(Model, Protocol):
    """One worker's part. Only the thread that owns the model calls it, but for `close`. incarnation: as the ledger
    knows it, set before `form`.

    pending_max: applied steps that may await their commit; whoever drives it waits before there are more. ranges_max:
    of one part. form_patience_s: for how long generations may fail to form, one after the other. wants_undivided: the
    script needs steps in one piece; undivided: some member's does, as all of this generation know.
    """

    first_bucket_at: float | None
    wants_undivided: bool
    undivided: bool
    ranges_max: ClassVar[int]
    incarnation: str

    @property
    def rates(self) -> Rates: ...
    @property
    def pending_max(self) -> int: ...
    @property
    def form_patience_s(self) -> float: ...
    @property
    def address(self) -> tuple[str, int]:
        """Host and port at which members meet where this one is the first."""

    @property
    def is_open(self) -> bool:
        """Whether a step was begun and is not applied: only `abort` leads out of it."""

    @property
    def size_bytes(self) -> int:
        """About how large a snapshot is."""

    # -- generations

    def form(self, grant: records.Grant, rank: int, closed: Callable[[], bool]) -> None:
        """Returns when the generation stands. closed: has the ledger closed it? Raises GenerationClosed."""

    def align(self, grant: records.Grant, rank: int, files: Restores) -> None:
        """All members hold one model afterwards: the grant's source's, or that of its file. Raises GenerationClosed."""

    def diverge(self, *salt: object) -> None:
        """From here on this member draws numbers of its own."""

    def abort(self) -> None:
        """Leaves the generation, if there is one; the state is that of the last applied step."""

    def close(self) -> None:
        """From any thread: whatever waits for other members gives up."""

    def end(self) -> None:
        """Behind the last step: leaves, and gives the model back as it was handed in."""

    # -- one step

    once: Once

    def accompany(self, once: Once) -> None:
        """Before the first step: what happens once a step besides the optimizer's own, and is saved with the model."""

    def announce(self, part: Part) -> None: ...
    def see(self, plan: int) -> None: ...
    def backward(
        self,
        loss: torch.Tensor,
        samples: int,
        last: bool = True,
        *,
        weight: float | None = None,
        summed: bool = False,
        through: bool = True,
        retain_graph: bool = False,
    ) -> None: ...
    def through(self, samples: int, last: bool) -> None: ...
    def skip(self, samples: int, reason: str) -> None: ...
    def reduce(self) -> Any: ...
    def update(self, optimizers: Sequence[Any]) -> bool: ...
    @property
    def stands(self) -> bool: ...
    def outlive(self) -> None: ...
    def stop(self) -> None: ...
    def exchange(
        self, value: torch.Tensor | None, *, inside: bool, between: bool = False, call: str = ""
    ) -> list[torch.Tensor | None]: ...
    def finish(self, on_plan: Callable[[int], None]) -> Outcome: ...

    # -- files

    def verify(self) -> None: ...
    def load_back(self) -> None: ...


def without_servers(strategy: str, servers: int) -> None:
    """Raises UsageError: this strategy has no use for servers."""
    if servers:
        raise UsageError(
            f"`antdt launch --servers {servers}` starts parameter servers, which {strategy} has no use for: leave it "
            "out, or say antdt.Agent(..., strategy=antdt.ParameterServer())."
        )


class StrategyOptions(Protocol):
    """A strategy as a value. `name`: that of the job's records (`antdt_schemas.strategies`); all workers of a job have
    the same. has_common_step: members may make each step of the job together.
    """

    has_common_step: ClassVar[bool]

    @property
    def name(self) -> str: ...

    def placed(self, servers: int, *, alone: bool) -> StrategyOptions:
        """In a job of so many servers, or in a process without a job. Raises UsageError where it cannot be used."""

    def member(self, model: torch.nn.Module, optimizer: Any, here: Here) -> Strategy:
        """One worker's part in it. Raises UsageError for a model that it cannot train."""
