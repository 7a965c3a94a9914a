"""What scripts keep, move or clamp beside the loss, where servers hold the model: refused, or as one process has it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from antdt.strategies.base import Part
from antdt.strategies.once import Once
from antdt.strategies.ps.member import ServedMember
from antdt.strategies.ps.options import ParameterServer
from antdt_schemas.errors import UsageError
from antdt_schemas.ranges import Range
from torch import nn
from torch.nn import functional

from tests.unit.test_ps_members import Cluster, X, Y

STEPS = 6
Body = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


class Net(nn.Module):  # type: ignore[misc]
    """Trained, frozen, and buffers of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.teacher = nn.Linear(6, 3), nn.Linear(6, 3).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(3))
        self.register_buffer("cache", torch.zeros(1), persistent=False)

    def forward(self, x: torch.Tensor) -> Any:
        return self.body(x)


def script() -> tuple[nn.Module, torch.optim.Optimizer, Once]:
    torch.manual_seed(0)
    model = Net()
    return model, torch.optim.SGD(model.body.parameters(), lr=0.1), Once()


@pytest.fixture(params=["bsp", "asp", "ssp"])
def worker(request: pytest.FixtureRequest) -> Iterator[ServedMember]:
    cluster = Cluster(script, ParameterServer(mode=request.param))
    cluster.begin()
    try:
        yield cluster.worker("w0")
    finally:
        cluster.end()


def train(worker: ServedMember, body: Body, behind: Callable[[], None] = lambda: None) -> None:
    """As the Agent does it: a batch of the script's, its loss, a contribution, and what the script does behind it."""
    for step in range(STEPS):
        samples = slice(8 * step, 8 * step + 8)
        worker.announce(Part([Range(step + 1, 7, 0, samples.start, 8)], 0, 8))
        x, y = X[samples].clone(), Y[samples].clone()
        worker.watch((x, y), 8)
        loss = body(x, y, step)
        worker.watcher.leave()
        worker.backward(loss, 8)
        worker.finish(lambda _: None)
        behind()
        worker.unwatch(whole=True)


def plain(worker: ServedMember) -> Body:
    return lambda x, y, step: functional.cross_entropy(worker.model(x), y)


def test_a_teacher_beside_the_agent_that_follows_the_model_is_refused(worker: ServedMember) -> None:
    teacher = copy.deepcopy(worker.model.body).requires_grad_(False)

    def follow() -> None:
        with torch.no_grad():
            for mine, theirs in zip(teacher.parameters(), worker.model.body.parameters(), strict=True):
                mine.mul_(0.9).add_(theirs, alpha=0.1)

    def body(x: torch.Tensor, y: torch.Tensor, step: int) -> torch.Tensor:
        return functional.mse_loss(worker.model(x), teacher(x))

    with pytest.raises(UsageError, match=r"carried from batch to batch.*which servers do not have.*use AllReduce"):
        train(worker, body, follow)


def test_a_queue_of_earlier_samples_is_refused(worker: ServedMember) -> None:
    queue = [torch.zeros(8, 3)]

    def body(x: torch.Tensor, y: torch.Tensor, step: int) -> torch.Tensor:
        out = worker.model(x)
        loss = functional.mse_loss(out, queue[0])
        queue[0] = out.detach()
        return loss

    with pytest.raises(UsageError, match="carried from batch to batch"):
        train(worker, body)


def test_a_frozen_teacher_that_is_moved_is_refused(worker: ServedMember) -> None:
    def follow() -> None:
        with torch.no_grad():
            worker.model.teacher.weight.lerp_(worker.model.body.weight, 0.1)

    with pytest.raises(UsageError, match=r"Frozen parameter teacher\.weight was changed.*each worker's own"):
        train(worker, plain(worker), follow)


def test_weights_that_the_script_clamps_are_refused(worker: ServedMember) -> None:
    """The servers' next version would undo it without a word."""

    def clamp() -> None:
        for param in worker.model.body.parameters():
            param.data.clamp_(-0.01, 0.01)

    with pytest.raises(UsageError, match=r"Parameter body\.weight was changed by the script.*undoes that"):
        train(worker, plain(worker), clamp)


def test_a_buffer_that_changes_is_refused(worker: ServedMember) -> None:
    def body(x: torch.Tensor, y: torch.Tensor, step: int) -> torch.Tensor:
        out = worker.model(x)
        worker.model.centre.mul_(0.9).add_(out.detach().mean(0), alpha=0.1)
        return functional.cross_entropy(out, y)

    with pytest.raises(UsageError, match=r"Buffer centre changes while the model trains.*persistent=False"):
        train(worker, body)


def test_what_stays_as_it_is_and_what_a_batch_alone_is_made_of_is_right(worker: ServedMember) -> None:
    """A teacher that does not move, a cache, and under asp and ssp what one process makes of each batch."""
    teacher, alone = nn.Linear(6, 3).requires_grad_(False), copy.deepcopy(worker.model)
    is_common = worker.options.mode == "bsp"

    def loss_of(model: Any, x: torch.Tensor, y: torch.Tensor, step: int) -> torch.Tensor:
        model.cache = torch.full((1 + step,), float(step))
        out = model(x)
        centre = 0.0 if is_common else out.detach().mean(0)
        return functional.cross_entropy(out - centre + teacher(x) + model.teacher(x), y)

    train(worker, lambda *batch: loss_of(worker.model, *batch))
    optimizer = torch.optim.SGD(alone.body.parameters(), lr=0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        samples = slice(8 * step, 8 * step + 8)
        loss_of(alone, X[samples], Y[samples], step).backward()
        optimizer.step()
    torch.testing.assert_close(worker.model.body.weight, alone.body.weight, rtol=1e-5, atol=1e-6)
