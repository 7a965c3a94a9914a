"""What of a run depends on who trains it: `python -m bench.determinism --json FILE`.

The digits, and with --data DIR as many pictures of MNIST (its idx files lie there), are trained by jobs of 1, 2, 3
and 4 workers, and once more by 4 that are killed one after the other while a policy gives each another share of the
batch every few steps. Compared are, over all runs on one data set,
  same_samples          whether each step consists of the same samples in the same order, as the log has it; what the
                        workers wrote down themselves is held against the log before
  float_difference_max  the largest difference of final parameters from those of one worker, over the largest parameter
  bitwise_equal         whether final parameters are equal to the bit with deterministic="bitwise" in all of these runs;
                        without it (bitwise_equal_without) sums over other parts round otherwise
A run takes up to a minute on a busy machine, most of it for workers to start and to come back (first_step_s,
incomplete_s). With --keep DIR each is kept there once it has passed its audit, and is not made again: a bench that was
cut goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import torch
from antdt_schemas import codec, records
from antdt_schemas.errors import ExitCode
from antdt_schemas.topics import SHARD_LOG
from antdt_streams.broker import EmbeddedBroker
from antdt_streams.chaos.judge import Entries, entries_of, judge_log, judge_records, lineage_of
from antdt_streams.chaos.launches import Launches, Training
from antdt_streams.kafka import topics_admin
from antdt_streams.local.place import Place
from antdt_streams.local.services import SERVICES, environment_of, start_services
from antdt_streams.local.supervise import start_process
from antdt_streams.views.follow import Follow
from antdt_streams.views.lineage import TOGETHER
from antdt_streams.views.progress import Progress

from bench.common import machine, write

WITHIN_S = 900.0  # a busy machine takes minutes for ten workers to come back
EPOCHS, BATCH, UNIT_SIZE = 4, 32, 4
CALM_MS, DISTURBED_MS = 0.5, 4.0  # a sample takes
KILLS = tuple((15 * (at + 1), f"w{(1, 3, 0, 2)[at % 4]}") for at in range(10))  # once so many steps are committed
POLICY = """
from antdt_schemas.records import Action, Assignment
from antdt_streams.policies import Proposal

PARTS = (14, 10, 5, 3)


class Rotates:
    "Every window of four workers gives each of them another part of the batch."

    name, version = "rotates", 1

    def decide(self, view, memory):
        if view.pending or len(view.nodes) != len(PARTS):
            return (), memory
        turn = memory.get("turn", 0) + 1
        shares = [Assignment(n.worker, PARTS[(at + turn) % len(PARTS)], 1) for at, n in enumerate(view.nodes)]
        return (Proposal(Action.ADJUST_BS, "to see it", assignments=tuple(shares)),), {"turn": turn}
"""


@dataclass(frozen=True)
class Run:
    """What came out of one: the final parameters, flat, samples by step, and what it was told to do."""

    parameters: torch.Tensor
    samples: dict[int, list[int]]
    row: dict[str, Any]
    told: dict[str, Any]


def plans_of(entries: Entries) -> dict[int, int]:
    """The plan that each step was made under; 0: none."""
    bodies = [codec.decode(value, records.Entry).body for _, value in entries]
    events = [event for body in bodies if isinstance(body, records.Cycle) for event in body.events]
    return {event.step: event.plan for event in events if isinstance(event, records.Committed)}


class Job:
    """One run of the digits."""

    def __init__(
        self, broker: EmbeddedBroker, folder: Path, workers: int, *, disturbed: bool, unit_size: int, data: str
    ) -> None:
        self.connection, self.folder, self.workers, self.disturbed = broker.connection, folder, workers, disturbed
        self.name = folder.name
        delay_ms = DISTURBED_MS if disturbed else CALM_MS
        same: dict[str, Any] = {
            "epochs": EPOCHS,
            "batch_size": BATCH,
            "patience_ms": 5000,
            "unit_size": unit_size,
            "data": data,
        }
        self.training = Training(workers, delay_ms=delay_ms, **same)
        self.place, self.progress = Place(self.connection, True, folder, None), Progress()
        self.left = list(KILLS) if disturbed else []
        self.first_step_s, self.incomplete_s = 0.0, 0.0  # behind the launch; with fewer than all workers, from then on

    @property
    def told(self) -> dict[str, Any]:
        """What a run has to have in common with one that is kept, to be the same."""
        return {**asdict(self.training), "kills": [list(kill) for kill in self.left]}

    def run(self) -> Run:
        """To its end."""
        folder, training = self.folder, self.training
        folder.mkdir(parents=True)
        (folder / "rotates.py").write_text(POLICY, encoding="utf-8")
        policy = f"{folder / 'rotates.py'}:Rotates" if self.disturbed else None
        topics_admin.create(self.connection, self.name)
        extra = {"ledger": ("--patience-ms", str(training.patience_ms))}
        services = start_services(self.name, self.place, self.connection, SERVICES, policy, extra)
        environ = dict(os.environ) | environment_of(self.connection, self.place)
        launches = Launches(self.name, training, folder, folder, environ, start_process)
        follow = Follow(self.connection, self.name, (SHARD_LOG,), self.progress)
        told, began = self.told, monotonic()
        try:
            follow.start()
            launches.launch()
            while launches.look() is not ExitCode.DONE:
                services.poll()
                self._strike(launches)
                looked = monotonic()
                assert looked < began + WITHIN_S, f"{self.name} is at step {self.progress.step} after {WITHIN_S:g} s"
                sleep(0.02)  # between two looks
                self._clock(looked - began, monotonic() - looked)
        finally:
            launches.kill()
            services.stop()
            follow.stop()
        assert not self.left, f"ended before these were killed: {self.left}"
        return self._made(launches, told, monotonic() - began)

    def _clock(self, at_s: float, took_s: float) -> None:
        """Where the time goes."""
        if self.progress.step and not self.first_step_s:
            self.first_step_s = at_s
        elif self.progress.step and self.progress.members < self.workers:
            self.incomplete_s += took_s

    def _strike(self, launches: Launches) -> None:
        """kill -9 of whose turn it is, once all are there."""
        if self.left and self.progress.step >= self.left[0][0] and self.progress.members == self.workers:
            pid = launches.pid(self.left[0][1])
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                self.left.pop(0)

    def _made(self, launches: Launches, told: dict[str, Any], seconds: float) -> Run:
        entries = entries_of(self.connection, self.name)
        report, wrong = judge_log(entries)
        wrong += judge_records(entries, launches.records)
        assert not wrong, wrong
        file = max(self.folder.glob(f"checkpoints/{self.name}/**/step-*.pt"))
        model = torch.load(file, weights_only=True)["model"]
        steps = lineage_of(entries).steps
        plans = plans_of(entries)
        row = {
            "name": self.name,
            "workers": self.workers,
            "kills": len(KILLS) if self.disturbed else 0,
            "plans": len(set(plans.values()) - {0}),
            "steps": report["steps"],
            "accuracy": json.loads(launches.result.read_text(encoding="utf-8"))["accuracy"],
            "seconds": round(seconds, 1),
            "first_step_s": round(self.first_step_s, 1),
            "incomplete_s": round(self.incomplete_s, 1),
        }
        flat = torch.cat([value.reshape(-1) for value in model.values()])
        return Run(flat, {number: step.samples[TOGETHER] for number, step in steps.items()}, row, told)


def compared(runs: list[Run]) -> dict[str, Any]:
    """All of them with the first one."""
    first, *others = runs
    scale = float(first.parameters.abs().max())
    differences = [float((run.parameters - first.parameters).abs().max()) / scale for run in others]
    for run, difference in zip(others, differences, strict=True):
        run.row["float_difference"] = difference
    return {
        "same_samples": all(run.samples == first.samples for run in others),
        "float_difference_max": max(differences),
        "bitwise_equal": all(torch.equal(run.parameters, first.parameters) for run in others),
    }


def kept(file: Path, told: dict[str, Any]) -> Run | None:
    """One that was made before, and was told the same."""
    if not file.exists():
        return None
    run = Run(**torch.load(file, weights_only=True))
    return run if run.told == told else None


def keep(file: Path, run: Run) -> None:
    """Whole, or not at all."""
    beside = file.with_suffix(".part")
    torch.save(vars(run), beside)
    beside.replace(file)


def runs(broker: EmbeddedBroker, folder: Path, keeps: Path, unit_size: int, data: str) -> list[Run]:
    """All of them, on one data set."""
    kind = f"{data.partition(':')[0]}-{'bitwise' if unit_size else 'plain'}"
    made = []
    for workers, disturbed in ((1, False), (2, False), (3, False), (4, False), (4, True)):
        name = f"{kind}-{'disturbed' if disturbed else 'calm'}-{workers}"
        job = Job(broker, folder / name, workers, disturbed=disturbed, unit_size=unit_size, data=data)
        file = keeps / f"{name}.pt"
        run = kept(file, job.told)
        if run is None:
            run = job.run()
            keep(file, run)
        made.append(run)
        print(", ".join(f"{what} {value}" for what, value in run.row.items()), flush=True)
    return made


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--data", type=Path, metavar="DIR", help="of MNIST's idx files, which is trained as well")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="of runs that were made: they are not made again")
    options = parser.parse_args()
    sets = ["digits"] + ([f"mnist:{options.data.resolve()}"] if options.data else [])
    with tempfile.TemporaryDirectory(prefix="antdt-determinism-") as name:
        folder = Path(name)
        keeps = options.keep or folder
        keeps.mkdir(parents=True, exist_ok=True)
        with EmbeddedBroker(folder / "kafka") as broker:
            made = [found_on(broker, folder, keeps, data) for data in sets]
    found: dict[str, Any] = {
        "same_samples": all(one["same_samples"] for one in made),
        "float_difference_max": max(one["float_difference_max"] for one in made),
        "bitwise_equal": all(one["bitwise_equal"] for one in made),
        "bitwise_equal_without": all(one["bitwise_equal_without"] for one in made),
    }
    print(", ".join(f"{what} {value}" for what, value in found.items()))
    write(options.json, {"machine": machine(), **found, "runs": [row for one in made for row in one["runs"]]})


def found_on(broker: EmbeddedBroker, folder: Path, keeps: Path, data: str) -> dict[str, Any]:
    """On one data set."""
    plain, bitwise = (runs(broker, folder, keeps, unit_size, data) for unit_size in (0, UNIT_SIZE))
    found, without = compared(bitwise), compared(plain)
    found["bitwise_equal_without"] = without["bitwise_equal"]
    found["float_difference_max"] = without["float_difference_max"]
    found["same_samples"] = found["same_samples"] and without["same_samples"] and bitwise[0].samples == plain[0].samples
    return {**found, "runs": [one.row for one in plain + bitwise]}


if __name__ == "__main__":
    main()
