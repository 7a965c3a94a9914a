"""What is no mixing of samples: models that do something along a dimension which is as long as there are samples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from antdt.strategies.habits.denominators import Denominators
from torch import nn
from torch.nn import functional

TIMES = 8
Loss = Callable[[int], torch.Tensor]


def labels(samples: int, classes: int = 5) -> torch.Tensor:
    return torch.randint(0, classes, (samples,))


def time_first(pooled: Callable[[torch.Tensor], torch.Tensor]) -> Loss:
    encoder, head = nn.TransformerEncoderLayer(16, 2, 32, 0.0), nn.Linear(16, 5)
    places = nn.Parameter(torch.randn(TIMES, 1, 16))

    def loss(samples: int) -> torch.Tensor:
        out = pooled(encoder(torch.randn(TIMES, samples, 16) + places))
        return functional.cross_entropy(head(out), labels(len(out)))

    return loss


def recurrent() -> Loss:
    model, head = nn.LSTM(8, 16), nn.Linear(16, 5)
    return lambda n: functional.cross_entropy(head(model(torch.randn(TIMES, n, 8))[0].mean(0)), labels(n))


def normalised_weights() -> Loss:
    of = nn.utils.parametrizations
    first, second = of.weight_norm(nn.Linear(8, 8)), of.spectral_norm(nn.Linear(8, 8))
    return lambda n: functional.mse_loss(second(first(torch.randn(n, 8)).relu()), torch.randn(n, 8))


def prototypes() -> Loss:
    model, learned = nn.Linear(8, 8), nn.Parameter(torch.randn(8, 8))
    return lambda n: functional.cross_entropy(-torch.cdist(model(torch.randn(n, 8)), learned), labels(n))


def fixed_prototypes() -> Loss:
    model, kept = nn.Linear(8, 8), torch.randn(8, 8)
    return lambda n: functional.cross_entropy(model(torch.randn(n, 8)) @ kept.T, labels(n))


def crosses() -> Loss:
    rows, top = nn.Embedding(50, 8), nn.Linear(64, 1)

    def loss(samples: int) -> torch.Tensor:
        found = rows(torch.randint(0, 50, (samples, 8)))
        pairs = found @ found.transpose(1, 2)
        return functional.binary_cross_entropy_with_logits(top(pairs.flatten(1))[:, 0], torch.rand(samples))

    return loss


def chain() -> Loss:
    model, moves = nn.Linear(8, 5), nn.Parameter(torch.randn(5, 5))

    def loss(samples: int) -> torch.Tensor:
        emitted = model(torch.randn(TIMES, samples, 8))
        at = emitted[0]
        for time in range(1, TIMES):
            at = torch.logsumexp(at[:, :, None] + moves[None] + emitted[time][:, None, :], 1)
        return (torch.logsumexp(at, 1) - emitted.sum((0, 2))).mean()

    return loss


def variational() -> Loss:
    encoder, decoder = nn.Linear(8, 8), nn.Linear(4, 8)

    def loss(samples: int) -> torch.Tensor:
        x = torch.randn(samples, 8)
        mean, spread = encoder(x).chunk(2, 1)
        made = decoder(mean + torch.randn_like(mean) * (spread / 2).exp())
        apart = (1 + spread - mean.square() - spread.exp()).sum(1)
        return functional.mse_loss(made, x, reduction="none").sum(1).mean() - 0.5 * apart.mean(0)

    return loss


def hinge() -> Loss:
    model = nn.Linear(8, 1)
    signs = torch.tensor([1.0, -1.0])
    return lambda n: functional.relu(1 - model(torch.randn(n, 8))[:, 0] * signs.repeat(n)[:n]).mean()


def weighed_tasks() -> Loss:
    model, spread = nn.Linear(8, 4), nn.Parameter(torch.zeros(4))

    def loss(samples: int) -> torch.Tensor:
        each = functional.mse_loss(model(torch.randn(samples, 8)), torch.randn(samples, 4), reduction="none").mean(0)
        return (each * (-spread).exp() + spread).sum()

    return loss


INNOCENT = {
    "mean over time": lambda: time_first(lambda out: out.mean(0)),
    "attention over time": lambda: time_first(lambda out: (out * out[..., :1].softmax(0)).sum(0)),
    "the largest in time": lambda: time_first(lambda out: out.max(0).values),
    "every time": lambda: time_first(lambda out: out.reshape(-1, 16)),
    "recurrent": recurrent,
    "normalised weights": normalised_weights,
    "prototypes": prototypes,
    "fixed prototypes": fixed_prototypes,
    "crosses": crosses,
    "chain": chain,
    "variational": variational,
    "hinge": hinge,
    "weighed tasks": weighed_tasks,
}


@pytest.mark.parametrize("sizes", [[TIMES] * 8, [TIMES // 2] * 8, [8, 7, 8, 9, 8, 7]], ids=["equal", "half", "uneven"])
@pytest.mark.parametrize("name", INNOCENT)
def test_what_only_looks_like_it_is_not_refused(name: str, sizes: list[int]) -> None:
    torch.manual_seed(0)
    loss, seen = INNOCENT[name](), Denominators()
    for samples in sizes:
        seen.of(loss(samples), samples, alone=False, whole=2 * samples)
