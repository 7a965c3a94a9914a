"""What is watched of a loop: its times, its samples, the order of them; and that nothing of it is changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from antdt import watching
from antdt.watching import optimizers_of
from antdt.watching.measuring import Measuring, samples_of
from antdt.watching.order import ROOT, Order, follow
from antdt.worker.telemetry import StepTiming
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


class Clock:
    """Goes on when it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Slow(nn.Module):
    """Takes its time: forward 2 s, and backward 1 s before its gradients are there."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.linear, self.clock = nn.Linear(3, 1), clock

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.clock.now += 2.0
        out = self.linear(x)
        if out.requires_grad:
            out.register_hook(lambda _: self._backward())
        return out

    def _backward(self) -> None:
        self.clock.now += 1.0


def watched() -> tuple[Clock, Slow, torch.optim.Optimizer, Measuring, list[StepTiming]]:
    clock, told = Clock(), list[StepTiming]()
    model = Slow(clock)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    measuring = Measuring(told.append, clock=clock)
    measuring.attach(model, [optimizer])
    return clock, model, optimizer, measuring, told


def test_a_step_is_data_and_compute() -> None:
    clock, model, optimizer, _, told = watched()
    for _ in range(2):
        clock.now += 5.0
        model(torch.ones(4, 3)).mean().backward()
        optimizer.step()
    first, second = told
    assert (first.step, first.batch_size, first.data_s, first.compute_s) == (1, 4, 0.0, 3.0), "nobody saw it begin"
    assert (second.step, second.batch_size, second.data_s, second.compute_s) == (2, 4, 5.0, 3.0)
    assert second.communication_s == second.wait_s == 0.0


def test_behind_the_first_bucket_replicas_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    clock, model, optimizer, _, told = watched()
    model(torch.ones(4, 3)).mean().backward()
    clock.now += 7.0  # the others
    optimizer.step()
    assert (told[0].compute_s, told[0].communication_s) == (3.0, 7.0)


def test_micro_batches_of_a_step_are_added_up() -> None:
    clock, model, optimizer, _, told = watched()
    for _ in range(3):
        model(torch.ones(4, 3)).mean().backward()
        clock.now += 1.5  # the next batch is loaded
    optimizer.step()
    assert (told[0].batch_size, told[0].micro_batches) == (12, 3)
    assert told[0].data_s == 3.0
    assert told[0].compute_s == pytest.approx(9.0 + 1.5), "what follows the last backward is the script's own"


def test_evaluation_is_nobody_s_step() -> None:
    clock, model, optimizer, _, told = watched()
    for _ in range(2):
        model(torch.ones(4, 3)).mean().backward()
        optimizer.step()
        with torch.no_grad():
            model(torch.ones(100, 3))
        clock.now += 50.0
    assert [one.batch_size for one in told] == [4, 4]
    assert told[1].data_s == 0.0


def test_a_closure_runs_inside_of_the_optimizer() -> None:
    _, model, optimizer, _, told = watched()

    def closure() -> float:
        optimizer.zero_grad()
        loss = model(torch.ones(4, 3)).mean()
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    assert (told[0].batch_size, told[0].compute_s) == (4, 3.0)


def test_hooks_can_be_taken_off() -> None:
    _, model, optimizer, measuring, told = watched()
    measuring.detach()
    model(torch.ones(4, 3)).mean().backward()
    optimizer.step()
    assert not told


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        (torch.ones(5, 2), 5),
        ([torch.ones(5, 2), torch.ones(7)], 5),
        (((), {"labels": None, "input_ids": torch.ones(6, 9)}), 6),
        ({"n": torch.tensor(1.0)}, 0),
        ("text", 0),
    ],
)
def test_samples_are_the_rows_of_the_first_tensor(batch: Any, samples: int) -> None:
    assert samples_of(batch) == samples


def test_what_a_framework_has_wrapped_around_an_optimizer_is_taken_off() -> None:
    inner = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)

    class Wrapped:
        optimizer = inner

    assert optimizers_of(Wrapped()) == [inner]
    assert optimizers_of({"a": Wrapped(), "b": [inner]}) == [inner, inner]


# -- the order of samples


def batches(loader: DataLoader[Any]) -> Iterator[list[int]]:
    for (x,) in loader:
        yield x.tolist()


def loader(seed: int = 3, workers: int = 0) -> DataLoader[Any]:
    data = TensorDataset(torch.arange(20))
    sampler = DistributedSampler(data, num_replicas=2, rank=1, seed=seed)
    return DataLoader(data, batch_size=4, sampler=sampler, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_lineage_is_that_of_the_batches_as_they_were_given(workers: int) -> None:
    plain = [batch for epoch in range(2) for batch in batches(_at(loader(), epoch))]
    mine, seen, expected = loader(workers=workers), list[list[int]](), ROOT
    order = Order(mine)
    for epoch in range(2):
        for batch in batches(_at(mine, epoch)):
            order.took()
            seen.append(batch)
            expected = follow(expected, batch)
            assert order.lineage == expected, "that of what was trained on, not of what was drawn ahead"
    assert seen == plain, "nothing is drawn that would not have been"


def _at(loader: DataLoader[Any], epoch: int) -> DataLoader[Any]:
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return loader


def test_what_draws_is_said_for_each_epoch() -> None:
    said = list[str]()
    mine = loader(seed=7)
    Order(mine, said.append)
    list(batches(_at(mine, 2)))
    assert said[-1] == (
        "DistributedSampler(num_samples=10, seed=7, epoch=2, shuffle=True, num_replicas=2, rank=1, drop_last=False) "
        "of TensorDataset[20] in batches of 4"
    )


def test_an_iterator_that_was_made_before_is_adopted_unless_it_has_drawn_ahead() -> None:
    for workers, known in ((0, True), (1, False)):
        mine = loader(workers=workers)
        running = iter(mine)
        order = Order(mine)
        order.adopt(running)
        expected = ROOT
        for (x,) in running:
            order.took()
            expected = follow(expected, x.tolist())
        assert (order.lineage == expected) is known
        assert bool(order.lineage) is known


def test_a_lineage_that_cannot_be_known_is_none() -> None:
    order = Order(loader())
    order.took()  # a batch that this loader has not drawn
    assert order.lineage == b""
    assert Order([1, 2, 3]).lineage == b""


# -- a line that does nothing


def test_without_a_job_nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "Reporter", None)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert watching.watch(model, optimizer, environ={}) is None
    assert not model._forward_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_an_environment_that_is_wrong_is_said_and_holds_up_nobody(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "has_begun", lambda: False)  # others of this process may have trained
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert watching.watch(model, optimizer, environ={"ANTDT_JOB": "j", "RANK": "first"}) is None
    assert "RANK='first' is not a number" in caplog.text


def test_what_is_computed_is_the_same_to_the_bit() -> None:
    def trained(*, watch: bool) -> list[torch.Tensor]:
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        data = TensorDataset(torch.randn(64, 4), torch.randn(64, 1))
        loader = DataLoader(data, batch_size=8, shuffle=True)
        if watch:
            Measuring(lambda _: None, Order(loader)).attach(model, [optimizer])
        losses = []
        for _ in range(3):
            for x, y in loader:
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model(x), y)
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
        return [*losses, *(p.detach() for p in model.parameters())]

    assert all(torch.equal(a, b) for a, b in zip(trained(watch=False), trained(watch=True), strict=True))
