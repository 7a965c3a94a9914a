"""A small CNN on handwritten digits, trained with antdt; what `antdt demo` starts as its workers.

    antdt launch --job JOB -n 4 -- -m antdt.examples.digits --epochs 5

`--delay-ms` and `--slow` stand in for accelerators of different speed: each sample takes at least that much time on
this worker, so that two cores are enough for any number of workers.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import antdt

# Falls to zero: the last steps of the data may be small ones, whose gradients are noisy.
LEARNING_RATE = 1e-2


class Slowness:
    """How long a sample takes on this worker, in seconds. A burst ends each period; the first begins with training."""

    def __init__(self, delay_s: float, spec: str, worker: str) -> None:
        self.delay_s, self.factor, self.burst = delay_s, 1.0, (0.0, 0.0)
        for part in filter(None, spec.split(",")):
            name, factor, *burst = part.split(":")
            if name == worker:
                self.factor = float(factor)
                self.burst = (float(burst[0]), float(burst[1])) if burst else (0.0, 0.0)
        self.began = 0.0

    def spend(self, samples: int, since: float) -> None:
        """Wait until the time of that many samples is over, counted from `since` (time.monotonic())."""
        self.began = self.began or since
        on_s, every_s = self.burst
        slow = not every_s or (since - self.began) % every_s >= every_s - on_s
        until = since + self.delay_s * samples * (self.factor if slow else 1.0)
        time.sleep(max(0.0, until - time.monotonic()))


def load(data: str, samples: int = 0) -> tuple[TensorDataset, TensorDataset]:
    """(training, test) of `digits` (8 x 8, in scikit-learn's wheel) or `mnist:DIR` (28 x 28, the usual idx files).

    samples: to train on, the first ones; 0: all. No others are read: all of MNIST take each worker a second.
    """
    if data.startswith("mnist:"):
        folder = Path(data.removeprefix("mnist:"))
        return _mnist(folder, "train", samples), _mnist(folder, "t10k")
    # scikit-learn ships them in its wheel; reading the file itself saves seconds of imports in every worker.
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise SystemExit("The digits come with scikit-learn: pip install scikit-learn, or use --data mnist:DIR.")
    text = gzip.decompress((Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz").read_bytes()).decode()
    rows = torch.tensor([[float(v) for v in line.split(",")] for line in text.splitlines()])
    x, y = rows[:, :-1].view(-1, 1, 8, 8) / 16, rows[:, -1].to(torch.int64)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    cut = len(y) * 4 // 5
    train = order[: min(cut, samples or cut)]
    return TensorDataset(x[train], y[train]), TensorDataset(x[order[cut:]], y[order[cut:]])


def _mnist(folder: Path, part: str, samples: int = 0) -> TensorDataset:
    def read(name: str, header: int, size: int) -> torch.Tensor:
        path = next((p for p in (folder / f"{name}.gz", folder / name) if p.exists()), None)
        if path is None:
            raise SystemExit(f"No {name}(.gz) in {folder}: mnist:DIR names the folder of the idx files.")
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            file.read(header)
            return torch.frombuffer(bytearray(file.read(samples * size or -1)), dtype=torch.uint8)

    y = read(f"{part}-labels-idx1-ubyte", 8, 1).to(torch.int64)
    x = read(f"{part}-images-idx3-ubyte", 16, 28 * 28).view(len(y), 1, 28, 28).float() / 255
    return TensorDataset(x, y)


def network(side: int) -> nn.Module:
    """A CNN for side x side images."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (side // 2) ** 2, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """Share of the test set that is classified rightly."""
    x, y = data.tensors
    model.eval()
    with torch.no_grad():
        right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(1000), y.split(1000), strict=True))
    model.train()
    return right / len(y)


def _strategy(options: argparse.Namespace) -> antdt.AllReduce | antdt.LocalSGD | antdt.ParameterServer:
    if options.mode:
        return antdt.ParameterServer(mode=options.mode)
    return antdt.LocalSGD(options.every) if options.every else antdt.AllReduce()


def main(argv: list[str] | None = None) -> None:
    """Train; the first rank writes what came out to --result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="digits, or mnist:DIR")
    parser.add_argument("--samples", type=int, default=0, help="train on the first N samples only; 0: all")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128, help="global batch")
    parser.add_argument("--every", type=int, default=0, help="steps between averages (LocalSGD); 0: AllReduce")
    parser.add_argument("--mode", choices=("bsp", "asp", "ssp"), help="of parameter servers (antdt launch --servers N)")
    parser.add_argument("--checkpoint-every", type=int, default=0, help="steps; 0: the final one only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="time a sample takes")
    parser.add_argument("--slow", default="", help="WORKER:FACTOR[:BURST_S:EVERY_S],...")
    parser.add_argument("--result", type=Path, help="JSON file with the accuracy")
    options = parser.parse_args(argv)

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    train, test = load(options.data, options.samples)
    model = network(train.tensors[0].shape[-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    slowness = Slowness(options.delay_ms / 1000, options.slow, os.environ.get("ANTDT_WORKER", ""))

    steps = max(1, len(train) * options.epochs // (options.batch_size * max(1, options.every)))
    if options.mode in ("asp", "ssp"):  # each worker's part of a batch is one
        steps *= int(os.environ.get("ANTDT_WORLD_SIZE", "1"))
    agent = antdt.Agent(
        model,
        optimizer,
        train,
        batch_size=options.batch_size,
        epochs=options.epochs,
        seed=options.seed,
        scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps)),
        strategy=_strategy(options),
        options=antdt.AgentOptions(checkpoint_every_steps=options.checkpoint_every),
    )

    for x, y in agent:
        began = time.monotonic()
        loss = functional.cross_entropy(model(x), y)
        slowness.spend(len(y), began)
        agent.step(loss)

    if options.result is not None and agent.settings.rank == 0:
        found: dict[str, Any] = {"accuracy": accuracy(model, test), "steps": agent.step_number}
        options.result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
