"""Why a worker is slow, or is not, and what was done about it: a verdict, its evidence, and what comes next.

Owns the words. What is measured is the Monitor's, what is decided the Controller's; nothing here judges anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import UsageError
from antdt_schemas.records import Action, NodeClass
from antdt_schemas.topics import DECISIONS, MEASUREMENTS, STEPS, Topic

from antdt_streams.controller.core.effects import told
from antdt_streams.kafka.reader import Raw, TopicReader, decoded
from antdt_streams.views.control import SLOW, Control
from antdt_streams.views.standings import standings

MEASUREMENTS_READ, STEPS_READ = 64, 2_000
DECISIONS_SHOWN = 3
OTHERS_MAX = 64  # of thousands of others some will do to compare with
WATCHED_NEXT = "Look at its machine: this job is only watched, so nobody gives it fewer samples or starts it again."
PARTS = ("data", "compute", "communication", "wait")
# What a class means, in the words of a person; what it asks of one.
MEANS = {
    NodeClass.UNKNOWN: ("is not known well enough yet", "The Monitor needs a few more windows of steps."),
    NodeClass.HEALTHY: ("is as fast as its kind", "Nothing is to be done."),
    NodeClass.TRANSIENT: (
        "is slow at times",
        "It is given fewer samples while that lasts; nothing else is to be done.",
    ),
    NodeClass.PERSISTENT: (
        "is slow, and stays it",
        "It is given fewer samples; look at its machine, or have it started again (`antdt restart`), as a policy may.",
    ),
    NodeClass.DETERMINISTIC: (
        "is of a slower kind",
        "Its part fits its kind; a restart changes nothing.",
    ),
    NodeClass.LEADER: ("is of the fastest kind", "Nothing is to be done: it has a part that fits its kind."),
    NodeClass.ABSENT: ("says nothing", "If it does not come back, its launcher starts it again, or it is given up."),
}


@dataclass(frozen=True, slots=True)
class Steps:
    """The newest steps of one worker: seconds of each, by part, medians; how many, and where they lie in `steps`.

    order, lineage: of one that is only watched, what draws its samples, and the hash of those up to the last step.
    """

    parts: dict[str, float]
    batch_size: int
    count: int
    first_offset: int
    last_offset: int
    watched: bool = False
    order: str = ""
    lineage: str = ""


@dataclass(frozen=True, slots=True)
class Why:
    """Sentences, each with the offsets that it comes from."""

    worker: str
    verdict: str
    evidence: tuple[str, ...]
    done: tuple[str, ...]
    next: str


def why_of(connection: Connection, job: str, worker: str) -> Why:
    """Raises UsageError where nothing is known of such a worker."""
    control = Control()
    for topic, last in ((MEASUREMENTS, MEASUREMENTS_READ), (STEPS, STEPS_READ), (DECISIONS, 1 << 40)):
        for raw, record in _tail(connection, job, topic, last):
            control.on_record(topic, record, raw.offset, raw.time_ms)
    measured = control.measured
    nodes = {node.worker: node for node in measured.nodes} if measured is not None else {}
    if worker not in nodes and not steps_of(control, [worker]):
        known = ", ".join(sorted({*nodes, *steps_of(control)})) or "nobody: no step was made, or no Monitor runs"
        raise UsageError(f"Nothing is known of {worker!r} in job {job}. What is known is of {known}.")
    said = standings(connection, job, {nodes[worker].incarnation}) if worker in nodes else {}
    return why_from(control, worker, next(iter(said.values()), None))


def why_from(control: Control, worker: str, standing: Mapping[str, Any] | None) -> Why:
    """The same from what was read before."""
    measured = control.measured
    nodes = {node.worker: node for node in measured.nodes} if measured is not None else {}
    names = sorted(control.servers if worker in control.servers else control.workers)
    beside = names[:: max(1, len(names) // OTHERS_MAX)]
    steps = steps_of(control, {worker, *beside})
    effects = list(control.effects.values())
    return why(worker, nodes, control.measured_at, steps, control.decisions, effects, standing)


def why(
    worker: str,
    nodes: Mapping[str, records.NodeMeasurement],
    measured_at: int,
    steps: Mapping[str, Steps],
    decisions: Sequence[records.Decision],
    effects: Sequence[records.Effect],
    standing: Mapping[str, Any] | None,
) -> Why:
    """nodes: of the newest measurement, which lies at offset `measured_at`. decisions, effects: all, in order."""
    node, evidence = nodes.get(worker), list[str]()
    means, then = MEANS[node.node_class if node is not None else NodeClass.UNKNOWN]
    verdict = f"{worker} {means}."
    if node is not None:
        others = [n.seconds_per_sample for n in nodes.values() if n.group == node.group and n.worker != worker]
        if others and median(others) > 0:
            times = node.seconds_per_sample / median(others)
            verdict = f"{worker} {means}: a sample takes it {times:.2f} times what it takes the others of its group."
        evidence.append(
            f"{node.seconds_per_sample * 1e3:.3g} ms a sample (give or take {100 * node.rate_error:.0f} %), class "
            f"{node.node_class} for {node.persistent_windows} windows (measurements@{measured_at})"
        )
    if worker in steps:
        evidence.append(_parts(worker, steps))
        if steps[worker].order:
            hashed = f", lineage {steps[worker].lineage}" if steps[worker].lineage else ""
            evidence.append(f"samples are drawn by {steps[worker].order}{hashed}")
        if steps[worker].watched and node is not None and node.node_class in SLOW:
            then = WATCHED_NEXT
    if standing is not None:
        detail = f" ({standing['detail']})" if standing["detail"] else ""
        evidence.append(f"{standing['phase']} for {standing['phase_s']:.1f} s{detail}, {standing['age_s']:.0f} s ago")
    found = [one for decision in decisions if (one := _decided(worker, decision, effects))]
    return Why(worker, verdict, tuple(evidence), tuple(found[-DECISIONS_SHOWN:]), then)


def steps_of(control: Control, names: Iterable[str] | None = None) -> dict[str, Steps]:
    """By worker or server, from what they said last; of these names only."""
    nodes = {**control.workers, **control.servers}
    found = {}
    for name in nodes if names is None else names:
        steps = nodes[name].steps if name in nodes else ()
        if steps:
            parts = {part: median(getattr(step, f"{part}_s") for step in steps) for part in PARTS}
            node, where = nodes[name], (steps[0].offset, steps[-1].offset)
            found[name] = Steps(parts, steps[-1].samples, len(steps), *where, node.watched, node.order, node.lineage)
    return found


def _parts(worker: str, steps: Mapping[str, Steps]) -> str:
    """Where its time goes, beside that of the others."""
    mine = steps[worker]
    others = [one for name, one in steps.items() if name != worker]
    told = []
    for name in PARTS:
        beside = f" (others {median(o.parts[name] for o in others) * 1e3:.3g})" if others else ""
        told.append(f"{name} {mine.parts[name] * 1e3:.3g}{beside}")
    where = f"steps@{mine.first_offset} to {mine.last_offset}"
    return (
        f"of a step, in ms: {', '.join(told)}; {mine.batch_size} samples in it (median of {mine.count} steps, {where})"
    )


def _decided(worker: str, decision: records.Decision, effects: Sequence[records.Effect]) -> str:
    """What a decision did to this worker, and what came of it; empty if it did nothing."""
    if decision.action is Action.KILL_RESTART:
        what = "it is started again" if decision.target.partition(".")[0] == worker else ""
        came = [one for one in effects if one.action is Action.KILL_RESTART and one.worker == worker]
    else:
        planned = decision.action is not Action.NONE
        mine = [one for one in decision.assignments if planned and one.worker == worker]
        what = f"plan {decision.plan} gives it {mine[0].batch_size} samples a step" if mine else ""
        came = [one for one in effects if one.action is not Action.KILL_RESTART and one.plan == decision.plan]
    if not what:
        return ""
    return f"{what}, as {decision.reason}" + (f"; {told(came[-1])}" if came else "")


def _tail(connection: Connection, job: str, topic: Topic, last: int) -> Iterable[tuple[Raw, Any]]:
    with TopicReader(connection, job, topic) as reader:
        yield from decoded(reader.tail(last), *topic.kinds)
