"""What enters a loss without a gradient: refused where all samples of a part are in it, and nothing else is."""

from __future__ import annotations

import threading
from typing import Any

import antdt.strategies.habits.denominators as denominators
import pytest
import torch
from antdt.strategies.habits.denominators import Denominators
from antdt.strategies.habits.provenance.watcher import FIRST, GAP_MIN, Watcher
from antdt_schemas.errors import UsageError
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from tests.helpers.unseen_losses import CLASSES, RIGHT, WRONG, Loss, Net, each, whole

SPLITS = {
    "two, equal": [[10, 10]] * 6,
    "two, uneven": [[8, 12], [11, 9], [10, 10], [7, 13], [12, 8], [9, 11]],
    "three": [[6, 7, 8], [8, 6, 7], [7, 7, 7], [9, 5, 6], [6, 6, 6], [8, 7, 6]],
}
torch.set_num_threads(1)


def batch(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.arange(samples) % CLASSES
    return torch.randn(samples, 6), y[torch.randperm(samples)]


def step(net: Net, seen: Denominators, loss_of: Loss, samples: int, given: Any = None, whole_batch: int = 100) -> None:
    x, y = batch(samples) if given is None else given
    seen.watcher.begin((x, y), samples)
    try:
        loss = loss_of(net, x, y)
        seen.watcher.leave()
        seen.of(loss, samples, alone=False, whole=whole_batch)
    finally:
        seen.watcher.end()


def train(seen: Denominators, loss_of: Loss, times: int, net: Net | None = None, samples: int = 8) -> None:
    net = net or Net()
    for _ in range(times):
        step(net, seen, loss_of, samples)


def train_all(loss_of: Loss, splits: list[list[int]]) -> None:
    """Each member has a model of its own."""
    nets = [Net() for _ in splits[0]]
    seen = [Denominators(Watcher(net.buffers)) for net in nets]
    for split in splits:
        for net, one, samples in zip(nets, seen, split, strict=True):
            step(net, one, loss_of, samples)


class Own(TorchDispatchMode):  # type: ignore[misc]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("name", WRONG)
def test_what_depends_on_all_samples_of_a_part_is_refused_within_four_steps(name: str, splits: str) -> None:
    torch.manual_seed(1)
    with pytest.raises(UsageError) as caught:
        train_all(WRONG[name], SPLITS[splits][:4])
    ours = [getattr(denominators, why)[:40] for why in ("UNSEEN", "MIXES")]
    assert str(caught.value)[:40] in ours, caught.value


@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_in_parts_is_not_refused(name: str, splits: str) -> None:
    torch.manual_seed(1)
    train_all(RIGHT[name], SPLITS[splits])


def test_the_sentence_names_the_operations_and_their_lines() -> None:
    with pytest.raises(UsageError, match=r"\(mean \(unseen_losses\.py:\d+\), in mul \(unseen_losses\.py:\d+\)\)"):
        train(Denominators(), WRONG["advantages"], 4)


def test_in_one_piece_it_is_the_whole() -> None:
    net, seen = Net(), Denominators()
    for _ in range(5):
        x, y = batch(8)
        seen.watcher.begin((x, y), 8)
        loss = WRONG["advantages"](net, x, y)
        seen.watcher.end()
        seen.of(loss, 8, alone=True, whole=8)


def test_what_all_workers_have_given_is_of_no_one_part() -> None:
    seen = Denominators()

    def loss_of(m: Net, x: torch.Tensor, y: torch.Tensor) -> Any:
        with seen.watcher.away():
            common = x.mean(0)
        mine = x.mean(0)
        seen.watcher.forget([mine])
        return whole(m, x - common - mine, y)

    train(seen, loss_of, 6)


def test_a_loss_with_other_terms_is_looked_at_again() -> None:
    seen = Denominators()
    train(seen, whole, FIRST + 4)
    with pytest.raises(UsageError, match="without a gradient"):
        train(seen, lambda m, x, y: whole(m, x, y) + m(x).square().mean() / x.var(), 5)


def test_one_of_many_batches_is_looked_at_later_on() -> None:
    seen = Denominators()
    train(seen, lambda m, x, y: each(m, x, y).mean(), FIRST + 2)
    with pytest.raises(UsageError, match="without a gradient"):
        train(seen, lambda m, x, y: (each(m, x, y) * (x[:, 0] > x[:, 0].median())).mean(), GAP_MIN)


def test_a_running_value_that_is_looked_at_seldom_is_none_of_this_batch() -> None:
    """Where the step before was not looked at, nothing says that it is one: it is, a step later."""
    train(Denominators(), RIGHT["running mean, made anew"], 5 * GAP_MIN, samples=4)


def test_samples_lie_along_the_dimension_that_is_as_long_in_every_batch() -> None:
    """Time first, and as many times as samples in a batch: nobody knows, and nothing is refused."""
    net, seen = Net(), Denominators()

    def loss_of(m: Net, x: torch.Tensor, y: torch.Tensor) -> Any:
        return functional.cross_entropy(m((x - x.mean(0)) / x.std(0))[-1], y)

    def wrong(m: Net, x: torch.Tensor, y: torch.Tensor) -> Any:
        return whole(m, (x - x.mean(1, keepdim=True))[-1], y)

    def trained(loss_of: Loss, sizes: tuple[int, ...]) -> None:
        for samples in sizes:
            step(net, seen, loss_of, samples, (torch.randn(8, samples, 6), batch(samples)[1]))

    trained(loss_of, (8, 8, 8, 7, 9, 8))
    seen.watcher.look_again()
    with pytest.raises(UsageError, match="without a gradient"):
        trained(wrong, (8, 9, 7, 8))


def test_the_usual_step_is_not_looked_at() -> None:
    net, seen = Net(), Denominators()
    looked = []
    for _ in range(GAP_MIN - 1):
        x, y = batch(4)
        seen.watcher.begin((x, y), 4)
        looked.append(seen.watcher.is_on)
        loss = whole(net, x, y)
        seen.watcher.leave()
        seen.of(loss, 4, alone=False, whole=8)
        seen.watcher.end()
    assert sum(looked) == FIRST + 1 and not any(looked[FIRST + 1 :])


def test_modes_of_the_script_stay_and_ours_goes() -> None:
    watcher = Watcher()
    watcher.begin(batch(4), 4)
    with Own():
        before = _get_current_dispatch_mode_stack()[1:]
        watcher.leave()
        assert _get_current_dispatch_mode_stack() == before
        watcher.enter()
        watcher.end()
        assert _get_current_dispatch_mode_stack() == before
    assert not _get_current_dispatch_mode_stack()


def test_a_batch_that_another_thread_computes_is_not_looked_at() -> None:
    watcher, left = Watcher(), list[list[TorchDispatchMode]]()

    def hands_over() -> None:
        for _ in range(3):
            watcher.begin(batch(4), 4)
            thread = threading.Thread(target=watcher.end)
            thread.start()
            thread.join()
        left.append(_get_current_dispatch_mode_stack())

    thread = threading.Thread(target=hands_over)
    thread.start()
    thread.join()
    assert len(left[0]) == 1 and not _get_current_dispatch_mode_stack()


def test_no_tensor_is_kept_alive() -> None:
    net, watcher = Net(), Watcher()
    x, y = batch(4)
    watcher.begin((x, y), 4)
    made = net(x).detach().clone()
    storage = torch.multiprocessing.reductions.StorageWeakRef(made.untyped_storage())
    assert not storage.expired()
    del made
    assert storage.expired()
    watcher.end()


def test_what_torch_cannot_say_is_computed_all_the_same() -> None:
    watcher = Watcher()
    watcher.begin(batch(4), 4)
    sparse = torch.eye(4).to_sparse()
    found = torch.sparse.mm(sparse, torch.ones(4, 2)).sum()
    watcher.end()
    assert float(found) == 8.0
