"""Members of a generation as threads of one process: real groups, real tensors, no sleeping."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from antdt.strategies.allreduce import AllReduce, AllReduceReplica, Generation, GenerationOptions, Rendezvous, store_of
from torch import nn

JOIN_S = 30.0
# A generation that is closed while a message is half read strands it, and until it runs into this time gloo's loop asks
# for the rest without a pause: a whole core, for as long as the tests of this process go on.
STRANDED_SOON = GenerationOptions(op_timeout_s=10.0)
LEASES = count(1)
_numbers = count(1)
_rendezvous: list[Rendezvous] = []

torch.set_num_threads(1)


class Net(nn.Module):  # type: ignore[misc]
    """A branch that only some samples use, one that none uses, one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.body = nn.Linear(6, 8)
        self.side = nn.Linear(6, 3)
        self.never = nn.Linear(5, 5)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.head(torch.tanh(self.body(self.frozen(x))))
        rare = (x[:, 0] > 0.8).nonzero().squeeze(1)
        return out.index_add(0, rare, self.side(x[rare])) if len(rare) else out


def replica(
    dtype: torch.dtype = torch.float64,
    *,
    seed: int = 1,
    build: Callable[[], nn.Module] = Net,
    optimizer: Callable[[Any], Any] = lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    options: AllReduce | None = None,
) -> AllReduceReplica:
    """A model with equal weights for an equal seed; buckets small enough for several."""
    torch.manual_seed(seed)
    model = build().to(dtype)
    small = AllReduce(first_bucket_size_bytes=128, bucket_size_bytes=512)
    return AllReduceReplica(model, optimizer(model.parameters()), options or small)


def each(world: int, act: Callable[[int], Any]) -> list[Any]:
    """act(rank) by one thread per rank; raises what the first one raised."""
    results: list[Any] = [None] * world
    errors: list[BaseException | None] = [None] * world

    def run(rank: int) -> None:
        try:
            results[rank] = act(rank)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            errors[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(JOIN_S)
        assert not thread.is_alive(), "a member hangs"
    for error in errors:
        if error is not None:
            raise error
    return results


@contextmanager
def generation_of(members: Sequence[AllReduceReplica], source: int | None = None) -> Iterator[list[Generation]]:
    """Forms a generation of these members in rank order and attaches them; everybody leaves at the end."""
    number, world = next(_numbers), len(members)
    if not _rendezvous:
        _rendezvous.append(Rendezvous())
    store = store_of(_rendezvous[0].host, _rendezvous[0].port)

    def join(rank: int) -> Generation:
        generation = Generation(number, world, rank, store, lambda: False, STRANDED_SOON)
        members[rank].attach(generation)
        if source is not None:
            members[rank].adopt(source)
        return generation

    generations = each(world, join)
    try:
        yield generations
    finally:
        each(world, lambda rank: generations[rank].leave())


def take(
    member: AllReduceReplica,
    samples: int,
    *,
    reference: int = 8,
    plan_seen: int = 0,
    ended: bool = False,
    start: int = 0,
) -> None:
    """One range of a lease of its own, or none."""
    lease = next(LEASES)
    ranges = [(lease, -lease, 0, start, samples)] if samples else []
    member.take(ranges, samples, plan_seen, ended, reference)


def mean_loss(member: AllReduceReplica, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Squared error, mean over samples."""
    return ((member.model(x) - y) ** 2).sum(1).mean()


def state_of(member: AllReduceReplica) -> dict[str, Any]:
    """All that an abort must bring back, copied."""
    found: dict[str, Any] = {f"model.{name}": t.clone() for name, t in member.model.state_dict().items()}
    for index, values in member.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{index}.{name}": torch.as_tensor(value).clone() for name, value in values.items()}
    found |= {f"grad.{name}": param.grad for name, param in member.model.named_parameters()}
    found["progress"] = (member.step_number, member.lineage, member.plan, tuple(member.pending), member.void)
    return found


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Bit by bit."""
    return left.keys() == right.keys() and all(
        torch.equal(value, right[key]) if isinstance(value, torch.Tensor) else value == right[key]
        for key, value in left.items()
    )


def record_gradients(member: AllReduceReplica) -> list[dict[str, torch.Tensor | None]]:
    """The gradients that each optimizer step finds."""
    seen: list[dict[str, torch.Tensor | None]] = []

    def keep(*_: Any) -> None:
        named = member.model.named_parameters()
        seen.append({name: None if p.grad is None else p.grad.clone() for name, p in named})

    member.optimizer.register_step_pre_hook(keep)
    return seen
