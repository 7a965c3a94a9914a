"""What workers and operators ask of the ledger, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from antdt_schemas.records.log import JobSpec


@dataclass(frozen=True, slots=True)
class Join:
    """A new incarnation asks to become a member."""

    role: str
    host: str
    port: int
    node: str
    hardware: str
    restarts: int
    spec: JobSpec
    launch: str = ""
    launcher: str = ""
    place: str = ""
    take_over: bool = False


@dataclass(frozen=True, slots=True)
class Regroup:
    """A member of a closed (or failed) generation asks for the next one."""

    generation: int
    claim: int | None
    lineage: bytes
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Lease:
    """Top up to this many uncommitted samples."""

    generation: int
    samples: int


@dataclass(frozen=True, slots=True)
class Release:
    """A lease that was never taken from is given back."""

    generation: int
    lease: int
    token: int
    more: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Skip:
    """A step whose reduced gradient was not finite, and who brought that about."""

    step: int
    authors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Commit:
    """These steps are in the model of every member."""

    generation: int
    first_step: int
    compositions: tuple[tuple[int, ...], ...]
    plans: tuple[int, ...]
    lineage: bytes
    log_seen: int
    skipped: tuple[Skip, ...] = ()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A durable file holds the model of this step."""

    generation: int
    step: int
    lineage: bytes
    file: str
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    generation: int
    step: int
    phase: str = ""
    phase_s: float = 0.0
    allowed_s: float = 0.0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Leave:
    generation: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The launcher beside a worker saw its process end."""

    exit_code: int
    reason: str
    at: tuple[int, ...] = ()
    key: str = ""
    step: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """These samples made this worker fail: they could not be loaded, or the step raised. more: what else was at hand
    with them, flat triples (epoch, start, length).
    """

    generation: int
    epoch: int
    start: int
    length: int
    key: str
    reason: str
    step: int = 0
    more: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Readmit:
    """An operator asks to try what is in quarantine again."""

    author: str = ""


@dataclass(frozen=True, slots=True)
class Rollback:
    """An operator asks to go back to a checkpoint: steps behind it are undone, their samples return."""

    step: int
    author: str
    reason: str


@dataclass(frozen=True, slots=True)
class Resize:
    """Another global batch, from the next generation on. plan: the one that says so; 0: an operator does."""

    batch_size: int
    author: str
    reason: str
    plan: int = 0


@dataclass(frozen=True, slots=True)
class Stop:
    """A script has ended the training of all, behind this step. reason: empty from who has only heard of it."""

    generation: int
    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class Examined:
    """A lease on offsets of a topic was read so far: what is in it. keys, reasons: of what is faulty."""

    generation: int
    lease: int
    token: int
    vacant: tuple[int, ...]
    faulty: tuple[int, ...] = ()
    keys: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Grown:
    """A topic that grows has offsets up to these: pairs (partition, next offset)."""

    generation: int
    ends: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class End:
    """A topic that grows ends: what is known of it is trained on, and nothing else."""

    author: str
    reason: str


@dataclass(frozen=True, slots=True)
class Move:
    """A worker that has nothing left to begin wants these samples, which `source` was dealt and has not begun."""

    generation: int
    source: str
    epoch: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Drop:
    """A worker was too late with these samples, and throws them away. ranges: flat quintuples as in a composition."""

    generation: int
    ranges: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """What a worker asks of the ledger (topic requests, keyed by worker). Idempotent by content: any old one may
    arrive again.
    """

    worker: str
    incarnation: str
    number: int
    body: RequestBody
    auth: bytes = b""


class Status(StrEnum):
    OK = "OK"
    WAIT = "WAIT"
    END = "END"
    REJOIN = "REJOIN"
    REFUSED = "REFUSED"
    CLOSED = "CLOSED"
    OCCUPIED = "OCCUPIED"
    DISPLACED = "DISPLACED"
    LEAVE = "LEAVE"
    LOST = "LOST"
    OVER = "OVER"


@dataclass(frozen=True, slots=True)
class Member:
    incarnation: str
    worker: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Grant:
    """A generation, for each of its members: sent once to all of them, as the list is long. batch_size: of its steps;
    stop_step: the last one that is made; 0 where neither is said.
    """

    run_id: str
    generation: int
    members: tuple[Member, ...]
    source: str | None
    source_step: int | None
    committed: int
    restore_file: str | None
    kept_steps: tuple[int, ...] = ()
    shard_size: int = 0
    excluded: tuple[int, ...] = ()
    tail: tuple[int, ...] = ()
    suspects: tuple[int, ...] = ()
    batch_size: int = 0
    stop_step: int = 0
    batch_size_first: int = 0


@dataclass(frozen=True, slots=True)
class Loss:
    """A worker that the first server of a generation is to refuse from here on."""

    number: int
    incarnation: str


@dataclass(frozen=True, slots=True)
class Load:
    """What a worker was dealt and has not finished. left: samples not committed, done: those that were, of all that it
    was ever dealt. The last run of what it has not begun is [start, start + length) of `epoch`.
    """

    incarnation: str
    left: int
    done: int
    epoch: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Reply:
    """The ledger's answer to one worker, or its news to all (topic replies, keyed by worker). Only sent after the
    entry it rests on was read back.
    """

    worker: str
    incarnation: str
    number: int
    status: Status
    reason: str
    generation: int
    committed: int
    finished: bool
    leases: tuple[int, ...]
    grant: Grant | None = None
    file: str = ""
    quarantined: int = 0
    warning: str = ""
    stopped: str = ""
    places: tuple[int, ...] = ()
    losses: tuple[Loss, ...] = ()
    loads: tuple[Load, ...] = ()


_OfTopics = Examined | Grown | End
_OfWorkers = Join | Regroup | Lease | Release | Commit | Checkpoint | Heartbeat | Leave | Exited | Failed | Stop
RequestBody = _OfWorkers | Readmit | Rollback | Resize | _OfTopics | Move | Drop
