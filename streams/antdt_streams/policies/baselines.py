"""What others do about slow nodes, to be beaten: each as simple as it is published."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median_low

from antdt_schemas.colony import POLICY, ColonyParameters
from antdt_schemas.errors import UsageError
from antdt_schemas.records import Action, Assignment
from antdt_schemas.strategies import is_collective

from antdt_streams.policies.adjust_batch_size import is_movable
from antdt_streams.policies.policy import ClusterView, Memory, Proposal, spared
from antdt_streams.policies.solver import solve_nd, step_s
from antdt_streams.policies.sparing import Sparing, SparingParameters

Decided = tuple[tuple[Proposal, ...], Memory]


class NoMitigation:
    """The policy `none`: looks on. What is in force stays."""

    name = "none"
    version = 1

    def decide(self, view: ClusterView, memory: Memory) -> Decided:
        return (), memory


class Even:
    """The policy `even`: everybody takes as much, whoever is slow; takes back what another policy has changed."""

    name = "even"
    version = 1

    def decide(self, view: ClusterView, memory: Memory) -> Decided:
        some_spared = view.backup_workers > 0 and is_collective(view.strategy)
        nodes = [node for node in view.workers if node.batch_size > 0 or some_spared]
        if view.pending or not nodes or view.plan == 0:
            return (), memory
        base, more = divmod(sum(node.batch_size for node in nodes), len(nodes))
        even = tuple(Assignment(node.worker, base + (i < more), 1) for i, node in enumerate(nodes))
        uneven = max(n.batch_size for n in nodes) > min(n.batch_size for n in nodes) + 1
        if some_spared:
            return (Proposal(Action.BACKUP_WORKERS, "all take as much", 0.0, even, backup_workers=0),), memory
        if uneven or any(node.accumulation > 1 for node in nodes):
            return (Proposal(Action.ADJUST_BS, "all take as much", 0.0, even),), memory
        return (), memory


class LoadBalancedBsp:
    """The policy `lb-bsp`: batch sizes in proportion to speed at each window's end, without damping. Batches only: it
    knows neither restarts nor fixed costs.
    """

    name = "lb-bsp"
    version = 1

    def decide(self, view: ClusterView, memory: Memory) -> Decided:
        nodes = [node for node in view.workers if node.batch_size > 0]
        if view.pending or view.urgent or len(nodes) < 2 or not all(is_movable(node) for node in nodes):
            return (), memory
        times = [node.step_s for node in nodes]
        rates = [time_s / node.batch_size for time_s, node in zip(times, nodes, strict=True)]
        total, none = sum(node.batch_size for node in nodes), [0.0] * len(nodes)
        best = solve_nd(total, rates, none, [1] * len(nodes), [total] * len(nodes))
        if best is None or best == [node.batch_size for node in nodes]:
            return (), memory
        gain = 1.0 - step_s(best, rates, none) / max(times)
        shares = tuple(Assignment(node.worker, q, node.accumulation) for node, q in zip(nodes, best, strict=True))
        slow = max(nodes, key=lambda node: (node.seconds_per_sample or 0.0, node.worker))
        ratio = (slow.seconds_per_sample or 0.0) / median_low(node.seconds_per_sample or math.nan for node in nodes)
        reason = f"batches in proportion to speed: {slow.worker} needs {ratio:.1f}x the median time"
        return (Proposal(Action.ADJUST_BS, reason, gain, (*shares, *spared(view))),), memory


@dataclass(frozen=True)
class BackupParameters(SparingParameters):
    """workers: slowest contributions that a step does not wait for. adjust_lr: under servers, where the global batch is
    smaller by them, learning rates go with it, in proportion. The others are of AllReduce (`SparingParameters`).
    """

    workers: int = 1
    adjust_lr: bool = True

    def __post_init__(self) -> None:
        SparingParameters.__post_init__(self)
        if self.workers < 0:
            raise UsageError("workers must not be negative.")


class Backup:
    """The policy `backup`: a step closes after all but k contributions; a late one is recomputed or carried over. Under
    AllReduce the k slowest take no samples (`Sparing`).
    """

    name = "backup"
    version = 2
    strategies: tuple[str, ...] = ("ps-bsp", "allreduce")

    def __init__(self, parameters: BackupParameters | None = None) -> None:
        self.parameters = parameters or BackupParameters()
        self._sparing = Sparing(self.parameters.workers, self.parameters)

    def decide(self, view: ClusterView, memory: Memory) -> Decided:
        """Of servers k of n, and the rates that go with it; else at most one proposal."""
        if is_collective(view.strategy):
            return self._sparing.decide(view, memory)
        many = len(view.workers)
        wanted = min(self.parameters.workers, max(many - 1, 0))
        if view.pending or not many:
            return (), memory
        out = []
        reason = f"a step closes after {many - wanted} of {many} contributions"
        if view.backup_workers != wanted:
            out.append(Proposal(Action.BACKUP_WORKERS, reason, 0.0, backup_workers=wanted))
        factor = (many - wanted) / many if self.parameters.adjust_lr else view.learning_rate_factor
        if factor != view.learning_rate_factor:
            reason = f"{reason}: learning rates go with the global batch"
            out.append(Proposal(Action.ADJUST_LR, reason, 0.0, learning_rate_factor=factor))
        return tuple(out), memory


class BackupDrop(Backup):
    """The policy `backup-drop`: the classic one, which throws late contributions away: their samples are lost."""

    name = "backup-drop"
    version = 1
    strategies = ("ps-bsp/drop",)


class Asynchronous(NoMitigation):
    """The policy `asp-dds`: nobody waits for anybody, and whoever is fast takes more samples."""

    name = "asp-dds"
    strategies = ("ps-asp/servers",)


class AsynchronousEven(Asynchronous):
    """The policy `asp`: nobody waits for anybody, but samples are dealt out evenly ahead."""

    name = "asp"
    strategies = ("ps-asp/even",)


class AntColony:
    """The policy `ant-colony`: workers take shards that others have not begun over from them, by pheromone trails.

    Nothing is decided here. What is said, once for each change, are the parameters that workers go by: they read them
    in the decision.
    """

    name = POLICY
    version = 1
    strategies = ("ps-bsp/colony", "ps-asp/colony", "ps-ssp=N/colony")

    def __init__(self, parameters: ColonyParameters | None = None) -> None:
        self.parameters = parameters or ColonyParameters()

    def decide(self, view: ClusterView, memory: Memory) -> Decided:
        p = self.parameters
        said = [p.evaporation, p.reinforcement, p.shards_min]
        if memory.get("said") == said:
            return (), memory
        reason = (
            f"workers take over {p.shards_min} or more shards at a time from whom they choose: trails evaporate by "
            f"{p.evaporation:g} at each reading, and gain up to {p.reinforcement:g}"
        )
        return (Proposal(Action.NONE, reason),), {**memory, "said": said}
