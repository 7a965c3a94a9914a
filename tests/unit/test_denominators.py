"""What a loss was divided by: read off its graph, or refused where parts of a batch do not add up to the whole.

Each loss is held against the gradient of one process: either the weights make it that of the whole batch, or it is
refused within a few steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import antdt.strategies.habits.denominators as denominators
import pytest
import torch
from antdt.strategies.habits.denominators import Denominators
from antdt_schemas.errors import UsageError
from torch import nn
from torch.nn import functional

CLASSES = torch.tensor([1.0, 5.0, 0.5], dtype=torch.float64)
SPLITS = ([14, 16], [12, 18], [10, 20], [16, 14], [15, 15], [13, 17])
EQUAL = ([15, 15],) * 10
torch.set_num_threads(1)
Loss = Callable[["Net", torch.Tensor, torch.Tensor], torch.Tensor]


class Net(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.full((), 0.3))
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(x)))


def targets(y: torch.Tensor) -> torch.Tensor:
    return torch.where(y > 0, y, -100)


def one_hot(y: torch.Tensor) -> torch.Tensor:
    return 0.9 * functional.one_hot(y, 3).double() + 0.1 / 3


def each(m: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(m(x), y, reduction="none")


def one_by_one(m: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    total: Any = 0.0
    for at in range(len(x)):
        total = total + functional.cross_entropy(m(x[at : at + 1]), y[at : at + 1])
    return total  # type: ignore[no-any-return]


def directions(m: Net, x: torch.Tensor) -> torch.Tensor:
    return functional.normalize(m(x), dim=1)


def mined(m: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    f, same = directions(m, x), (y[:, None] == y[None, :]).double()
    apart = torch.cdist(f, f)
    return functional.relu((apart * same).max(1).values - (apart + 9 * same).min(1).values + 0.3).mean()


def similar(m: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    near = directions(m, x) @ directions(m, x + 0.1).T / 0.1
    return -(near.diag() - near.logsumexp(1)).mean()


def of_one_class(m: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    f, one = directions(m, x), torch.eye(len(x), dtype=torch.float64)
    near, same = f @ f.T / 0.1 - 99 * one, (y[:, None] == y[None, :]).double() - one
    chance = near - near.logsumexp(1, keepdim=True)
    return -((chance * same).sum(1) / same.sum(1).clamp(min=1)).mean()


def uncorrelated(m: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    a, b = ((f - f.mean(0)) / f.std(0) for f in (m(x), m(x + 0.1)))
    return (a.T @ b / len(x) - torch.eye(3, dtype=torch.float64)).square().sum()


def advantage(m: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    reward = x.sum(1)
    wanted = (reward - reward.mean()) / (reward.std() + 1e-8)
    return -(m(x).log_softmax(1)[torch.arange(len(y)), y] * wanted).mean()


def ranked(m: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    score = m(x)[:, 0]
    return functional.softplus(-(score[:, None] - score[None, :]) * (y[:, None] > y[None, :]).double()).mean()


def spread_out(m: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    chance = m(x).softmax(1).mean(0)
    return functional.cross_entropy(m(x), y) + (chance * chance.log()).sum()


RIGHT: dict[str, Loss] = {
    "mean": lambda m, x, y: functional.cross_entropy(m(x), y),
    "sum over samples": lambda m, x, y: functional.cross_entropy(m(x), y, reduction="sum") / len(x),
    "sum times one over samples": lambda m, x, y: each(m, x, y).sum() * (1 / len(x)),
    "mean of all dimensions": lambda m, x, y: m(x).square().mean((0, 1)),
    "batchmean": lambda m, x, y: functional.kl_div(m(x).log_softmax(1), one_hot(y), reduction="batchmean"),
    "probabilities": lambda m, x, y: functional.cross_entropy(m(x), one_hot(y)),
    "smoothed": lambda m, x, y: functional.cross_entropy(m(x), y, label_smoothing=0.1),
    "smoothed, ignored": lambda m, x, y: functional.cross_entropy(m(x), targets(y), label_smoothing=0.1),
    "smoothed, class weights": lambda m, x, y: functional.cross_entropy(m(x), y, CLASSES, label_smoothing=0.1),
    "ignored, over micro-batches": lambda m, x, y: functional.cross_entropy(m(x), targets(y)) / 4,
    "masked, halved": lambda m, x, y: (each(m, x, y) * (y > 0)).sum() / (y > 0).sum() / 2,
    "masked, by a plain number": lambda m, x, y: (each(m, x, y) * (y > 0)).sum() / int((y > 0).sum()),
    "penalties": lambda m, x, y: (
        functional.cross_entropy(m(x), y)
        + 0.01 * m.body.weight.norm()
        + 0.01 * m.head.weight.square().sum()
        + 0.01 * sum(param.abs().sum() for param in m.parameters())
    ),
    "orthogonal": lambda m, x, y: (
        functional.cross_entropy(m(x), y)
        + (m.body.weight @ m.body.weight.T - torch.eye(8, dtype=torch.float64)).square().sum()
    ),
    "elastic": lambda m, x, y: (
        functional.cross_entropy(m(x), y) + (torch.full((3, 8), 0.5) * (m.head.weight - 1) ** 2).sum()
    ),
    "a learned weight": lambda m, x, y: torch.exp(-m.scale) * functional.cross_entropy(m(x), y) + m.scale,
    "heads": lambda m, x, y: torch.stack([functional.cross_entropy(m(x), y), m(x).square().mean()]).sum(),
    "roots of samples": lambda m, x, y: (m(x) - 1).norm(dim=1).mean(),
    "added up one by one": lambda m, x, y: one_by_one(m, x, y) / len(x),
    "without what is nothing": lambda m, x, y: torch.where(y > 0, each(m, x, y), torch.nan).nanmean(),
    "of each feature": lambda m, x, y: functional.mse_loss(m(x), one_hot(y), reduction="none").mean(0).sum(),
    "one of several": lambda m, x, y: torch.stack([each(m, x, y).mean(), m(x).square().mean()])[0],
    "a number that is not nothing": lambda m, x, y: torch.nan_to_num(each(m, x, y).mean()),
    "einsum": lambda m, x, y: torch.einsum("ij,ij->", m(x), one_hot(y)) / len(x),
    "directions": lambda m, x, y: (2 - 2 * functional.cosine_similarity(m(x), one_hot(y))).mean(),
    "roots, one by one": lambda m, x, y: sum(m(x)[at].square().mean().sqrt() for at in range(len(x))) / len(x),
}

WRONG: dict[str, tuple[Loss, str]] = {
    "sum": (lambda m, x, y: m(x).square().sum(), "SUMMED"),
    "scaled sum": (lambda m, x, y: 0.02 * each(m, x, y).sum(), "SUMMED"),
    "dot": (lambda m, x, y: each(m, x, y) @ torch.ones(len(x), dtype=torch.float64), "SUMMED"),
    "variational": (
        lambda m, x, y: functional.mse_loss(m(x), one_hot(y), reduction="sum") - 0.5 * torch.sum(1 + m(x) - m(x).exp()),
        "SUMMED",
    ),
    "over the batch of all": (lambda m, x, y: each(m, x, y).sum() / 30, "CONSTANT"),
    "over a constant": (lambda m, x, y: functional.cross_entropy(m(x), y, reduction="sum") / 100, "CONSTANT"),
    "added up one by one": (one_by_one, "SUMMED"),
    "one by one, over the batch of all": (lambda m, x, y: one_by_one(m, x, y) / 30, "CONSTANT"),
    "einsum": (lambda m, x, y: torch.einsum("ij,ij->", m(x), one_hot(y)), "SUMMED"),
    "dot of vectors": (lambda m, x, y: torch.vdot(each(m, x, y), torch.ones(len(x), dtype=torch.float64)), "SUMMED"),
    "median": (lambda m, x, y: each(m, x, y).median(), "BENT"),
    "quantile": (lambda m, x, y: each(m, x, y).quantile(0.7), "BENT"),
    "product": (lambda m, x, y: each(m, x, y).prod(), "BENT"),
    "running total": (lambda m, x, y: each(m, x, y).cumsum(0)[-1], "BENT"),
    "mined triplets": (mined, "MIXES"),
    "similarities": (similar, "MIXES"),
    "of one class": (of_one_class, "MIXES"),
    "uncorrelated features": (uncorrelated, "MIXES"),
    "deviation of features": (
        lambda m, x, y: functional.relu(1 - m(x).std(0)).mean() + functional.cross_entropy(m(x), y),
        "MIXES",
    ),
    "means of two batches": (lambda m, x, y: (m(x).mean(0) - m(x + 1).mean(0)).square().sum(), "MIXES"),
    "entropy of the mean": (spread_out, "MIXES"),
    "the hardest": (lambda m, x, y: each(m, x, y).topk(3).values.mean(), "MIXES"),
    "over samples": (lambda m, x, y: (m(x).softmax(0) * one_hot(y)).mean(), "MIXES"),
    "centered": (lambda m, x, y: functional.mse_loss(m(x) - m(x).mean(0, keepdim=True), one_hot(y)), "MIXES"),
    "standardised advantages": (advantage, "MIXES"),
    "each with each": (ranked, "MIXES"),
    "root of a mean": (lambda m, x, y: functional.mse_loss(m(x), one_hot(y)).sqrt(), "BENT"),
    "norm": (lambda m, x, y: (m(x) - one_hot(y)).norm(), "BENT"),
    "overlap": (
        lambda m, x, y: 1 - (2 * (m(x).softmax(1)[:, 0] * (y == 0)).sum() + 1) / (m(x).softmax(1).sum() + 1),
        "BENT",
    ),
    "power of a mean": (lambda m, x, y: (1 - torch.exp(-each(m, x, y).mean())) ** 2 * each(m, x, y).mean(), "BENT"),
    "flooded": (lambda m, x, y: (functional.cross_entropy(m(x), y) - 0.1).abs() + 0.1, "BENT"),
    "other samples": (lambda m, x, y: functional.cross_entropy(m(x) @ m(x + 1).T, torch.arange(len(x))), "COMPARES"),
    "pairs": (
        lambda m, x, y: functional.cross_entropy(
            (both := torch.cat([m(x), m(x + 0.1)])) @ both.T - 99 * torch.eye(2 * len(x)).double(),
            torch.cat([torch.arange(len(x)) + len(x), torch.arange(len(x))]),
        ),
        "COMPARES",
    ),
    "the positive first": (
        lambda m, x, y: functional.cross_entropy(
            torch.cat([m(x)[:, :1], (m(x) @ m(x + 1).T)[:, 2:]], 1), torch.zeros(len(x), dtype=torch.int64)
        ),
        "COMPARES",
    ),
}


def batch(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(samples, 6, dtype=torch.float64), torch.randint(0, 3, (samples,))


@pytest.mark.parametrize("name", RIGHT)
def test_weighed_by_what_is_read_off_parts_are_the_whole(name: str) -> None:
    torch.manual_seed(1)
    net, seen = Net(), [Denominators() for _ in range(2)]
    for split in (*EQUAL, *SPLITS):
        x, y = batch(sum(split))
        parts, weights = [], []
        for one, own_x, own_y in zip(seen, x.split(split), y.split(split), strict=True):
            loss = RIGHT[name](net, own_x, own_y)
            weight = one.of(loss, len(own_x), alone=False, whole=len(x))
            weights.append(float(len(own_x)) if weight is None else weight)
            parts.append(loss * weights[-1])
        found = torch.autograd.grad(sum(parts) / sum(weights), list(net.parameters()), allow_unused=True)
        wanted = torch.autograd.grad(RIGHT[name](net, x, y), list(net.parameters()), allow_unused=True)
        for one, other in zip(found, wanted, strict=True):
            assert (one is None) == (other is None)
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("splits", [SPLITS, EQUAL], ids=["uneven", "equal"])
@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_add_up_is_refused(name: str, splits: Any) -> None:
    loss_of, why = WRONG[name]
    with refused(why):
        train(loss_of, splits)


@contextmanager
def refused(why: str) -> Iterator[None]:
    with pytest.raises(UsageError) as caught:
        yield
    assert str(caught.value)[:24] == getattr(denominators, why)[:24], caught.value


def train(loss_of: Loss, splits: Any, whole: int | None = None) -> None:
    torch.manual_seed(1)
    net, seen = Net(), Denominators()
    for split in splits:
        all_of_them = sum(split) if whole is None else whole
        seen.of(loss_of(net, *batch(split[0])), split[0], alone=split[0] >= all_of_them, whole=all_of_them)


@pytest.mark.parametrize("name", [name for name, (_, why) in WRONG.items() if why in ("BENT", "COMPARES", "MIXES")])
def test_in_one_piece_it_is_the_whole(name: str) -> None:
    """One worker alone; in micro-batches it is not, nor in units of a few samples."""
    loss_of, why = WRONG[name]
    train(loss_of, [[12]] * 4, whole=12)
    with refused(why):
        train(loss_of, [[12]] * 4, whole=24)
    with refused(why):
        train(loss_of, [[4]] * 12, whole=12)


@pytest.mark.parametrize("name", [*RIGHT, *WRONG])
def test_a_plain_mean_is_seen_as_among_other_terms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shorter way, at the root of most losses, comes to what the way through all terms comes to."""

    def heard() -> list[Any]:
        torch.manual_seed(1)
        net, seen, out = Net(), Denominators(), list[Any]()
        for split in (*SPLITS, *EQUAL):
            loss = loss_of(net, *batch(split[0]))
            try:
                out.append(seen.of(loss, split[0], alone=False, whole=sum(split)))
            except UsageError as error:
                out.append(str(error))
        return out

    loss_of = RIGHT[name] if name in RIGHT else WRONG[name][0]
    short = heard()
    monkeypatch.setattr(denominators, "mean_of", lambda node: None)
    assert short == heard()


def test_classes_that_are_numbers_of_samples_by_chance_are_not_refused() -> None:
    net, seen = Net(), Denominators()
    for y in ([0, 1, 2], [0, 1, 2], [2, 1, 1], [0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2]):
        x, _ = batch(3)
        assert seen.of(functional.cross_entropy(net(x), torch.tensor(y)), 3, alone=False, whole=6) == 3


def test_what_others_functions_have_put_together_is_refused() -> None:
    class Fused(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, out: torch.Tensor) -> torch.Tensor:
            return out.square().mean()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> Any:
            return grad

    with pytest.raises(UsageError, match=r"by Fused, .*weight=len\(x\)"):
        train(lambda m, x, y: functional.cross_entropy(m(x), y) + 0.1 * Fused.apply(m(x)), [[8]], whole=8)


@pytest.mark.dear
def test_a_loss_inside_of_torch_compile_is_refused_and_a_model_is_not() -> None:
    def loss_of(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(out, y, reduction="none")[:7].mean()

    with pytest.raises(UsageError, match=r"by torch\.compile, .*weight=n"):
        train(lambda m, x, y: torch.compile(loss_of, backend="aot_eager")(m(x), y), [[8]], whole=8)
    train(lambda m, x, y: functional.cross_entropy(torch.compile(m, backend="aot_eager")(x), y), [[8]], whole=8)


class Deep(Net):
    """As many operations as a long recurrent net has, below which lies what a test is about."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[part for _ in range(150) for part in (nn.Linear(6, 6), nn.Tanh())]).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(self.layers(x))))


@pytest.mark.parametrize(
    ("loss_of", "why"),
    [
        (lambda m, x, y: m(x).square().sum(), "SUMMED"),
        (lambda m, x, y: functional.cross_entropy(m((f := m.body(x)[:, :6]) - f.mean(0)), y), "MIXES"),
        (lambda m, x, y: functional.cross_entropy(m(m.body(x).softmax(0)[:, :6]), y), "MIXES"),
    ],
    ids=["sum", "centered", "softmax"],
)
def test_what_lies_below_a_deep_net_is_found(loss_of: Loss, why: str) -> None:
    net, seen = Deep(), Denominators()
    with refused(why):
        for split in SPLITS:
            seen.of(loss_of(net, *batch(split[0])), split[0], alone=False, whole=30)


def test_a_deep_net_and_a_broad_penalty_are_not_refused() -> None:
    net, seen = Deep(), Denominators()
    for split in SPLITS:
        x, y = batch(split[0])
        penalty = torch.stack([param.norm() for param in net.parameters()]).norm()
        assert seen.of(functional.cross_entropy(net(x), y) + penalty, split[0], alone=False, whole=30) == split[0]


def some(weight: float) -> Loss:
    """A term over all samples, and one that weighs so much over those of the later classes."""

    def loss_of(m: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        later = y > 0
        first = functional.cross_entropy(m(x), y, reduction="sum") / len(x)
        return first + weight * m(x).square().sum(1)[later].sum() / later.sum().clamp(min=1)

    return loss_of


@pytest.mark.parametrize("samples", [2, 3, 4, 5, 8, 10])
@pytest.mark.parametrize("weight", [0.1, 0.125, 0.2, 0.25, 0.5, 1.0])
def test_the_weight_of_a_term_is_not_taken_for_a_number_of_samples(samples: int, weight: float) -> None:
    """0.1 of ten samples, 0.25 of four: as if it were divided by how many there are. And of two samples a term is over
    both, over one, or over none.
    """
    with pytest.raises(UsageError, match=r"A mean in this loss is over .* divided by something else than samples"):
        train(some(weight), ([samples] * (30 // samples),) * 10)


@pytest.mark.parametrize("samples", [2, 10])
def test_the_same_term_over_as_many_of_each_part_is_right(samples: int) -> None:
    """And both of its denominators may be the same number of tokens, however many these are."""

    def of_tokens(m: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        count = 2 + (y > 0).sum()
        return (functional.cross_entropy(m(x), y, reduction="sum") + 0.1 * m(x).square().sum()) / count

    def of_both(m: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        count = 2 + (y > 0).sum()
        return functional.cross_entropy(m(x), y, reduction="sum") / count + 0.5 * m(x).square().sum() / count

    for loss_of in (of_tokens, of_both):
        train(loss_of, ([samples] * (30 // samples),) * 10)
