"""Nodes that a scheduler had better avoid: those whose workers the Controller had started again because they were slow.

Owns which nodes these are, for how long and how many at most, and the forms in which schedulers want them. Measures
nothing: the decisions say who was slow, the log where that incarnation ran.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from antdt_schemas.connection import Connection
from antdt_schemas.records import Action, Cause, Decision, Effect, Verdict
from antdt_schemas.topics import DECISIONS

from antdt_streams.kafka.reader import TopicReader, decoded
from antdt_streams.ledger.core.members import Incarnation
from antdt_streams.views.job import newest_state

# Of a node, where somebody marks it by hand or by a script: the manifests of deploy/ stay away from it.
SLOW_LABEL = "antdt.dev/slow"
SHARE_MAX = 4  # of so many nodes that the job has seen one may be avoided: a scheduler needs the others
IN_VAIN = (Verdict.NO_EFFECT, Verdict.HARMED)
MANAGER = "antdt.dev/avoid-nodes"
# Kind of a resource -> where its pods' affinity is.
AFFINITY_AT = {
    "job": "/spec/template/spec/affinity",
    "jobset": "/spec/replicatedJobs/0/template/spec/template/spec/affinity",
    "volcano": "/spec/tasks/0/template/spec/affinity",
}


@dataclass(frozen=True, slots=True)
class Avoided:
    """One node, and why: the newest order to start a worker of it again, which lies at `offset` of the decisions."""

    node: str
    worker: str
    incarnation: str
    offset: int
    time_ms: int
    expires_ms: int
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """nodes: newest first. left_out: how many more there are than may be avoided. unknown: incarnations that were to
    start again and are not in the log.
    """

    nodes: tuple[Avoided, ...]
    left_out: int
    unknown: tuple[str, ...] = ()


def avoided_of(connection: Connection, job: str, now_ms: int, expire_ms: int, nodes_max: int | None) -> Found:
    """Of a job, from its log and its decisions."""
    fold, _ = newest_state(connection, job)
    known = fold.state.members.incarnations if fold.state else {}
    with TopicReader(connection, job, DECISIONS) as reader:
        said = [(raw.offset, raw.time_ms, decision) for raw, decision in decoded(reader.to_end(), Decision)]
    return avoided(said, known, now_ms, expire_ms, nodes_max)


def avoided(
    decisions: Iterable[tuple[int, int, Decision]],
    known: Mapping[str, Incarnation],
    now_ms: int,
    expire_ms: int,
    nodes_max: int | None = None,
) -> Found:
    """decisions: offset, time of the broker, record. known: every incarnation, in the order in which they joined.
    nodes_max: None is a quarter of the nodes that were seen, at least one.
    """
    orders: dict[Cause, tuple[int, int, Decision]] = {}
    effects: dict[Cause, Effect] = {}
    for offset, time_ms, decision in decisions:
        if decision.action is Action.KILL_RESTART and not decision.author:  # people have reasons of their own
            orders.setdefault(decision.cause, (offset, time_ms, decision))
        elif decision.effect is not None and decision.effect.action is Action.KILL_RESTART:
            effects[decision.effect.decision] = decision.effect
    newest: dict[str, Avoided] = {}
    for offset, time_ms, decision in orders.values():
        who = known.get(decision.target)
        if who is None or time_ms + expire_ms <= now_ms or not _is_the_nodes(decision, effects, known):
            continue
        why = f"policy {decision.policy}: {decision.reason}"
        one = Avoided(who.node, who.worker, decision.target, offset, time_ms, time_ms + expire_ms, why)
        newest.pop(who.node, None)
        newest[who.node] = one
    limit = max(1, len({who.node for who in known.values()}) // SHARE_MAX) if nodes_max is None else nodes_max
    found = list(newest.values())[::-1]
    unknown = tuple(d.target for _, _, d in orders.values() if d.target not in known)
    return Found(tuple(found[:limit]), max(0, len(found) - limit), unknown)


def _is_the_nodes(order: Decision, effects: Mapping[Cause, Effect], known: Mapping[str, Incarnation]) -> bool:
    """Whether the slowness stays with the node: not where the next incarnation was well on the same one, nor where it
    was as slow on another one.
    """
    effect, where = effects.get(order.cause), list(known)
    before = known[order.target]
    later = [known[name] for name in where[where.index(order.target) + 1 :] if known[name].worker == before.worker]
    if effect is None or not later:
        return True
    stayed = later[0].node == before.node
    return not (effect.verdict is Verdict.HELPED and stayed) and not (effect.verdict in IN_VAIN and not stayed)


# -- as schedulers want them


def affinity(nodes: Sequence[str]) -> dict[str, Any]:
    """Kubernetes' affinity of a pod: not on these nodes, nor on one that somebody has labelled. A field takes one value
    only, so there is a requirement for each node.
    """
    term: dict[str, Any] = {"matchExpressions": [{"key": SLOW_LABEL, "operator": "DoesNotExist"}]}
    if nodes:
        term["matchFields"] = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}


def patch(nodes: Sequence[str], kind: str) -> list[dict[str, Any]]:
    """A JSON patch that gives the pods of a resource this affinity, in place of what they had."""
    if kind != "trainjob":
        return [{"op": "add", "path": AFFINITY_AT[kind], "value": affinity(nodes)}]
    pods: dict[str, Any] = {"spec": {"template": {"spec": {"affinity": affinity(nodes)}}}}
    spec = {"template": {"spec": {"replicatedJobs": [{"name": "node", "template": pods}]}}}
    value = [{"manager": MANAGER, "trainingRuntimeSpec": spec}]
    return [{"op": "add", "path": "/spec/runtimePatches", "value": value}]


KINDS = (*AFFINITY_AT, "trainjob")
