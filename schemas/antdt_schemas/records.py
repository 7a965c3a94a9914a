"""The records of the wire contract as typed classes, one field for each field of its `.avsc`.

Owns nothing but shapes; a test holds them equal to the schemas. What a field means is said there, once.
Steps, generations, leases and plans are dense numbers; times of day are broker milliseconds since 1970,
durations are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a job trains on. Every joining worker states it; the first one is written into Genesis, and whoever
    states another one is refused.
    """

    dataset: str
    samples: int
    dataset_digest: bytes
    order: str
    epochs: int
    seed: int
    shard_size: int
    batch_size: int
    workers_min: int
    max_attempts: int
    strategy: str
    fingerprint: bytes = b""


@dataclass(frozen=True, slots=True)
class Genesis:
    """The first entry: who this log belongs to. Later ones are void."""

    run_id: str
    job: str
    owner: str
    spec: JobSpec
    fold_version: int
    auth: str
    digest_every: int
    patience_ms: int
    requests_topic: str = ""


@dataclass(frozen=True, slots=True)
class Leader:
    """Takes office: the offset and the hash of this entry are the writer's epoch."""

    run_id: str
    leader_id: str
    owner: str
    fold_version: int


@dataclass(frozen=True, slots=True)
class Joined:
    """A new incarnation of a worker is known."""

    incarnation: str
    worker: str
    role: str
    host: str
    port: int
    node: str
    hardware: str
    restarts: int
    launch: str = ""
    launcher: str = ""
    place: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """An incarnation is gone for good; every later request of it is refused."""

    incarnation: str
    reason: str
    by: str = ""


@dataclass(frozen=True, slots=True)
class Left:
    """An incarnation said good-bye."""

    incarnation: str


@dataclass(frozen=True, slots=True)
class Closed:
    """A generation is over: no step of it can be committed any more."""

    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Ready:
    """A member of the closed generation asks for the next one."""

    incarnation: str
    claim: int | None
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Granted:
    """The next generation."""

    generation: int
    members: tuple[str, ...]
    source: str | None
    source_step: int | None
    committed: int
    restore_file: str | None


@dataclass(frozen=True, slots=True)
class RolledBack:
    """Steps after this one are undone: their samples return."""

    step: int
    reason: str
    author: str = ""


@dataclass(frozen=True, slots=True)
class Leased:
    """A run of shards is leased: `shards` dense lease numbers from `lease` on."""

    lease: int
    shards: int
    incarnation: str
    generation: int
    epoch: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Committed:
    """Step `step` is in the model of every member."""

    generation: int
    step: int
    ranges: tuple[int, ...]
    lineage: bytes
    plan: int


@dataclass(frozen=True, slots=True)
class Settled:
    """The first commit of a generation is in: what older generations still held returns."""

    generation: int


@dataclass(frozen=True, slots=True)
class Returned:
    """What is left of a lease is to be done again."""

    lease: int
    epoch: int
    start: int
    length: int
    counted: bool
    quarantined: bool


@dataclass(frozen=True, slots=True)
class Readmitted:
    """Quarantined samples are to be tried again."""

    epoch: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """A durable file holds the model of this step."""

    step: int
    lineage: bytes
    file: str
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Done:
    """Everything is committed and in this durable file."""

    file: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that was not carried out, with its author."""

    worker: str
    incarnation: str
    kind: str
    generation: int
    reason: str
    request_offset: int


@dataclass(frozen=True, slots=True)
class Digested:
    """Digest of the whole state before this entry; a replay that reaches another one stops."""

    digest: bytes


@dataclass(frozen=True, slots=True)
class Regressed:
    """An operator has accepted that acknowledged entries are gone. Every incarnation is gone; generations and leases
    are numbered beyond all that the lost entries may have named.
    """

    first_lost: int
    next_offset: int
    hash: bytes
    run_id: str
    generation: int
    next_lease: int
    author: str
    reason: str


@dataclass(frozen=True, slots=True)
class Blamed:
    """There is evidence that these samples made a worker fail. Counted when the leases are settled."""

    incarnation: str
    epoch: int
    start: int
    length: int
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class StepSkipped:
    """The reduced gradient of this step was not finite: its samples count, the model stayed as it was."""

    step: int
    authors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RequestsMoved:
    """The requests are not those that were read before: the topic is another one, or has lost some. Nothing is lost by
    it: what matters is asked again.
    """

    topic_id: str
    next: int
    reason: str


@dataclass(frozen=True, slots=True)
class Cycle:
    """One cycle of the ledger: all its events, atomically, with the input position that they reach."""

    epoch_offset: int
    epoch_hash: bytes
    sequence: int
    previous_offset: int
    previous_hash: bytes
    requests_next: int
    now_ms: int
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the shard log (topic shard-log): the truth. Its first entry is Genesis."""

    body: EntryBody


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
    """I am alive."""

    generation: int
    step: int
    phase: str = ""
    phase_s: float = 0.0
    allowed_s: float = 0.0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Leave:
    """Good-bye."""

    generation: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The launcher beside a worker saw its process end."""

    exit_code: int
    reason: str
    at: tuple[int, ...] = ()
    key: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """These samples made this worker fail: they could not be loaded, or the step raised."""

    generation: int
    epoch: int
    start: int
    length: int
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Readmit:
    """Try what is in quarantine again."""

    pass


@dataclass(frozen=True, slots=True)
class Rollback:
    """An operator asks to go back to a checkpoint: steps behind it are undone, their samples return."""

    step: int
    author: str
    reason: str


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
    """A generation, for each of its members: sent once to all of them, as the list is long."""

    run_id: str
    generation: int
    members: tuple[Member, ...]
    source: str | None
    source_step: int | None
    committed: int
    restore_file: str | None
    kept_steps: tuple[int, ...] = ()
    shard_size: int = 0


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


@dataclass(frozen=True, slots=True)
class StepBatch:
    """What a worker measured in some steps, one column per quantity (topic steps, keyed by worker)."""

    worker: str
    incarnation: str
    generation: int
    node: str
    hardware: str
    number: int
    dropped: int
    step: tuple[int, ...]
    batch_size: tuple[int, ...]
    plan: tuple[int, ...]
    data_s: tuple[float, ...]
    compute_s: tuple[float, ...]
    communication_s: tuple[float, ...]
    wait_s: tuple[float, ...]
    batch_size_max: int = 0


@dataclass(frozen=True, slots=True)
class Cause:
    """The record that made the service write this one; readers drop repeats by it."""

    partition: int
    offset: int
    index: int


class NodeClass(StrEnum):
    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    TRANSIENT = "transient"
    PERSISTENT = "persistent"
    DETERMINISTIC = "deterministic"
    LEADER = "leader"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class NodeMeasurement:
    worker: str
    incarnation: str
    group: str
    node_class: NodeClass
    severity: float
    seconds_per_sample: float
    rate_error: float
    fixed_s: float
    batch_size: int
    persistent_windows: int
    rejected: int
    batch_size_max: int = 0


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the Monitor knows after a window (or a jump), absolute (topic measurements): one record for all nodes, so
    that nobody decides on half of a window.
    """

    cause: Cause
    window: int
    urgent: bool
    generation: int
    last_step: int
    plan: int
    nodes: tuple[NodeMeasurement, ...]
    rotating: bool
    structural: tuple[str, ...]
    loss: float
    first_offset: int
    last_offset: int


class Action(StrEnum):
    NONE = "NONE"
    ADJUST_BS = "ADJUST_BS"
    ADJUST_LR = "ADJUST_LR"
    BACKUP_WORKERS = "BACKUP_WORKERS"
    KILL_RESTART = "KILL_RESTART"


@dataclass(frozen=True, slots=True)
class Assignment:
    worker: str
    batch_size: int
    accumulation: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What the Controller commands, absolute (topic decisions). An Agent reads the topic from its start; the newest
    plan counts.
    """

    cause: Cause
    plan: int
    action: Action
    assignments: tuple[Assignment, ...]
    learning_rate_factor: float
    backup_workers: int
    target: str
    policy: str
    policy_version: int
    reason: str
    predicted_gain: float
    evidence_first: int
    evidence_last: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that a service could not decode or accept (topic dead-letters)."""

    service: str
    topic: str
    partition: int
    offset: int
    reason: str
    payload: bytes
    payload_size: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One part of a service's state at a position of its input (topic snapshots, keyed by service, slot and part).
    Only ever a short cut: the input is the truth.
    """

    service: str
    topic_id: str
    partition: int
    next_offset: int
    part: int
    parts: int
    digest: bytes
    rows: bytes


Event = (
    Joined
    | Lost
    | Left
    | Closed
    | Ready
    | Granted
    | RolledBack
    | Leased
    | Committed
    | Settled
    | Returned
    | Readmitted
    | Checkpointed
    | Done
    | Refused
    | Digested
    | Regressed
    | Blamed
    | StepSkipped
    | RequestsMoved
)
RequestBody = (
    Join | Regroup | Lease | Release | Commit | Checkpoint | Heartbeat | Leave | Exited | Readmit | Rollback | Failed
)
EntryBody = Genesis | Leader | Cycle
