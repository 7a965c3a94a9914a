"""Habits of real training scripts, over real processes: `python -m bench.habits --json FILE`.

Each habit of `bench.habit_scripts` is a job of two or three workers, in turn, and a plain loop of one process over the
same global batches. In the middle of the job one worker is killed by SIGKILL and started again by its launcher, and a
plan gives the workers uneven parts of the batch. One job is stopped by Ctrl-C as well and launched again, one is rolled
back by its operator. Models and batches are on the device that BENCH_DEVICE names. Outcomes:
  equal    the members are equal to the bit after every step, each step has the samples that the log says, and the
           parameters are those of one process, to a relative tolerance; where that has something else, the row says why
  refused  the launch ends with exit status 2 and the sentence that says what to do
  wrong    all else: it is a finding
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import torch
from antdt_schemas import codec
from antdt_schemas.errors import ExitCode
from antdt_schemas.records import Action, Assignment, Cause, Decision, Rollback
from antdt_schemas.topics import DECISIONS
from antdt_streams.broker import EmbeddedBroker
from antdt_streams.chaos.judge import entries_of, judge_log, lineage_of
from antdt_streams.host.child import Process, send
from antdt_streams.kafka import topics_admin
from antdt_streams.kafka.ask import ask
from antdt_streams.local.place import Place
from antdt_streams.local.services import environment_of, start_services
from antdt_streams.local.supervise import last_words, start_process
from antdt_streams.views.lineage import TOGETHER
from confluent_kafka import Producer

from bench.common import machine, write
from bench.habit_loops import (
    BEFALLS_BEHIND,
    DEVICE,
    ENV_BACKEND,
    INTERRUPTED,
    KILLED,
    ROLLED_BACK,
    Habit,
    Single,
)
from bench.habit_scripts import HABITS

MEMBERS = (2, 3)
PLANNED_BEHIND = 5  # steps
ROLLED_BACK_TO = 30
SHARES = {1: (30,), 2: (21, 9), 3: (16, 9, 5)}
TOLERANCE = 1e-4
MOVED_MIN = 1e-2  # or nothing was trained
WITHIN_S = 240.0
LEDGER = ("--patience-ms", "5000", "--stuck-ms", "60000")
_alone = threading.Lock()  # one process draws from one generator


@dataclass
class Step:
    """What workers wrote down of a step: hashes and parameters by worker, and the samples that each has, by rank, with
    what else was said of them.
    """

    parameters: dict[str, torch.Tensor] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    samples: dict[int, list[list[Any]]] = field(default_factory=dict)
    generation: int = 0

    @property
    def together(self) -> list[int]:
        """Samples of all workers, by rank."""
        return [sample for rank in sorted(self.samples) for sample, *_ in self.samples[rank]]

    @property
    def said(self) -> dict[int, list[Any]]:
        """What else there is of each sample."""
        return {sample: said for own in self.samples.values() for sample, *said in own}

    def took(self, generation: int, rank: int, samples: list[list[Any]]) -> None:
        """What one worker had. A step that is made once more, behind a stop or a rollback, is as it was at last."""
        if generation > self.generation:
            self.generation = generation
            self.samples.clear()
        if generation == self.generation:
            self.samples[rank] = samples

    @property
    def difference(self) -> float:
        """The largest from the first member."""
        first, *others = self.parameters.values()
        return max((float((other - first).abs().max()) for other in others), default=0.0)


def steps_of(folder: Path, lineages: dict[int, str]) -> tuple[dict[int, Step], dict[str, Any]]:
    """By number; the first one that the worker that was killed has made in its second life, and how many were undone:
    those that have another lineage in the log at last, or none.

    A step may be begun in several generations, each of which gives a worker one batch or more: what counts is what it
    had in the one in which it made the step.
    """
    steps: dict[int, Step] = {}
    again: int | None = None
    undone = set[str]()
    for file in sorted(folder.glob("*.jsonl")):
        at_hand: dict[tuple[int, int], list[list[Any]]] = {}
        changed: dict[int, str] = {}
        for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            if "samples" in line:
                began = (line["step"], line["generation"])
                at_hand = {began: at_hand.get(began, []) + line["samples"]}
                rank = line["rank"]
            elif "changed" in line:
                changed = {line["changed"]: line["hash"]}
            elif lineages.get(line["made"]) != line["lineage"]:
                undone.add(line["lineage"])
            else:
                step = steps.setdefault(line["made"], Step())
                step.hashes[file.stem] = line["hash"]
                if line["made"] in changed:
                    step.hashes[f"{file.stem}, on_step"] = changed[line["made"]]
                step.parameters[file.stem] = torch.tensor(line["parameters"])
                ((began, samples),) = at_hand.items()
                if began[0] == line["made"]:
                    step.took(began[1], rank, samples)
                if file.stem == KILLED and not line["first"] and again is None:
                    again = line["made"]
    return steps, {"again_at_step": again, "undone_steps": len(undone)}


def parts_of(steps: dict[int, Step]) -> list[list[int]]:
    """How many samples each worker had, of each step."""
    return [[len(own) for own in steps[number].samples.values()] for number in sorted(steps)]


class Job:
    """One launch of a habit."""

    def __init__(self, broker: EmbeddedBroker, name: str, members: int, folder: Path, kills: bool = True) -> None:
        self.broker, self.name, self.members, self.folder, self.kills = broker, name, members, folder, kills
        self.records, self.log = folder / "records", folder / "workers.log"
        self.place = Place(broker.connection, True, folder, None)
        # What comes to it, behind so many steps: of a launch, and returns the one that goes on.
        self.acts: list[tuple[int, Callable[[Process], Process]]] = []
        self.stopped: int | None = None  # exit status of a launch that was interrupted
        if kills:
            befalls = HABITS[name].befalls
            self.acts.append((PLANNED_BEHIND, self._plan))
            if befalls:
                act = {INTERRUPTED: self._interrupt, ROLLED_BACK: self._roll_back}[befalls]
                self.acts.append((BEFALLS_BEHIND[befalls], act))

    def run(self) -> int:
        """To its end; the exit status."""
        connection = self.broker.connection
        topics_admin.create(connection, self.name)
        self.records.mkdir(parents=True)
        services = start_services(self.name, self.place, connection, ("ledger",), extra={"ledger": LEDGER})
        launcher, until = self._launch(), monotonic() + WITHIN_S
        try:
            while (code := launcher.poll()) is None and monotonic() < until:
                services.poll()
                if self.acts and self._steps() >= self.acts[0][0]:
                    launcher = self.acts.pop(0)[1](launcher)
                sleep(0.02)  # between two looks
            return -1 if code is None else code
        finally:
            launcher.kill()
            launcher.wait(10)
            services.stop()

    def _launch(self) -> Process:
        environ = dict(os.environ) | environment_of(self.broker.connection, self.place)
        command = [sys.executable, "-m", "antdt.launch", "--job", self.name, "-n", str(self.members), "--"]
        command += ["-m", "bench.habit_scripts", self.name, "--record", str(self.records)]
        command += [] if self.kills else ["--calm"]
        return start_process(command, environ, self.log)

    def _steps(self) -> int:
        """That the first worker has made."""
        own = self.records / "w0.jsonl"
        return own.read_text(encoding="utf-8").count('"made"') if own.exists() else 0

    def _interrupt(self, launcher: Process) -> Process:
        """Ctrl-C in the middle of an epoch, and the same launch once more."""
        send(launcher.pid, signal.SIGINT)
        self.stopped = launcher.wait(WITHIN_S)
        (self.records / "befallen").touch()
        return self._launch()

    def _roll_back(self, launcher: Process) -> Process:
        """What `antdt rollback` asks for: over the end of an epoch, to its middle."""
        ask(self.broker.connection, self.name, lambda author: Rollback(ROLLED_BACK_TO, author, "bench"), None)
        (self.records / "befallen").touch()
        return launcher

    def _plan(self, launcher: Process) -> Process:
        """A plan of uneven parts, as the Controller writes it."""
        shares = tuple(Assignment(f"w{at}", size, 1) for at, size in enumerate(SHARES[self.members]))
        decision = Decision(Cause(0, 0, 0), 1, Action.ADJUST_BS, shares, 1.0, 0, "", "bench", 1, "uneven", 0.0, 0, 0)
        producer = Producer(self.broker.connection.producer())
        producer.produce(DECISIONS.name(self.name), codec.encode(decision))
        assert producer.flush(30) == 0, "the plan was not written"
        return launcher

    @property
    def refusal(self) -> str:
        """What the first worker that was refused said, or nothing."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.partition("UsageError: ")[2] for line in lines if "UsageError: " in line), "")


def judged(job: Job, habit: Habit, row: dict[str, Any]) -> list[str]:
    """What is wrong, in sentences; figures are entered into the row."""
    entries = entries_of(job.broker.connection, job.name)
    report, wrong = judge_log(entries)
    if job.name == "early-stopping":  # it has an end of its own
        wrong = [what for what in ("broken", "repeated", "quarantined", "wrong_lineage") if report[what]]
    made = lineage_of(entries).steps
    steps, found = steps_of(job.records, {number: step.lineage for number, step in made.items()})
    row |= found
    plans = [number for number, step in enumerate(parts_of(steps), 1) if sorted(step) == sorted(SHARES[job.members])]
    row["planned_steps"] = len(plans)
    if job.kills and not plans:
        wrong.append("no step was made under the plan")
    if job.stopped not in (None, ExitCode.DRAINED):
        wrong.append(f"the launch that was interrupted ended with {job.stopped}")
    if job.acts:
        wrong.append("it ended before all was done to it")
    if habit.befalls == ROLLED_BACK and job.kills and not row["undone_steps"]:
        wrong.append("no step was undone")
    row["steps"] = len(steps)
    if sorted(steps) != list(range(1, len(steps) + 1)):
        wrong.append(f"steps that were made: {sorted(steps)}")
    if any(not step.parameters for step in steps.values()):
        return [*wrong, "steps without a record"]
    apart = [number for number, step in steps.items() if len(set(step.hashes.values())) > 1]
    if apart:
        wrong.append(f"members differ behind steps {apart[:5]}")
    row["max_difference_between_members"] = max(step.difference for step in steps.values())
    if job.kills and row["again_at_step"] is None:
        wrong.append("the worker that was killed made no step in its second life")
    taken = {number: step.together for number, step in steps.items()}
    if job.name not in ("weighted-sampler", "bucketed"):  # where the log has positions in the sampler's list
        by_log = {number: step.samples[TOGETHER] for number, step in made.items()}
        odd = [number for number, own in taken.items() if sorted(by_log.get(number, ())) != sorted(own)]
        if odd:
            return [*wrong, f"the log says something else of the samples of steps {odd[:5]}"]
        taken = {number: by_log[number] for number in taken}  # in the order of their positions
    return wrong + compared(habit, steps, taken, row)


def compared(habit: Habit, steps: dict[int, Step], taken: dict[int, list[int]], row: dict[str, Any]) -> list[str]:
    """Against a plain loop of one process."""
    with _alone:
        single = Single(habit, taken, {number: step.said for number, step in steps.items()})
        alone = habit.scripts[1]
        assert alone is not None
        alone(single)
    last = next(iter(steps[max(steps)].parameters.values()))
    row["moved"] = float((last - single.start).abs().max())
    wrong = [] if row["moved"] > MOVED_MIN else ["nothing was trained"]
    differences = {
        number: float((params - single.history[number]).abs().max() / single.history[number].abs().max())
        for number, step in steps.items()
        for params in step.parameters.values()
    }
    if habit.differs:
        row["note"] = f"not compared with one process: {habit.differs}"
        return wrong
    row["max_difference_from_one_process"] = max(differences.values())
    far = [number for number, difference in sorted(differences.items()) if not difference <= TOLERANCE]
    return [*wrong, f"one process has something else from step {far[0]} on"] if far else wrong


def measured(job: Job) -> dict[str, Any]:
    """The row of a habit."""
    name, habit, began = job.name, HABITS[job.name], monotonic()
    row: dict[str, Any] = {
        "name": name,
        "members": job.members,
        "killed": job.kills and not habit.refused,
        "steps": 0,
        "max_difference_between_members": None,
    }
    row |= {"max_difference_from_one_process": None, "moved": None, "outcome": "", "note": ""}
    code = job.run()
    wrong: list[str] = []
    if code == ExitCode.USAGE and job.refusal:
        row["outcome"], row["note"] = "refused", job.refusal
    elif code != ExitCode.DONE:
        wrong = [f"the launch ended with {code}: {last_words(job.log)}"]
    else:
        wrong = judged(job, habit, row)
        row["outcome"] = "equal"
    if (row["outcome"] == "refused") != habit.refused:
        wrong.append("it is to be refused" if habit.refused else "it is not to be refused")
    if wrong:
        row["outcome"], row["note"] = "wrong", "; ".join([*wrong, row["note"]])
    row["seconds"] = round(monotonic() - began, 1)
    return row


def shown(row: dict[str, Any]) -> str:
    """A line of the table."""
    figures = [row[f"max_difference_{what}"] for what in ("between_members", "from_one_process")] + [row["moved"]]
    between, single, moved = ("-" if one is None else f"{one:.2g}" for one in figures)
    return (
        f"{row['name']:<20} {row['members']} members, {row['steps']:>2} steps, between members {between:>4}, from one "
        f"process {single:>7}, moved {moved:>5}, {row['seconds']:>4} s: {row['outcome']}  {row['note'][:200]}"
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=HABITS, action="append", metavar="NAME", help=", ".join(HABITS))
    parser.add_argument("--members", type=int, choices=tuple(SHARES), help="of all jobs; by default 2 and 3 in turn")
    parser.add_argument("--calm", action="store_true", help="nobody is killed")
    parser.add_argument("--keep", type=Path, help="folder for what workers and services write")
    parser.add_argument("--jobs", type=int, default=1, help="so many at a time")
    parser.add_argument("--backend", choices=("gloo", "nccl"), default="gloo", help="of the gradients")
    options = parser.parse_args()
    os.environ[ENV_BACKEND] = options.backend
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="antdt-habits-") as name:
        folder = options.keep or Path(name)
        with EmbeddedBroker(folder / "kafka") as broker:

            def row(numbered: tuple[int, str]) -> dict[str, Any]:
                number, habit = numbered
                members = options.members or MEMBERS[number % len(MEMBERS)]
                made = measured(Job(broker, habit, members, folder / habit, not options.calm))
                print(shown(made), flush=True)
                return made

            chosen = [one for one in enumerate(HABITS) if not options.only or one[1] in options.only]
            with ThreadPoolExecutor(options.jobs) as pool:
                rows = list(pool.map(row, chosen))
    counted = Counter(row["outcome"] for row in rows)
    print(", ".join(f"{counted[outcome]} {outcome}" for outcome in ("equal", "refused", "wrong")))
    told = {"device": DEVICE.type, "backend": options.backend, "machine": machine(), "tolerance": TOLERANCE}
    write(options.json, told | {"outcomes": counted, "habits": rows})


if __name__ == "__main__":
    main()
