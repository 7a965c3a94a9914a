"""A tiny training run that writes down what it trained on, from the data itself: what `antdt chaos` starts as workers.

    antdt launch --job JOB -n 4 -- -m antdt.examples.recorded --record DIR

Each worker appends to DIR/WORKER.jsonl which samples it is about to use in which step, and after the step the lineage
of its model. Nobody asks the ledger for it, so it can be held against the log afterwards. By files in the folder of
--faults its worst days are brought about (`Faults`).
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from antdt_schemas import deafness
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import antdt
from antdt.agent import AgentOptions
from antdt.examples.digits import accuracy, load
from antdt.examples.recorded_topic import names_of, topic_of

ROOM_S = 60.0
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Record:
    """Lines of JSON in a file of its own; a line that was written survives the death of the process.

    Where the disk is full it waits for room, for a while.
    """

    def __init__(self, folder: Path, worker: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(folder / f"{worker}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, **line: Any) -> None:
        """Append one line, in one write."""
        until, data = time.monotonic() + ROOM_S, json.dumps(line).encode() + b"\n"
        while not self._wrote(data, until):
            time.sleep(0.1)

    def _wrote(self, data: bytes, until: float) -> bool:
        try:
            os.write(self._file, data)
        except OSError as error:
            if error.errno not in NO_ROOM or time.monotonic() > until:
                raise
            return False
        return True


class Faults:
    """What may befall this worker, by files in a folder that somebody else writes.

    deaf/WORKER: its consumers hear nothing any more. slow/WORKER: its next step takes so many seconds more; the file is
    gone when that begins. poison: a JSON object of samples that no worker survives, each "raise" or "kill".
    """

    def __init__(self, folder: Path, worker: str) -> None:
        self._slow, self._poison = folder / "slow" / worker, folder / "poison"
        deafness.install(folder / "deaf" / worker)

    def slow(self) -> None:
        """In a step."""
        if self._slow.exists():
            seconds = float(self._slow.read_text(encoding="utf-8"))
            self._slow.unlink()
            time.sleep(seconds)

    def load(self, index: int) -> None:
        """Before this sample is loaded."""
        try:
            poison: Mapping[str, str] = json.loads(self._poison.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        what = poison.get(str(index))
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what is not None:
            raise ValueError(f"sample {index} is truncated")


class OneByOne:
    """Gives samples one at a time, as a data set does that reads a file for each of them, some of which may be bad."""

    def __init__(self, whole: TensorDataset, faults: Faults | None) -> None:
        self.whole, self.faults = whole, faults

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int) -> Any:
        if self.faults is not None:
            self.faults.load(index)
        return self.whole[index]


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, required=True, help="folder of the records")
    parser.add_argument("--data", default="digits", help="digits, or mnist:DIR")
    parser.add_argument("--samples", type=int, default=0, help="train on the first N samples only; 0: all")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32, help="global batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="time a sample takes")
    parser.add_argument("--checkpoint-every", type=int, default=20, help="steps; 0: the final one only")
    parser.add_argument("--max-attempts", type=int, default=1000, help="workers that a shard may lose")
    parser.add_argument("--shard-size", type=int, default=0, help="samples; 0: as the Agent chooses")
    parser.add_argument("--every", type=int, default=0, help="steps between averages (LocalSGD); 0: AllReduce")
    parser.add_argument("--mode", choices=("bsp", "asp", "ssp"), help="of parameter servers (antdt launch --servers N)")
    parser.add_argument("--backup", type=int, default=0, help="workers that no version of parameter servers waits for")
    parser.add_argument("--unit-size", type=int, default=0, help="samples of a unit that is bitwise the same; 0: none")
    parser.add_argument("--pending-max", type=int, default=4096, help="steps that may await their commit")
    parser.add_argument("--num-workers", type=int, default=0, help="data processes; 0: whole batches of tensors")
    parser.add_argument("--result", type=Path, help="JSON file with the accuracy")
    parser.add_argument("--faults", type=Path, help="folder of files that bring faults about")
    parser.add_argument("--topic", default="", help="train on this topic, which the first rank writes")
    parser.add_argument("--one-by-one", action="store_true", help="load each sample by itself")
    return parser.parse_args(argv)


def _strategy(options: argparse.Namespace) -> antdt.AllReduce | antdt.LocalSGD | antdt.ParameterServer:
    if options.mode:
        return antdt.ParameterServer(options.mode, backup=options.backup, pending_max=options.pending_max)
    units: dict[str, Any] = {"deterministic": "bitwise", "unit_size": options.unit_size} if options.unit_size else {}
    exchange = antdt.AllReduce(pending_max=options.pending_max, **units)
    return antdt.LocalSGD(options.every, exchange) if options.every else exchange


def main(argv: list[str] | None = None) -> None:
    """Train, record; the first rank writes what came out to --result."""
    options = _parsed(argv)
    worker = antdt.Settings.here().worker
    faults = Faults(options.faults, worker) if options.faults is not None else None
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    train, test = load(options.data, options.samples)
    x, y = train.tensors
    tensors = TensorDataset(x, y, torch.arange(len(y)))
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data: Any = OneByOne(tensors, faults) if options.num_workers or options.one_by_one else tensors
    if options.topic:
        data = topic_of(options.topic, tensors, antdt.Settings.of())
    agent = antdt.Agent(
        model,
        optimizer,
        data,
        batch_size=options.batch_size,
        epochs=options.epochs,
        seed=options.seed,
        num_workers=options.num_workers,
        options=AgentOptions(
            shard_size=options.shard_size,
            checkpoint_every_steps=options.checkpoint_every,
            max_attempts=options.max_attempts,
        ),
        strategy=_strategy(options),
    )
    record = Record(options.record, worker)
    for images, labels, numbers in agent:
        time.sleep(options.delay_ms / 1000 * len(labels))
        # Which version of servers it will be in, nobody knows yet.
        record.write(step=agent.step_number + 1 if not options.mode else 0, samples=names_of(numbers))
        if faults is not None:
            faults.slow()
        loss = functional.cross_entropy(model(images), labels)
        if agent.step(loss):
            record.write(step=agent.step_number, lineage=agent.lineage)

    if options.result is not None and agent.settings.rank == 0:
        found: dict[str, Any] = {"accuracy": accuracy(model, test), "steps": agent.step_number}
        options.result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
