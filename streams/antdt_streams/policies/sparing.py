"""Backup workers where a step is one exchange of all: the slowest take part with no samples.

Nobody can be late to a collective, so who is not to be waited for must have nothing to compute. The others take its
share, evenly: the step trains what it always does, nothing is computed twice and nothing is lost. It pays only where a
node is so slow that the others are faster without it, so nobody else is spared.

Who takes no samples shows no speed. Every now and then, after twice as long each time, it is tried with a few, and it
takes its share again as soon as the step is no longer for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from antdt_schemas.errors import UsageError
from antdt_schemas.records import Action, Assignment

from antdt_streams.policies.adjust_batch_size import is_movable
from antdt_streams.policies.policy import ClusterView, Memory, NodeView, Proposal

APART, WAITS, SINCE, TRYING, MEMBERS = "apart", "waits", "since", "trying", "members"
TRY_PART, TRY_WINDOWS = 4, 2  # with this part of an even share, for so many whole windows
WAIT_MAX = 16  # times the first wait
ERRORS = 3.0  # standard errors of its rate by which a node may seem slower than it is

Decided = tuple[tuple[Proposal, ...], Memory]


@dataclass(frozen=True, slots=True)
class SparingParameters:
    """gain_min: share of the step time that it saves at least to spare a worker; where it costs less than half of that,
    the worker has its share back. try_windows: windows until a spared worker is tried for the first time.
    """

    gain_min: float = 0.05
    try_windows: int = 10

    def __post_init__(self) -> None:
        if not 0.0 < self.gain_min < 1.0 or self.try_windows < 1:
            raise UsageError("Take 0 < gain_min < 1 and try_windows of at least 1.")


class Sparing:
    """The rule. It remembers who is apart (spared, or tried), since which window and until it is tried, and for which
    incarnations that holds: of others nothing is known.
    """

    def __init__(self, workers: int, parameters: SparingParameters) -> None:
        """workers: so many are apart at most."""
        self.workers, self.parameters = workers, parameters

    def decide(self, view: ClusterView, memory: Memory) -> Decided:
        """At most one BACKUP_WORKERS: everybody's share, and how many have none."""
        nodes, members = view.workers, sorted(node.incarnation for node in view.workers)
        if view.pending or view.urgent or not nodes:
            return (), memory
        idle = [node.worker for node in nodes if node.batch_size == 0]
        if memory.get(MEMBERS, members) != members or any(
            node.worker in idle and not is_movable(node) for node in nodes
        ):
            reason = "who was spared is not known to be slow any more: all take as much"
            proposals = (_proposal(nodes, {}, reason),) if memory.get(APART, idle) else ()
            return proposals, {MEMBERS: members}
        if len(nodes) < 2 or not all(map(is_movable, nodes)):
            return (), memory
        now = {MEMBERS: members, APART: idle, WAITS: {}, SINCE: {}, TRYING: {}, **memory}
        return self._follow(view, nodes, now)

    def _follow(self, view: ClusterView, nodes: Sequence[NodeView], memory: dict[str, Any]) -> Decided:
        apart, window = set(memory[APART]), view.window
        chosen = self._chosen(view, nodes, apart)
        trying: dict[str, int] = {worker: window if at < 0 else at for worker, at in memory[TRYING].items()}
        if chosen != apart:
            gone = chosen - apart
            waits = {**memory[WAITS], **{w: self._longer(memory, w) for w in gone}}
            since = {w: window if w in gone else memory[SINCE].get(w, window) for w in sorted(chosen)}
            memory = {**memory, APART: sorted(chosen), WAITS: waits, SINCE: since, TRYING: {}}
            return (_proposal(nodes, dict.fromkeys(chosen, 0), _reason(nodes, apart, chosen)),), memory
        if trying and min(window - at for at in trying.values()) >= TRY_WINDOWS:
            waits = {**memory[WAITS], **{w: self._longer(memory, w) for w in trying}}
            since = {**memory[SINCE], **dict.fromkeys(trying, window)}
            reason = f"{_told(nodes, trying)}, still: no samples, the others take all"
            memory = {**memory, WAITS: waits, SINCE: since, TRYING: {}}
            return (_proposal(nodes, dict.fromkeys(apart, 0), reason),), memory
        due = [w for w in sorted(apart) if window - memory[SINCE].get(w, window) >= self._wait(memory, w)]
        total = sum(node.batch_size for node in nodes)
        few = max(1, total // len(nodes) // TRY_PART)
        if due and not trying and total - few * len(due) >= len(nodes) - len(apart):
            reason = f"{', '.join(due)}: tried with {few} samples, to see whether still slow"
            shares = {**dict.fromkeys(apart, 0), **dict.fromkeys(due, few)}
            return (_proposal(nodes, shares, reason),), {**memory, TRYING: dict.fromkeys(due, -1)}
        return (), {**memory, TRYING: trying}

    def _wait(self, memory: Mapping[str, Any], worker: str) -> int:
        return int(memory[WAITS].get(worker, self.parameters.try_windows))

    def _longer(self, memory: Mapping[str, Any], worker: str) -> int:
        """How long it is spared next: at first as long as is said, then twice as long each time."""
        first = self.parameters.try_windows
        return min(2 * memory[WAITS][worker], WAIT_MAX * first) if worker in memory[WAITS] else first

    def _chosen(self, view: ClusterView, nodes: Sequence[NodeView], apart: Set[str]) -> Set[str]:
        """Who is to be apart: the slowest, as many as it pays most to do without; or who is now."""
        total, slack = sum(node.batch_size for node in nodes), self.parameters.gain_min / 2
        slowest = sorted(nodes, key=lambda node: (-_seconds(node, total / len(nodes)), node.worker))
        most = min(self.workers, len(nodes) - 1)
        best, best_margin = apart, 0.0 if len(apart) <= most else -1e9
        for count in range(most + 1):
            one = {node.worker for node in slowest[:count]}
            gone = one - apart
            if one == apart or total < len(nodes) - count or (gone and view.rotating):
                continue
            with_s = _step_s(nodes, _shares(nodes, dict.fromkeys(apart, 0)), unsure=gone)
            margin = 1.0 - _step_s(nodes, _shares(nodes, dict.fromkeys(one, 0))) / with_s
            margin -= self.parameters.gain_min if gone else -slack
            if margin > best_margin:
                best, best_margin = one, margin
        return best


def _shares(nodes: Sequence[NodeView], fixed: Mapping[str, int]) -> list[int]:
    """What each takes, where these take so many, and the others all else, evenly."""
    takers = len(nodes) - len(fixed)
    base, more = divmod(sum(node.batch_size for node in nodes) - sum(fixed.values()), takers)
    sizes = iter([base + (number < more) for number in range(takers)])
    return [fixed[node.worker] if node.worker in fixed else next(sizes) for node in nodes]


def _seconds(node: NodeView, samples: float, errors: float = 0.0) -> float:
    """Of its own work in a step; cut into what it holds, as it would be."""
    rate = (node.seconds_per_sample or 0.0) * max(0.0, 1.0 - errors * (node.rate_error or 0.0))
    parts = -(-samples // node.batch_size_max) if node.batch_size_max else 1
    return node.fixed_s * parts + samples * rate


def _step_s(nodes: Sequence[NodeView], shares: Sequence[int], unsure: Set[str] = frozenset()) -> float:
    """Predicted seconds of a step. unsure: who may be faster than it seems, as far as noise explains it."""
    rows = zip(nodes, shares, strict=True)
    return max(_seconds(node, size, ERRORS * (node.worker in unsure)) for node, size in rows if size)


def _proposal(nodes: Sequence[NodeView], fixed: Mapping[str, int], reason: str) -> Proposal:
    shares, before = _shares(nodes, fixed), [node.batch_size for node in nodes]
    known = all(map(is_movable, nodes)) and any(before)
    gain = 1.0 - _step_s(nodes, shares) / _step_s(nodes, before) if known else 0.0
    assignments = tuple(Assignment(node.worker, size, 1) for node, size in zip(nodes, shares, strict=True))
    said = f"{reason}, step time {-100 * gain:+.0f} %" if known else reason
    return Proposal(Action.BACKUP_WORKERS, said, gain, assignments, backup_workers=shares.count(0))


def _reason(nodes: Sequence[NodeView], apart: Set[str], chosen: Set[str]) -> str:
    back = apart - chosen
    said = [f"{_told(nodes, chosen - apart)}: no samples, the others take all"] if chosen - apart else []
    return "; ".join([*said, *([f"{_told(nodes, back)}: an even share again"] if back else [])])


def _told(nodes: Sequence[NodeView], workers: Set[str] | Mapping[str, int]) -> str:
    """By how much they differ from the fastest of the others."""
    times = {node.worker: node.seconds_per_sample or 0.0 for node in nodes}
    least = min((time_s for worker, time_s in times.items() if worker not in workers), default=0.0)
    return ", ".join(f"{w} needs {times[w] / least:.1f}x the time of the fastest" for w in sorted(workers) if least)
