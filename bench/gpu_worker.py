"""What `bench.gpu` trains on a device: one worker of a job, or the same in a plain loop of one process.

antdt launch --job JOB -n 2 -- -m bench.gpu_worker KIND --out FILE
Kinds: `float16`, autocast with a GradScaler whose first scale overflows; `memory`, a batch that is too large for what
the process may take of the device; `bitwise`, in units; `default-device`, torch.set_default_device("cuda") before all
else; `servers`, dense parameters and an antdt.Embedding on parameter servers; `compiled` and `graphs`, torch.compile,
the latter with CUDA graphs; `bfloat16`, parameters of that type; `images`, channels last; `shared`, NCCL between
workers of one device, which is refused.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import antdt
import torch
from antdt.strategies.allreduce.options import GenerationOptions
from antdt.strategies.ps.tables import first_values
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from bench.habit_loops import DEVICE

KINDS = (
    "float16",
    "bfloat16",
    "memory",
    "bitwise",
    "default-device",
    "servers",
    "compiled",
    "graphs",
    "images",
    "shared",
)
SAMPLES, BATCH, EPOCHS, SEED = 512, 64, 3, 11
FEATURES, CLASSES, ROWS = 16, 4, 1000
BIG_FLOATS = 8 * 2**20  # of each sample, in kind `memory`: 32 MiB, kept for backward
MEMORY_BYTES = 1200 * 2**20  # for about 16 of them at a time, as some operations have two copies


def data(kind: str) -> TensorDataset:
    """In CPU memory, whatever the default device is."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(SAMPLES, FEATURES, generator=generator, device="cpu")
    y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    if kind == "images":
        return TensorDataset(x.repeat(1, 16).view(-1, 4, 8, 8), y)
    if kind == "servers":
        ids = torch.randint(ROWS, (SAMPLES, 3), generator=generator, device="cpu")
        return TensorDataset(x, ids, y)
    return TensorDataset(x, y)


class Clicks(nn.Module):  # type: ignore[misc]
    """Features and three rows of a table."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table, self.head = table, nn.Linear(FEATURES + 3 * 8, CLASSES)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([x, self.table(ids).flatten(1)], 1))


def build(kind: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """On the device, the same in each process."""
    torch.manual_seed(SEED)
    if kind == "servers":
        model: nn.Module = Clicks(antdt.Embedding(ROWS, 8, std=0.1, seed=3)).to(DEVICE)
        return model, torch.optim.SGD(model.parameters(), lr=0.1)
    if kind == "images":
        torch.backends.cudnn.allow_tf32 = False
        layers = nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, CLASSES)
        model = nn.Sequential(*layers).to(DEVICE, memory_format=torch.channels_last)
    else:
        model = nn.Sequential(nn.Linear(FEATURES, 32), nn.Tanh(), nn.Linear(32, CLASSES)).to(DEVICE)
    if kind == "bfloat16":
        model.bfloat16()
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def loss_of(kind: str, model: nn.Module, batch: Any) -> torch.Tensor:
    """The mean over the samples of a batch, on the device."""
    *inputs, y = (one.to(DEVICE, non_blocking=True) for one in batch)
    if kind == "bfloat16":
        inputs = [one.bfloat16() for one in inputs]
    if kind == "images":
        inputs = [one.to(memory_format=torch.channels_last) for one in inputs]
    if kind == "float16":
        with torch.autocast(DEVICE.type, torch.float16):
            return functional.cross_entropy(model(*inputs), y)
    if kind == "memory":
        out = model(*inputs)
        big = out[:, :1].expand(-1, BIG_FLOATS).tanh()  # which backward needs
        return functional.cross_entropy(out, y) + 0.01 * big.mean()
    return functional.cross_entropy(model(*inputs), y)


def scaler_of(kind: str) -> Any:
    """Its first scale is far too large for float16, its second is not: one that is nearly too large is too large for
    the sum of a whole batch, and not for those of its parts.
    """
    return torch.amp.GradScaler(DEVICE.type, 2.0**30, backoff_factor=2.0**-18) if kind == "float16" else None


def strategy_of(kind: str) -> Any:
    """Of the Agent."""
    if kind == "servers":
        return antdt.ParameterServer(mode="bsp")
    if kind == "shared":
        return antdt.AllReduce(generation=GenerationOptions(backend="nccl"))
    return antdt.AllReduce(deterministic="bitwise" if kind == "bitwise" else "")


def alone(kind: str, steps: list[list[int]]) -> tuple[dict[str, torch.Tensor], float]:
    """State dict and scale of a plain loop that has these samples in each step."""
    tensors = data(kind).tensors
    with DEVICE if kind == "default-device" else nullcontext():  # first values are drawn there
        model, optimizer = build(kind)
    if kind == "servers":  # which draw first values by the name of the table
        first = first_values(3, "table", torch.arange(ROWS), 8, 0.1)
        model.table.weight.data.copy_(first)
    scaler = scaler_of(kind)
    for samples in steps:
        optimizer.zero_grad()
        parts = 8 if kind == "memory" else 1
        for at in range(parts):  # so that it has room beside the workers
            some = samples[at::parts]
            loss = loss_of(kind, model, [one[some] for one in tensors]) * (len(some) / len(samples))
            (scaler.scale(loss) if scaler else loss).backward()
        scaler.step(optimizer) if scaler else optimizer.step()
        if scaler:
            scaler.update()
    made = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    return made, scaler.get_scale() if scaler else 0.0


def main() -> None:
    """Be one worker of a job; its main member writes the state dict at the end, and what the scaler has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    kind = options.kind
    torch.set_num_threads(1)
    if kind == "default-device":
        torch.set_default_device(DEVICE)
    model, optimizer = build(kind)
    if kind == "memory":
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(MEMORY_BYTES / whole)
    scaler = scaler_of(kind)
    agent = antdt.Agent(
        model,
        optimizer,
        data(kind),
        batch_size=BATCH,
        epochs=EPOCHS,
        strategy=strategy_of(kind),
        pin_memory=DEVICE.type == "cuda",
        **({"scaler": scaler} if scaler else {}),
    )
    modes = {"compiled": "default", "graphs": "reduce-overhead"}
    runs = torch.compile(model, mode=modes[kind]) if kind in modes else model
    for batch in agent:
        agent.step(loss_of(kind, runs, batch))
    if agent.is_main:
        made = {name: value.cpu() for name, value in model.state_dict().items()}
        torch.save({"model": made, "scale": scaler.get_scale() if scaler else 0.0}, options.out)


if __name__ == "__main__":
    main()
