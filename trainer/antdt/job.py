"""The job as a training script states it.

Owns the options that most jobs leave alone, and the JobSpec that the ledger compares between workers. Must not know how
any of it is carried out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from antdt_schemas import records
from antdt_schemas.batches import DROP, EVEN, LASTS
from antdt_schemas.errors import UsageError

from antdt.data.fingerprint import fingerprint_of
from antdt.data.loading import LoadingOptions
from antdt.data.sources import IterableSource, MapSource, manifest_digest
from antdt.data.topics import TopicSource
from antdt.strategies.base import StrategyOptions
from antdt.worker.session import SessionOptions

STEPS, SHARDS = "steps", "shards"
STEPS_MAX = (1 << 31) - 1
# From the ratio of the global batches: nothing, the linear rule (arXiv 1706.02677), or that of adaptive optimizers.
WITH_BATCH: Mapping[str, Callable[[float], float]] = {"": lambda _: 1.0, "linear": float, "sqrt": math.sqrt}


@dataclass(frozen=True)
class AgentOptions:
    """What most jobs leave alone.

    shard_size: samples; 0 chooses an eighth of an even share. micro_batch_size_max: samples that one backward may hold;
    0 for all. batch_size_max: samples a step that this worker can hold: no plan gives it more; 0: as it learns when
    memory is out.
    checkpoint_every_steps: 0 for the final one only. save_every_steps: for whoever uses the weights, as `Agent.save`
    writes them, to save_path; 0 for never. join_timeout_s bounds the wait for the other workers.
    fingerprint_samples: so many samples, 32 at most, are compared with those of the job's first worker before training;
    they are made by a process of their own, which has two seconds for it. 0 for data that are rightly not the same
    everywhere, such as pictures that machines decode differently.
    max_attempts: how often samples may make a worker fail before they, alone, are put into quarantine.
    learning_rate_with_batch: what another global batch than the job began with (a launch with another batch_size, a
    plan, `antdt resize`) multiplies the learning rates by: "linear": the ratio of both, "sqrt": its root; empty: none.
    order: "steps": each step consists of the same samples, whoever is slow, dies or comes (see `Agent`). "shards":
    workers lease runs of samples, and a step takes what they have; for streams, and for strategies without a common
    step. Empty chooses.
    """

    workers_min: int = 0
    shard_size: int = 0
    max_attempts: int = 4
    micro_batch_size_max: int = 0
    batch_size_max: int = 0
    checkpoint_every_steps: int = 0
    save_every_steps: int = 0
    save_path: str = "weights-{step}.safetensors"
    join_timeout_s: float = 600.0
    fingerprint_samples: int = 32
    learning_rate_with_batch: str = ""
    order: str = ""
    session: SessionOptions = field(default_factory=SessionOptions)
    loading: LoadingOptions = field(default_factory=LoadingOptions)


def batch_factor(how: str, batch_size: int, first: int) -> float:
    """What another global batch than the first one multiplies the learning rates by. how: a key of WITH_BATCH; 0 for
    either size: not known, or there is none.
    """
    return WITH_BATCH[how](batch_size / first) if batch_size and first else 1.0


@dataclass(frozen=True)
class Schedule:
    """How long to train on what, in steps of how many samples of all `workers` together: so many epochs, or so many
    steps; one epoch where neither is said. last, local_batch_min: see `Agent`.

    Raises:
        UsageError: a value that cannot work, with what to do about it.
    """

    batch_size: int
    epochs: int | None
    seed: int
    workers: int
    last: str = EVEN
    local_batch_min: int = 1
    steps: int | None = None

    @property
    def epochs_max(self) -> int:
        """Epochs at most: a step is no more than one, whatever becomes of the batch size."""
        return self.steps or self.epochs or 1

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise UsageError("Pass epochs or steps, not both: a job ends behind the one or the other.")
        if self.steps is not None and not 1 <= self.steps <= STEPS_MAX:
            raise UsageError(f"steps={self.steps}: train for at least one, and for {STEPS_MAX:,} at most.")
        if self.last not in LASTS:
            raise UsageError(f"last={self.last!r}: take one of {', '.join(map(repr, LASTS))}.")
        if self.local_batch_min < 1 or self.local_batch_min * self.workers > max(self.batch_size, self.workers):
            raise UsageError(
                f"local_batch_min={self.local_batch_min}: {self.workers} workers do not have so many of a global batch "
                f"of {self.batch_size}; take {max(1, self.batch_size // self.workers)} at most."
            )
        if self.batch_size < 1:
            raise UsageError(f"batch_size={self.batch_size}: the global batch needs at least one sample.")
        if self.epochs is not None and self.epochs < 1:
            raise UsageError(f"epochs={self.epochs}: train for at least one.")


def spec_of(
    schedule: Schedule,
    dataset: Any,
    source: MapSource | IterableSource,
    options: AgentOptions,
    strategy: StrategyOptions,
) -> records.JobSpec:
    """What every worker of the job must agree on.

    Raises:
        UsageError: there is not a sample for each worker, in the data or in a step.
    """
    workers = schedule.workers
    of_topic = _of_topic(schedule, source)
    if source.size < workers and not of_topic.get("growing"):
        raise UsageError(
            f"The data set has {source.size} samples for {workers} workers: "
            f"start at most {source.size} workers, or take more data."
        )
    if schedule.batch_size < workers:
        raise UsageError(f"batch_size={schedule.batch_size} is less than one sample for each of the {workers} workers.")
    return records.JobSpec(
        dataset=getattr(dataset, "name", None) or type(dataset).__name__,
        samples=source.size,
        dataset_digest=manifest_digest(dataset, source),
        order=source.order,
        epochs=schedule.epochs_max,
        seed=schedule.seed,
        shard_size=options.shard_size or max(1, schedule.batch_size // (8 * workers)),
        batch_size=schedule.batch_size,
        workers_min=workers,
        max_attempts=options.max_attempts,
        strategy=strategy.name,
        batches=_batches(schedule, source, options, strategy),
        local_batch_min=schedule.local_batch_min,
        steps=schedule.steps or 0,
        fingerprint=b"" if of_topic else fingerprint_of(source, options.fingerprint_samples),
        **of_topic,
    )


def _of_topic(schedule: Schedule, source: MapSource | IterableSource) -> dict[str, Any]:
    """What a job states of a topic."""
    if not isinstance(source, TopicSource):
        return {}
    grows = not source.topic.bounded
    if grows and schedule.epochs != 1:
        raise UsageError(f"epochs={schedule.epochs}: a topic that grows has no end to begin again from. Take epochs=1.")
    return {"blocks": source.blocks, "growing": grows}


def _batches(
    schedule: Schedule, source: MapSource | IterableSource, options: AgentOptions, strategy: StrategyOptions
) -> str:
    """As in JobSpec: what becomes of an epoch's remainder, or nothing where samples are leased."""
    if options.learning_rate_with_batch not in WITH_BATCH:
        raise UsageError(
            f"learning_rate_with_batch={options.learning_rate_with_batch!r}: take one of "
            f"{', '.join(repr(how) for how in WITH_BATCH if how)}, or leave it out."
        )
    if options.order not in ("", STEPS, SHARDS):
        raise UsageError(f"order={options.order!r}: take {STEPS!r}, {SHARDS!r}, or leave it out.")
    may = strategy.has_common_step and isinstance(source, MapSource)
    if options.order == STEPS and not may:
        why = "an iterable data set is read in one go" if strategy.has_common_step else "they have no common step"
        raise UsageError(f"order={STEPS!r} is not for this job: {why}. Leave it out.")
    if not may or options.order == SHARDS:
        if schedule.last != EVEN:
            raise UsageError(
                f"last={schedule.last!r} needs steps of a fixed size, which this job has not: take last={EVEN!r}, "
                "which spreads the rest of an epoch over its steps."
            )
        if schedule.steps is not None:
            raise UsageError(
                "steps=N counts steps of a fixed size, which this job has not (a stream, order='shards', or a strategy "
                "without a common step): pass epochs=N, or call agent.stop(reason) in the loop."
            )
        return ""
    if schedule.last == DROP and source.size < schedule.batch_size:
        raise UsageError(
            f"last={DROP!r} leaves nothing of {source.size} samples in batches of {schedule.batch_size}: "
            "lower batch_size."
        )
    return schedule.last
