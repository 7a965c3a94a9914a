"""What a script states of local training. Must not know how any of it is done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from antdt_schemas.errors import UsageError

from antdt.strategies.allreduce.options import AllReduce
from antdt.strategies.base import Here, Strategy, without_servers

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class LocalSGD:
    """Each worker takes `every` steps of its optimizer on its own samples, then all average their parameters, weighted
    by the samples that each has trained on since the last average (Stich, arXiv 1805.09767; federated averaging,
    McMahan et al., arXiv 1602.05629). Workers then exchange `every` times less than with AllReduce.

    A step of the job (`agent.step_number`, commits, checkpoints, `checkpoint_every_steps`) is one average, and
    `agent.step(loss)` returns True where there was one. `batch_size` is that of one step of the optimizer, of all
    workers together. Samples count as done once the average that holds them is every worker's model. Whoever is told to
    leave finishes its period; when a worker is lost, or one joins, all go back to the last average, and the samples
    since then are done again (torchft's LocalSGD discards such a period, too). So `every` also bounds what that costs.

    Buffers are averaged as parameters are (whole numbers: the largest). Optimizer state stays with each worker, as in
    post-local SGD (Lin et al., arXiv 1808.07217), torch's PostLocalSGDOptimizer and DiLoCo (Douillard et al., arXiv
    2311.08105): averaging it as well would triple the traffic of Adam. A checkpoint holds that of the first worker,
    and whoever takes over a model takes over the optimizer state that comes with it.

    Schedules: `Agent(scheduler=)` is stepped with each average, as it is the same on all workers then. One that is
    stepped with the optimizer, in a hook, runs on apart where workers take other numbers of steps, which happens where
    samples run out; that is said, and ends the run. A plan's factor of learning rates counts from the next period on.
    `clip_grad_norm` is of each worker's own steps. What is for steps that all make together is refused: a scaler,
    `agent.skip`, `reduce`, `apply(optimizer)`, `gather`.

    Memory: one more copy of the trained parameters and of the optimizer state, that of the last average; and while it
    averages, as much as the parameters.

    every: steps of the optimizer from average to average; the same on all workers, 1 averages after each. exchange: how
    averages are carried, as gradients are under AllReduce.

    Raises UsageError for a period that is none.
    """

    every: int
    exchange: AllReduce = field(default_factory=AllReduce)
    has_common_step: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise UsageError(f"LocalSGD(every={self.every!r}): take a whole number of steps, at least 1.")

    @property
    def name(self) -> str:
        """That of the job's records: another period is another strategy."""
        return f"local-sgd/every={self.every}"

    def placed(self, servers: int, *, alone: bool) -> LocalSGD:
        """As it is: workers meet each other."""
        without_servers("LocalSGD", servers)
        return self

    def member(self, model: torch.nn.Module, optimizer: Any, here: Here) -> Strategy:
        """One worker's part in it."""
        from antdt.strategies.local.member import LocalMember  # which needs these options

        return LocalMember(model, optimizer, self, here)
