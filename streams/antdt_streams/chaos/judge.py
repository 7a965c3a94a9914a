"""What must hold after any schedule. Each check returns what it found wrong, in sentences; nothing found is a pass.

1. The audit of the log: every sample of every epoch exactly once, and the run is at its end.
2. What the ledger believed (its cache) equals a replay of the log from zero, by digest.
3. Monitor and Controller wrote what an undisturbed one in memory writes for the same input: nothing lost, nothing
   else, and no decision twice for one cause but as the same bytes, which readers drop.
4. What the workers wrote down themselves, from the data, is what the log says of each step.
5. In quarantine was at any time what no worker survives, and nothing else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antdt_schemas import codec
from antdt_schemas.connection import Connection
from antdt_schemas.strategies import servers_of
from antdt_schemas.topics import DECISIONS, MEASUREMENTS, SHARD_LOG, Topic

from antdt_streams.controller.service import service as controller
from antdt_streams.kafka import topics_admin
from antdt_streams.kafka.reader import TopicReader, decoded
from antdt_streams.ledger.cache import Cache
from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.stored import Identity
from antdt_streams.monitor.service import service as monitor
from antdt_streams.proof.audit import audit
from antdt_streams.proof.replay import walk
from antdt_streams.runtime.memory import MemoryDriver, without_repeats
from antdt_streams.runtime.service import Raw, Service
from antdt_streams.views.lineage import TOGETHER, Lineage, Sample
from antdt_streams.views.projection import Feed

Entries = list[tuple[int, bytes]]


def entries_of(connection: Connection, job: str) -> Entries:
    with TopicReader(connection, job, SHARD_LOG) as reader:
        return [(raw.offset, raw.value) for raw in reader.to_end()]


def judge_log(entries: Entries) -> tuple[dict[str, Any], list[str]]:
    """The audit's report, and what is wrong with it."""
    report, wrong = audit(entries), []
    if not report["exactly_once"]:
        wrong.append(report["verdict"])
    elif not report["file"]:
        wrong.append("The log has no end: no final checkpoint.")
    return report, wrong


def judge_cache(connection: Connection, job: str, folder: Path, entries: Entries) -> list[str]:
    """Whether a stopped ledger's folder holds the state that a replay from zero has at the same position."""
    topic_id = topics_admin.topic_ids(connection, job)[SHARD_LOG.suffix]
    cache = Cache(folder, Identity(job, topic_id))
    try:
        stored = cache.load()
    finally:
        cache.close()
    if stored.state is None:
        return []  # it was wiped, or was never in office
    fold = Fold()
    walk(fold, entries, at=stored.position.next_offset - 1)
    assert fold.state is not None
    replayed, kept = rows.digest(fold.state).hex(), rows.digest(stored.state).hex()
    if replayed == kept and fold.position.hash == stored.position.hash:
        return []
    return [f"The state in {folder} at offset {stored.position.next_offset} is {kept}, a replay has {replayed}."]


# -- Monitor and Controller


@dataclass(slots=True)
class Outputs:
    """What a service wrote, against what it has to write for its input."""

    expected: list[Any]
    found: list[Any]
    wrong: list[str]

    @property
    def complete(self) -> bool:
        return len(self.found) >= len(self.expected)


def outputs_of(connection: Connection, job: str, service: Service, topic: Topic) -> Outputs:
    """Compare what lies in an output topic with an undisturbed service over the same input."""
    driver = MemoryDriver(service, job)
    with TopicReader(connection, job, service.input) as reader:
        driver.topics.logs[service.input.name(job)] = [Raw(r.value, r.time_ms) for r in reader.to_end()]
    driver.run()
    kind: type[Any] = topic.record
    with TopicReader(connection, job, topic) as reader:
        written = [record for _, record in decoded(reader.to_end(), kind)]
    expected, found = driver.outputs(topic), without_repeats(written)
    by_cause: dict[Any, bytes] = {}  # as bytes: a figure that is not known yet is NaN, which equals nothing
    twice = [r.cause for r in written if by_cause.setdefault(r.cause, codec.encode(r)) != codec.encode(r)]
    wrong = [f"The {service.name} wrote two different records for {cause}." for cause in twice]
    for number, (a, b) in enumerate(zip(expected, found, strict=False)):
        if codec.encode(a) != codec.encode(b):
            wrong.append(f"Output {number} of the {service.name} differs from an undisturbed one's: {b}, not {a}.")
            break
    if len(found) > len(expected):
        wrong.append(f"The {service.name} wrote {len(found)} outputs, an undisturbed one {len(expected)}.")
    return Outputs(expected, found, wrong)


def judged_services() -> list[tuple[Service, Topic]]:
    return [(monitor(), MEASUREMENTS), (controller(), DECISIONS)]


# -- what the workers wrote down


@dataclass(slots=True)
class Attempt:
    """One micro-batch that a worker was about to use in a step; `lineage` once the step was in its model."""

    samples: list[Sample]
    lineage: str | None = None


def judge_quarantine(entries: Entries, poison: Collection[int]) -> list[str]:
    """Whether only these samples were ever in quarantine: a process that dies by itself is no sample's fault."""
    innocent = lineage_of(entries).quarantined.difference(poison)
    return [f"Samples {sorted(innocent)} came into quarantine, and nothing is wrong with them."] if innocent else []


def judge_result(report: dict[str, Any], file: Path) -> list[str]:
    """Whether the script of rank 0 ended with the final model: also where its process began when all was done."""
    if not file.exists():
        return ["The script of rank 0 did not come to its end."]
    made = json.loads(file.read_text(encoding="utf-8"))
    if made["steps"] == report["steps"]:
        return []
    return [f"The script of rank 0 ended with a model of {made['steps']} steps, the log has {report['steps']}."]


def lineage_of(entries: Entries) -> Lineage:
    found = Lineage()
    Feed(found).entries(entries)
    return found


def attempts_of(lines: Iterable[str]) -> dict[int, list[Attempt]]:
    """A worker's record by step, in the order of time."""
    out: dict[int, list[Attempt]] = {}
    for line in lines:
        found = json.loads(line)
        if "samples" in found:
            out.setdefault(found["step"], []).append(Attempt(found["samples"]))
        else:
            out[found["step"]][-1].lineage = found["lineage"]
    return out


def judge_records(entries: Entries, folder: Path) -> list[str]:
    """Whether the workers' own records agree with the log, step by step, and come to each sample once an epoch.

    A worker that died inside a step that the others finished has no lineage of it; its samples must be there.
    """
    history, wrong = lineage_of(entries), list[str]()
    if history.spec is not None and servers_of(history.spec.strategy):
        return _judge_contributions(history, folder)
    attempts = {
        file.stem: attempts_of(file.read_text(encoding="utf-8").splitlines()) for file in folder.glob("*.jsonl")
    }
    trained: Counter[Sample] = Counter()
    for step, (lineage, taken) in history.steps.items():
        if TOGETHER in taken:
            of_step = {worker: own.get(step, []) for worker, own in attempts.items()}
            if _covers(taken[TOGETHER], [_parts(own, lineage) for own in of_step.values()]):
                trained.update(taken[TOGETHER])
            else:
                wrong.append(f"Step {step}: the log says that it is of {taken[TOGETHER]}; wrote down is {of_step}.")
            continue
        for worker, samples in taken.items():
            own = attempts.get(worker, {}).get(step, [])
            if _used(own, samples, lineage):
                trained.update(samples)
            else:
                wrong.append(f"Step {step}: the log says that {worker} used {samples}; it wrote down {own}.")
    assert history.spec is not None, "a log without Genesis"
    epochs = history.spec.epochs
    odd = [sample for sample, times in history.expected().items() if trained[sample] != times]
    if odd:
        wrong.append(f"By the workers' records {len(odd)} samples were not used {epochs} times: {odd[:10]} …")
    return wrong[:10]


def _judge_contributions(history: Lineage, folder: Path) -> list[str]:
    """The same where servers make versions: a worker writes its samples down before it knows which one they are in."""
    at_hand = {
        file.stem: [
            Counter(line["samples"]) for line in map(json.loads, file.read_text().splitlines()) if "samples" in line
        ]
        for file in folder.glob("*.jsonl")
    }
    wrong = [
        f"Version {step}: the log says that {worker} contributed {samples}; it never had these at hand."
        for step, (_, taken) in history.steps.items()
        for worker, samples in taken.items()
        if not any(Counter(samples) == one for one in at_hand.get(worker, []))
    ]
    return wrong[:10]


def _parts(attempts: Sequence[Attempt], lineage: str) -> list[Counter[Sample]]:
    """What a worker may have used in a step: micro-batches one after the other, the last of which made this model.

    Of a worker that died before it could write that down, or had no part, any of them, or none.
    """
    ends = [at + 1 for at, attempt in enumerate(attempts) if attempt.lineage == lineage]
    own = [Counter[Sample]()] if not ends else []
    for end in ends or range(1, len(attempts) + 1):
        together: Counter[Sample] = Counter()
        for attempt in reversed(attempts[:end]):
            together = together + Counter(attempt.samples)
            own.append(together)
    return own


def _covers(samples: list[Sample], parts: Sequence[list[Counter[Sample]]]) -> bool:
    """Whether one part of each worker, all together, are these samples, each once."""
    open_, left = sorted(parts, key=len), [Counter(samples)]
    for choices in open_:
        left = [rest - part for rest in left for part in choices if part <= rest]
    return any(not rest for rest in left)


def _used(attempts: Sequence[Attempt], samples: list[Sample], lineage: str) -> bool:
    """Whether these samples were at hand one micro-batch after the other, and nothing else came of it than this."""
    for first in range(len(attempts)):
        together: list[Sample] = []
        for attempt in attempts[first:]:
            together += attempt.samples
            if together == samples and attempt.lineage in (None, lineage):
                return True
            if attempt.lineage is not None or len(together) > len(samples):
                break
    return False
