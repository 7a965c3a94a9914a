"""Loops as they stand in well-known repositories, in miniature: what they carry from batch to batch, and how.

DINO's centre and its teacher, MoCo's queue and its second encoder, a bank of features by sample, the codebook of a
VQ-VAE by moving averages, a running baseline of rewards, an adversary whose weight follows from gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

SAMPLES, FEATURES, CLASSES = 44, 6, 3
Gather = Callable[[Any], Any]


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SAMPLES, FEATURES, generator=generator, dtype=torch.float64)
    y = (x[:, 0] + x[:, 1] > 0).long() + (x[:, 2] > 1).long()
    return TensorDataset(x, y, torch.arange(SAMPLES))


def mlp(out: int = CLASSES, width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, width), nn.Tanh(), nn.Linear(width, out)).double()


def own(rows: Any) -> Any:
    """Of this worker alone."""
    return rows


@torch.no_grad()
def follow(student: nn.Module, teacher: nn.Module) -> None:
    for theirs, mine in zip(student.parameters(), teacher.parameters(), strict=True):
        mine.data.mul_(0.9).add_(0.1 * theirs.detach().data)


def teacher_of(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).requires_grad_(False)


def taught(model: Any, teacher: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        target = teacher(x + 0.05)
    out = model(x - 0.05)
    return functional.cross_entropy(out, y) + functional.mse_loss(out.softmax(1), target.softmax(1))


class Centre(nn.Module):  # type: ignore[misc]
    """DINO's loss."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(1, CLASSES, dtype=torch.float64))

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        wanted = functional.softmax((teacher - self.centre) / 0.5, -1).detach()
        loss = torch.sum(-wanted * functional.log_softmax(student, -1), -1).mean()
        with torch.no_grad():
            mean = torch.sum(teacher, 0, keepdim=True) / len(teacher)
            self.centre = self.centre * 0.9 + mean * 0.1
        return loss


def centred(student: Any, teacher: Any, centre: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        target = teacher(x + 0.1)
    return centre(student(x - 0.1), target)


class MoCo(nn.Module):  # type: ignore[misc]
    """moves: its second encoder follows in each forward, as in the original. gather: keys of all workers."""

    def __init__(self, *, moves: bool) -> None:
        super().__init__()
        self.query, self.moves, self.size, self.gather = mlp(), moves, 24, own
        self.key = teacher_of(self.query)
        queue = functional.normalize(torch.randn(CLASSES, self.size, dtype=torch.float64), dim=0)
        self.register_buffer("queue", queue)
        self.register_buffer("at", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def move(self) -> None:
        for theirs, mine in zip(self.query.parameters(), self.key.parameters(), strict=True):
            mine.data = mine.data * 0.9 + theirs.data * 0.1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries = functional.normalize(self.query(x + 0.1), dim=1)
        with torch.no_grad():
            if self.moves:
                self.move()
            keys = functional.normalize(self.key(x - 0.1), dim=1)
        positive = (queries * keys).sum(1, keepdim=True)
        scores = torch.cat([positive, queries @ self.queue.clone().detach()], 1) / 0.2
        with torch.no_grad():
            keys = self.gather(keys)
            places = (int(self.at) + torch.arange(len(keys))) % self.size
            self.queue[:, places] = keys.T
            self.at[0] = (int(self.at) + len(keys)) % self.size
        return functional.cross_entropy(scores, torch.zeros(len(x), dtype=torch.long))


class Bank(nn.Module):  # type: ignore[misc]
    """One row for each sample of the data set, as in instance discrimination."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()
        self.register_buffer("rows", functional.normalize(torch.randn(SAMPLES, CLASSES, dtype=torch.float64), dim=1))

    def forward(self, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        found = functional.normalize(self.body(x), dim=1)
        scores = found @ self.rows.clone().T / 0.2
        with torch.no_grad():
            self.rows.index_copy_(0, at, functional.normalize(0.5 * self.rows[at] + 0.5 * found, dim=1))
        return functional.cross_entropy(scores, at)


class Codebook(nn.Module):  # type: ignore[misc]
    """VQ-VAE-2's, whose codes are moving averages. total: what becomes of sums over the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.total = nn.Linear(FEATURES, 3), nn.Linear(3, FEATURES), own
        codes = torch.randn(3, 4, dtype=torch.float64)
        self.register_buffer("codes", codes)
        self.register_buffer("sizes", torch.zeros(4, dtype=torch.float64))
        self.register_buffer("sums", codes.clone())
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.encoder(x)
        far = z.pow(2).sum(1, keepdim=True) - 2 * z @ self.codes + self.codes.pow(2).sum(0, keepdim=True)
        nearest = (-far).max(1)[1]
        chosen, near = functional.one_hot(nearest, 4).double(), functional.embedding(nearest, self.codes.T)
        with torch.no_grad():
            self.sizes.data.mul_(0.9).add_(self.total(chosen.sum(0)), alpha=0.1)
            self.sums.data.mul_(0.9).add_(self.total(z.T @ chosen), alpha=0.1)
            self.codes.data.copy_(self.sums / (self.sizes + 1e-5).unsqueeze(0))
        out = self.decoder(z + (near - z).detach())
        return functional.mse_loss(out, x) + 0.25 * (near.detach() - z).pow(2).mean()


class Baseline(nn.Module):  # type: ignore[misc]
    """A running mean of rewards."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))


def rewarded(model: Any, baseline: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    reward = x.sum(1)
    loss = (functional.cross_entropy(model(x), y, reduction="none") * (reward - baseline.mean)).mean()
    baseline.mean = baseline.mean * 0.9 + 0.1 * reward.mean()
    return loss


class Autoencoder(nn.Module):  # type: ignore[misc]
    """Its last layer is a convolution, as VQGAN's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, FEATURES), nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x))[:, None])[:, 0]


def adversaries() -> Any:
    models = {"coder": Autoencoder().double(), "critic": nn.Sequential(nn.Linear(6, 37), nn.Tanh(), nn.Linear(37, 1))}
    models["critic"].double()
    return models, [torch.optim.Adam(one.parameters(), 0.01, betas=(0.5, 0.9)) for one in models.values()], {}


def coder_terms(group: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    out = group.coder(x)
    return (x - out).abs().mean(), -group.critic(out).mean()


def adaptive(group: Any, x: torch.Tensor, mean: Gather = own) -> torch.Tensor:
    """VQGAN's weight of the adversary. mean: of a gradient, over all samples."""
    terms = coder_terms(group, x)
    grads = [mean(torch.autograd.grad(one, group.coder.last.weight, retain_graph=True)[0]) for one in terms]
    weight = (torch.norm(grads[0]) / (torch.norm(grads[1]) + 1e-4)).clamp(0, 1e4).detach()
    return terms[0] + 0.8 * weight * terms[1]


def critic_loss(group: Any, x: torch.Tensor) -> torch.Tensor:
    fake = group.coder(x).detach()
    return 0.5 * (functional.relu(1 - group.critic(x)).mean() + functional.relu(1 + group.critic(fake)).mean())


# -- losses over what a batch has


def hardest(model: Any, x: torch.Tensor, y: torch.Tensor, gather: Gather = own) -> torch.Tensor:
    """Triplets, mined in the batch."""
    rows, classes = gather(model(x)), gather(y)
    far = ((rows[:, None] - rows[None]) ** 2).sum(-1).add(1e-6).sqrt()
    same = classes[:, None] == classes[None]
    return functional.relu((far * same).max(1)[0] - (far + 1e9 * same).min(1)[0] + 0.3).mean()


def correlated(model: Any, x: torch.Tensor, _y: torch.Tensor, gather: Gather = own) -> torch.Tensor:
    """Barlow Twins."""
    first, second = (gather(model(one)) for one in (x + 0.1, x - 0.1))
    normal = [functional.batch_norm(one, None, None, training=True) for one in (first, second)]
    found = normal[0].T @ normal[1] / len(first)
    return (torch.diagonal(found) - 1).pow(2).sum() + 0.005 * (found - torch.diag(torch.diagonal(found))).pow(2).sum()


def found_objects(model: Any, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A detector's loss: the sum over all places, and how many objects there are."""
    out, object_ = model(x)[:, 0], y == 2
    each = functional.binary_cross_entropy_with_logits(out, object_.double(), reduction="none")
    return (each * (1 - (-each).exp()) ** 2).sum(), object_.sum()
