"""The shard log: its entries, and the events in them."""

from __future__ import annotations

from dataclasses import dataclass

from antdt_schemas.records.fixed import Excluded, Lifted, Resized, Stopped
from antdt_schemas.strategies import period_of


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a job trains on. Every joining worker states it; the first one is written into Genesis, and whoever
    states another one is refused. steps: the job ends behind so many; then `epochs` is how many these reach at most.
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
    batches: str = ""
    local_batch_min: int = 1
    steps: int = 0
    blocks: tuple[int, ...] = ()
    growing: bool = False

    @property
    def step_samples(self) -> int:
        """Samples of all members together in one step of the log, where nobody is short of any."""
        return self.batch_size * period_of(self.strategy)


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
    """Step `step` is in the model of every member. lineage: the model's behind it. Of steps of a fixed size that are
    reported together, the last one has it, which holds those of the others; theirs is empty.
    """

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
    """Quarantined samples are to be tried again. author: who asked for it; empty in older logs."""

    epoch: int
    start: int
    length: int
    author: str = ""


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
    step: int = 0


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
class Vacant:
    """At these positions of a lease there is no sample: whoever holds it has read past them, or its decoder says so."""

    lease: int
    epoch: int
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SetAside:
    """These positions of a lease cannot be decoded: they are in quarantine. The lease ends before them, and what was
    behind them returns.
    """

    lease: int
    epoch: int
    start: int
    length: int
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Extended:
    """A topic that grows has new offsets; or it ends here, and is finished with what is known."""

    blocks: tuple[int, ...]
    closed: bool
    author: str
    reason: str


@dataclass(frozen=True, slots=True)
class Fenced:
    """The first server refuses all workers that were lost up to this one, and has reported what it took of them: what
    they still held returns.
    """

    generation: int
    losses: int


@dataclass(frozen=True, slots=True)
class Dealt:
    """Samples of an epoch that nobody has begun belong to these workers, ahead of being leased. pieces: flat triples
    (number of the incarnation in the list, start, length). anew: whatever of the epoch was dealt and not begun before
    is dealt again with them.
    """

    epoch: int
    incarnations: tuple[str, ...]
    pieces: tuple[int, ...]
    anew: bool


@dataclass(frozen=True, slots=True)
class Moved:
    """A worker has taken over what another one was dealt, and has not begun."""

    source: str
    target: str
    epoch: int
    start: int
    length: int


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


_OfMembers = Joined | Lost | Left | Closed | Ready | Granted | RolledBack
_OfSamples = Leased | Committed | Settled | Returned | Readmitted | Checkpointed | Done
_OfSteps = Excluded | Lifted | Resized | Stopped
_OfTopics = Vacant | SetAside | Extended
_OfParts = Dealt | Moved
_OfOthers = Refused | Digested | Regressed | Blamed | StepSkipped | RequestsMoved | Fenced
Event = _OfMembers | _OfSamples | _OfTopics | _OfOthers | _OfParts | _OfSteps
EntryBody = Genesis | Leader | Cycle
