"""Losses whose graph does not say what decides them: what was computed of a batch without a gradient.

`WRONG` depend on all samples of a part of the batch; `RIGHT` are what one process would make of the whole, or differ by
what a script draws. Each is given its module, samples and their classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 3
Loss = Callable[["Net", Tensor, Tensor], Any]


class Net(nn.Module):  # type: ignore[misc]
    """A model, another one that teaches it, running values, and what a script has kept of the step before."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))
        self.teacher = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES)).requires_grad_(False)
        self.norm, self.recurrent = nn.BatchNorm1d(6), nn.GRU(6, CLASSES, batch_first=True)
        self.register_buffer("running", torch.zeros(6))
        self.register_buffer("size", torch.ones(()))
        self.kept: Tensor | None = None
        self.metrics: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def each(m: Net, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(m(x), y, reduction="none")


def whole(m: Net, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(m(x), y)


def one_hot(y: Tensor) -> Tensor:
    return functional.one_hot(y, CLASSES).float()


def chance(m: Net, x: Tensor, y: Tensor) -> Tensor:
    return m(x).log_softmax(1).gather(1, y[:, None])[:, 0]


def masked(y: Tensor) -> Tensor:
    return torch.where(y > 0, y, -100)


# -- wrong


def balanced_experts(m: Net, x: Tensor, y: Tensor) -> Any:
    p = m(x).softmax(1)
    taken = functional.one_hot(p.argmax(1), CLASSES).float().mean(0)
    return whole(m, x, y) + 0.01 * (taken * p).sum(1).mean()


def capacity(m: Net, x: Tensor, y: Tensor) -> Any:
    taken = functional.one_hot(m(x).argmax(1), CLASSES)
    return (each(m, x, y) * ((taken.cumsum(0) * taken).sum(1) <= 4)).mean()


def above_quantile(m: Net, x: Tensor, y: Tensor) -> Any:
    losses = each(m, x, y)
    return (losses * (losses > losses.detach().quantile(0.7))).mean()


def above_median(m: Net, x: Tensor, y: Tensor) -> Any:
    losses = each(m, x, y)
    with torch.no_grad():
        hard = losses >= losses.median()
    return (losses * hard).sum() / len(x)


def hardest(m: Net, x: Tensor, y: Tensor) -> Any:
    losses = each(m, x, y)
    return losses[losses.detach().topk(4).indices].mean()


def last_in_order(m: Net, x: Tensor, y: Tensor) -> Any:
    losses = each(m, x, y)
    return losses[losses.detach().argsort()[-4:]].mean()


def by_rank(m: Net, x: Tensor, y: Tensor) -> Any:
    losses = each(m, x, y)
    return (losses * losses.detach().argsort().argsort().float() / len(x)).mean()


def advantage(m: Net, x: Tensor, y: Tensor) -> Any:
    reward = x.sum(1)
    return -(chance(m, x, y) * (reward - reward.mean())).mean()


def class_weights(m: Net, x: Tensor, y: Tensor) -> Any:
    weights = len(x) / torch.bincount(y, minlength=CLASSES).clamp(min=1)
    return (each(m, x, y) * weights[y]).mean()


def loss_weights(m: Net, x: Tensor, y: Tensor) -> Any:
    weights = 1 / (1 + torch.bincount(y, minlength=CLASSES).float())
    return functional.cross_entropy(m(x), y, weight=weights)


def of_positives(m: Net, x: Tensor, y: Tensor) -> Any:
    true = (y > 0).float()
    share = (len(x) - true.sum()) / true.sum().clamp(min=1)
    return functional.binary_cross_entropy_with_logits(m(x)[:, 0], true, pos_weight=share)


def explained(m: Net, x: Tensor, y: Tensor) -> Any:
    true = one_hot(y)
    return 1 - (m(x) - true).square().sum() / (true - true.mean(0)).square().sum()


def centroid(m: Net, x: Tensor, y: Tensor) -> Any:
    with torch.no_grad():
        middle = m(x).mean(0)
    return (m(x) - middle).square().mean()


def assigned(m: Net, x: Tensor, y: Tensor) -> Any:
    with torch.no_grad():
        q = m(x).exp()
        q = q / q.sum(0, keepdim=True)
        q = q / q.sum(1, keepdim=True)
    return -(q * m(x + 0.1).log_softmax(1)).sum(1).mean()


def each_feature(m: Net, x: Tensor, y: Tensor) -> Any:
    known = (x[:, :CLASSES] > 0).float()
    return ((m(x) - 1).square() * known).sum(0).div(known.sum(0).clamp(min=1)).mean()


def balanced_terms(m: Net, x: Tensor, y: Tensor) -> Any:
    first, second = whole(m, x, y), m(x).square().mean()
    return first + second * (first.detach() / second.detach())


WRONG: dict[str, Loss] = {
    "balanced experts": balanced_experts,
    "capacity of experts": capacity,
    "above a quantile": above_quantile,
    "above the median": above_median,
    "the hardest": hardest,
    "the last in order": last_in_order,
    "by rank": by_rank,
    "advantages": advantage,
    "class weights of the batch": class_weights,
    "weights of the loss": loss_weights,
    "share of positives": of_positives,
    "clipped at a quantile": lambda m, x, y: torch.minimum(each(m, x, y), each(m, x, y).detach().quantile(0.9)).mean(),
    "clamped at twice the mean": lambda m, x, y: each(m, x, y).clamp(max=2 * each(m, x, y).detach().mean()).mean(),
    "focal by the mean": lambda m, x, y: (each(m, x, y) * (1 - (-each(m, x, y).detach().mean()).exp())).mean(),
    "explained variance": explained,
    "over a variance": lambda m, x, y: functional.mse_loss(m(x)[:, 0], x[:, 0]) / x[:, 0].var(),
    "over itself": lambda m, x, y: whole(m, x, y) / whole(m, x, y).detach() + m(x).square().mean(),
    "over the largest target": lambda m, x, y: (m(x)[:, 0] - x[:, 0]).abs().mean() / x[:, 0].max(),
    "priorities over the largest": lambda m, x, y: (x[:, 0].abs() / x[:, 0].abs().max() * each(m, x, y)).mean(),
    "balanced terms": balanced_terms,
    "inputs by the batch": lambda m, x, y: whole(m, (x - x.mean(0)) / x.std(0), y),
    "inputs by the batch, normalised": lambda m, x, y: whole(m, functional.layer_norm(x - x.mean(0), (6,)), y),
    "distance to the centroid": centroid,
    "assigned evenly": assigned,
    "softmax over samples": lambda m, x, y: (each(m, x, y) * each(m, x, y).detach().softmax(0)).sum() / len(x),
    "each feature by its own": each_feature,
    "share of what counts": lambda m, x, y: functional.cross_entropy(m(x), masked(y)) * (y > 0).float().mean(),
    "lengths by their mean": lambda m, x, y: (each(m, x, y) * (y + 1) / (y + 1).float().mean()).mean(),
}

# -- right


def padded(m: Net, x: Tensor, y: Tensor) -> Any:
    lengths = y + 3
    known = torch.arange(int(lengths.max())) < lengths[:, None]
    cut = functional.pad(x[:, : known.shape[1]] * known, (0, 6 - known.shape[1]))
    return whole(m, cut, y)


def sorted_by_length(m: Net, x: Tensor, y: Tensor) -> Any:
    lengths, order = (y + 1).sort(descending=True)
    known = torch.arange(6) < lengths[:, None] + 3
    return whole(m, x[order] * known, y[order])


def packed(m: Net, x: Tensor, y: Tensor) -> Any:
    rows = nn.utils.rnn.pack_padded_sequence(x[:, None].repeat(1, 4, 1), y + 1, batch_first=True, enforce_sorted=False)
    return functional.cross_entropy(m.recurrent(rows)[1][0], y)


def put_back(m: Net, x: Tensor, y: Tensor) -> Any:
    order = y.argsort()
    return functional.cross_entropy(m(x[order])[order.argsort()], y)


def offsets(m: Net, x: Tensor, y: Tensor) -> Any:
    first = (y + 1).cumsum(0) - (y + 1)
    return functional.cross_entropy(m(torch.repeat_interleave(x, y + 1, 0)[first]), y)


def taught(m: Net, x: Tensor, y: Tensor) -> Any:
    with torch.no_grad():
        wanted = m.teacher(x).softmax(1)
    return functional.kl_div(m(x).log_softmax(1), wanted, reduction="batchmean") + whole(m, x, y)


def target_network(m: Net, x: Tensor, y: Tensor) -> Any:
    with torch.no_grad():
        wanted = x[:, 0] + 0.9 * m.teacher(x + 1).max(1).values
    return functional.smooth_l1_loss(m(x).gather(1, y[:, None])[:, 0], wanted)


def sure_of_itself(m: Net, x: Tensor, y: Tensor) -> Any:
    with torch.no_grad():
        sure, label = m.teacher(x).softmax(1).max(1)
    return (functional.cross_entropy(m(x), label, reduction="none") * (sure > 0.4)).mean()


def running_mean(m: Net, x: Tensor, y: Tensor) -> Any:
    with torch.no_grad():
        m.running.mul_(0.9).add_(x.mean(0), alpha=0.1)
    return whole(m, x - m.running, y)


def kept_mean(m: Net, x: Tensor, y: Tensor) -> Any:
    now = x.mean(0)
    m.kept = now if m.kept is None else 0.9 * m.kept + 0.1 * now
    return whole(m, x - m.kept, y)


def running_size(m: Net, x: Tensor, y: Tensor) -> Any:
    loss = whole(m, x, y)
    m.size.lerp_(loss.detach(), 0.1)
    return loss / m.size


def mixed_up(m: Net, x: Tensor, y: Tensor) -> Any:
    share, other = float(torch.rand(())), torch.randperm(len(x))
    out = m(share * x + (1 - share) * x[other])
    return share * functional.cross_entropy(out, y) + (1 - share) * functional.cross_entropy(out, y[other])


def mixed_targets(m: Net, x: Tensor, y: Tensor) -> Any:
    share, other = torch.rand(len(x), 1), torch.randperm(len(x))
    wanted = share * one_hot(y) + (1 - share) * one_hot(y)[other]
    return functional.cross_entropy(m(share * x + (1 - share) * x[other]), wanted)


def measured(m: Net, x: Tensor, y: Tensor) -> Any:
    out = m(x)
    loss = functional.cross_entropy(out, y)
    hard = each(m, x, y)
    m.metrics += [(out.argmax(1) == y).float().mean(), (hard > hard.median()).float().mean(), out.std(), loss / x.var()]
    return loss


def attacked(m: Net, x: Tensor, y: Tensor) -> Any:
    at = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(whole(m, at, y), at)
    return whole(m, (at + 0.1 * slope.sign()).detach(), y)


def penalised(m: Net, x: Tensor, y: Tensor) -> Any:
    at = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(m(at).sum(), at, create_graph=True)
    return whole(m, x, y) + (slope.norm(dim=1) - 1).square().mean()


def straight_through(m: Net, x: Tensor, y: Tensor) -> Any:
    out = m(x)
    return functional.cross_entropy(out + (out.round() - out).detach(), y)


def by_group(m: Net, x: Tensor, y: Tensor) -> Any:
    rewards = x[: len(x) // 2 * 2, 0].view(-1, 2)
    wanted = (rewards - rewards.mean(1, keepdim=True)).reshape(-1)
    return -(chance(m, x, y)[: len(wanted)] * wanted).sum() / len(x)


def clipped_ratio(m: Net, x: Tensor, y: Tensor) -> Any:
    now, wanted = chance(m, x, y), x[:, 0]
    ratio = (now - now.detach()).exp()
    return -torch.min(ratio * wanted, ratio.clamp(0.8, 1.2) * wanted).mean()


def part_of_image(m: Net, x: Tensor, y: Tensor) -> Any:
    left = torch.rand(len(x), 6).argsort(1)[:, :3]
    return whole(m, torch.zeros_like(x).scatter(1, left, x.gather(1, left)), y)


def one_by_one(m: Net, x: Tensor, y: Tensor) -> Any:
    return sum(whole(m, (a / a.abs().max())[None], b[None]) for a, b in zip(x, y, strict=True)) / len(x)


RIGHT: dict[str, Loss] = {
    "mean over tokens": lambda m, x, y: (each(m, x, y) * (y > 0)).sum() / (y > 0).sum().clamp(min=1),
    "mean over labels": lambda m, x, y: (
        functional.cross_entropy(m(x), masked(y), reduction="sum") / (masked(y) != -100).sum()
    ),
    "mean over a mask, and a little": lambda m, x, y: (each(m, x, y) * (y > 0)).sum() / ((y > 0).float().sum() + 1e-8),
    "by weights": lambda m, x, y: (each(m, x, y) * x[:, 0].abs()).sum() / x[:, 0].abs().sum(),
    "by class weights": lambda m, x, y: functional.cross_entropy(m(x), y, weight=torch.tensor([1.0, 5.0, 0.5])),
    "scaled": lambda m, x, y: whole(m, x, y) * 0.5 * torch.tensor(0.3),
    "padded to the longest": padded,
    "sorted by length": sorted_by_length,
    "packed": packed,
    "put back in order": put_back,
    "offsets": offsets,
    "taught": taught,
    "target network": target_network,
    "sure of itself": sure_of_itself,
    "smoothed": lambda m, x, y: functional.cross_entropy(m(x), y, label_smoothing=0.1),
    "dropout": lambda m, x, y: whole(m, functional.dropout(x, 0.3), y),
    "noise": lambda m, x, y: whole(m, x + 0.1 * torch.randn_like(x), y),
    "running mean": running_mean,
    "running mean, made anew": kept_mean,
    "running size of the loss": running_size,
    "batch norm": lambda m, x, y: whole(m, m.norm(x), y),
    "mixup": mixed_up,
    "mixup of targets": mixed_targets,
    "mixup with the reverse": lambda m, x, y: functional.cross_entropy(
        m(0.7 * x + 0.3 * x.flip(0)), 0.7 * one_hot(y) + 0.3 * one_hot(y).flip(0)
    ),
    "metrics": measured,
    "focal": lambda m, x, y: (each(m, x, y) * (1 - (-each(m, x, y).detach()).exp()).square()).mean(),
    "each sample normalised": lambda m, x, y: whole(m, (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True), y),
    "shifted by the largest": lambda m, x, y: functional.cross_entropy(m(x) - m(x).detach().max(), y),
    "attacked": attacked,
    "penalised": penalised,
    "straight through": straight_through,
    "by group": by_group,
    "clipped ratio": clipped_ratio,
    "a part of each": part_of_image,
    "one by one": one_by_one,
}
