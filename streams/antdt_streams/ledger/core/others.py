"""What a joining worker wants that is not what the job began with, in words. Pure; must not know requests or states."""

from __future__ import annotations

from antdt_schemas import records
from antdt_schemas.fingerprint import first_difference
from antdt_schemas.order import SAMPLED
from antdt_schemas.space import TOPIC

DATA = ("dataset", "samples", "dataset_digest", "order", "growing")
# Which offsets of a topic there are changes while it is looked at: those of the first worker hold for all.
MOVING = ("samples", "blocks")
SETTINGS = ("epochs", "seed", "batch_size", "max_attempts", "strategy", "batches", "local_batch_min", "steps")
# How the first launch began, not what is trained on: a later one may have another number of workers.
LAUNCH = ("workers_min", "shard_size")


def difference(job: records.JobSpec, worker: records.JobSpec) -> str:
    """Sentences that name it, and what to do; empty where there is none."""
    said = []
    of_topic = job.order == worker.order == TOPIC
    names = tuple(name for name in DATA if name not in MOVING) if of_topic else DATA
    data = [text for text in (_differing(job, worker, names), _samples(job, worker)) if text]
    if data:
        said.append(f"Not the data of this job: {' '.join(data)} Train on the same data, or start a new job.")
    settings = _differing(job, worker, SETTINGS)
    if settings:
        said.append(f"Not the settings of this job: {settings} Take the job's, or start a new job.")
    return " ".join(said)


def _differing(job: records.JobSpec, worker: records.JobSpec, names: tuple[str, ...]) -> str:
    differs = [name for name in names if getattr(job, name) != getattr(worker, name)]
    both = [f"{name} (the job has {_show(job, name)}, this worker {_show(worker, name)})" for name in differs]
    if "order" in differs and all(spec.order.startswith(SAMPLED) for spec in (job, worker)):
        return f"{', '.join(both)}: the sampler draws another list here; does it follow from epoch and seed alone?"
    return f"{', '.join(both)}." if both else ""


def _show(spec: records.JobSpec, name: str) -> str:
    value = getattr(spec, name)
    return value.hex() if isinstance(value, bytes) else repr(value)


def _samples(job: records.JobSpec, worker: records.JobSpec) -> str:
    found = first_difference(job.fingerprint, worker.fingerprint, job.samples)
    if found is None or job.samples != worker.samples:
        return ""
    both = f"(the job has {found.first}, this worker {found.second})"
    if found.place is None:
        return f"the names of its samples are others, or in another order {both}."
    return (
        f"sample {found.place} is another one here {both}: is a list of files in another order, or does the data set "
        "shuffle or split by itself?"
    )
