"""The detector and the ADJUST_BS law on two production traces of 10 workers (Alibaba PAI, cluster-trace-gpu-v2020).

    python -m bench.traces --data DIR [--json FILE]

DIR holds job_1_norm.csv and job_4_norm.csv. Prints what was expected and what was found, and the ratio of the total
time to a clairvoyant split of each step. A step's fixed cost is 20 % of the trace's median and known; a plan takes
effect with one step of lag and costs a tenth of an even step. The very same code runs in the Monitor and in the
Controller.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from antdt_schemas.records import Action, Decision, NodeClass, StepBatch
from antdt_streams.controller.core.state import ControllerState
from antdt_streams.monitor.core import DetectorOptions, MonitorState, Position
from antdt_streams.policies import AdjustBatchSize, NonDedicated, NonDedicatedParameters, Policy
from antdt_streams.policies.solver import solve_nd
from antdt_streams.policies.solver import step_s as seconds_of

JOBS = (1, 4)
FIXED_SHARE = 0.20
CHANGE_COST = 0.10
BILL_STEPS = 20
SAMPLES_EACH = 1024
LASTING = (NodeClass.PERSISTENT, NodeClass.DETERMINISTIC, NodeClass.LEADER, NodeClass.ABSENT)

Row = list[float]


def load(path: Path) -> list[Row]:
    """Rows of own times by worker, in the trace's own unit; a missing value repeats the one before."""
    rows: dict[int, dict[int, float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            rows.setdefault(int(line["time"]), {})[int(line["worker"])] = float(line["batch_time_norm"])
    workers = sorted({worker for row in rows.values() for worker in row})
    out: list[Row] = []
    for _, row in sorted(rows.items()):
        out.append([row[w] if w in row else out[-1][w] for w in workers])
    return out


# -- the detector


@dataclass(frozen=True, slots=True)
class Change:
    """A node's class changed with the window that ends before `row`."""

    row: int
    worker: int
    node_class: str
    severity: float


def batch(worker: int, step: int, batch_size: int, own_s: float, plan: int) -> StepBatch:
    """One step of one worker."""
    name = f"w{worker}"
    zero = (0.0,)
    return StepBatch(
        name, f"{name}-1", 1, "", "", step + 1, 0, (step,), (batch_size,), (plan,), zero, (own_s,), zero, zero
    )


def detect(rows: list[Row]) -> list[Change]:
    """Changes of class other than between healthy and transient, which come and go with the noise."""
    monitor = MonitorState()
    classes: dict[str, NodeClass] = {}
    changes: list[Change] = []
    offset = 0
    for step, row in enumerate(rows):
        for worker, own_s in enumerate(row):
            for found in monitor.process(batch(worker, step, SAMPLES_EACH, own_s, 0), Position(0, offset), step):
                for node in found.nodes:
                    old, new = classes.get(node.worker, NodeClass.UNKNOWN), node.node_class
                    classes[node.worker] = new
                    if old != new:
                        changes.append(Change(found.last_step + 1, int(node.worker[1:]), new.value, node.severity))
            offset += 1
    return changes


def workers_of(changes: list[Change], node_class: NodeClass, first: int = 0, last: int = 1 << 30) -> list[int]:
    """Who was of this class as of a change within these rows."""
    return sorted({c.worker for c in changes if c.node_class == node_class and first <= c.row <= last})


def spans(changes: list[Change], worker: int, rows: int) -> list[tuple[int, int]]:
    """From and to which rows a worker was persistent."""
    out: list[tuple[int, int]] = []
    start = None
    for change in [c for c in changes if c.worker == worker]:
        if change.node_class == NodeClass.PERSISTENT:
            start = change.row
        elif start is not None:
            out.append((start, change.row))
            start = None
    return [*out, (start, rows)] if start is not None else out


def expectations(changes: dict[int, list[Change]], rows: dict[int, int]) -> Iterator[tuple[str, str, bool]]:
    """(what was expected, what was found, whether they agree)."""
    one, four = changes[1], changes[4]
    sick = workers_of(one, NodeClass.PERSISTENT) + workers_of(one, NodeClass.DETERMINISTIC)
    yield "job 1: nobody persistent, nobody a slower class", f"{sick}", not sick
    first = min((c.row for c in one if c.worker == 6 and c.node_class == NodeClass.TRANSIENT), default=-1)
    # Its own burst begins with row 181.
    yield "job 1: worker 6 transient only, after 4 rows", f"row {first}", 181 < first <= 186
    slow = workers_of(four, NodeClass.DETERMINISTIC, last=15)
    yield "job 4: 0, 5-8 a slower class at once", f"{slow} by row 15", slow == [0, 5, 6, 7, 8]
    fast = workers_of(four, NodeClass.LEADER, last=15)
    yield "job 4: 1-4, 9 lead", f"{fast} by row 15", set(fast) <= {1, 2, 3, 4, 9} and len(fast) >= 4
    for worker in (5, 6):
        lasting = [s for s in spans(four, worker, rows[4]) if s[1] == rows[4]]
        ok = len(lasting) == 1 and lasting[0][0] - 1872 <= 25
        yield f"job 4: worker {worker} persistent from about row 1894 on", f"{lasting}", ok
    early = [s for s in spans(four, 6, rows[4]) if s[1] < 1872]
    ok = len(early) == 1 and 140 <= early[0][0] <= 175 and 470 <= early[0][1] <= 530
    yield "job 4: worker 6 persistent for a while within rows 140-500", f"{early}", ok
    for worker in (3, 9):
        found = spans(four, worker, rows[4])
        yield f"job 4: worker {worker} persistent for about 80 rows", f"{found}", len(found) == 1
    others = [w for w in workers_of(four, NodeClass.PERSISTENT) if w not in {3, 5, 6, 9}]
    yield "job 4: nobody else persistent", f"{others}", not others


# -- the law


class Track:
    """A trace as a machine: what a step costs under a split, for a fixed cost known in advance."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows, self.workers = rows, len(rows[0])
        self.even = [SAMPLES_EACH] * self.workers
        self.fixed = FIXED_SHARE * median(x for row in rows for x in row)
        self.rates = [[max(x - self.fixed, 0.05 * x) / SAMPLES_EACH for x in row] for row in rows]
        self.change_cost = CHANGE_COST * median(max(row) for row in rows)
        self.clairvoyant = sum(self.cost(self.best(rates), rates) for rates in self.rates)

    def best(self, rates: Row) -> list[int]:
        """The best split for these rates."""
        total = SAMPLES_EACH * self.workers
        split = solve_nd(total, rates, [self.fixed] * self.workers, [1] * self.workers, [total] * self.workers)
        assert split is not None
        return split

    def cost(self, split: list[int], rates: Row) -> float:
        return seconds_of(split, rates, [self.fixed] * self.workers)

    def static(self, split: list[int]) -> float:
        """Ratio to the clairvoyant when the split never changes."""
        return sum(self.cost(split, rates) for rates in self.rates) / self.clairvoyant

    def best_static(self) -> float:
        """In hindsight: the sum of the slowest is convex in the split, so a subgradient descent finds it."""
        total = float(SAMPLES_EACH * self.workers)
        share = [float(x) for x in self.best([median(r[w] for r in self.rates) for w in range(self.workers)])]
        best = self.static([round(x) for x in share])
        for round_number in range(1, 201):
            slope = [0.0] * self.workers
            for rates in self.rates:
                slowest = [x * rate for x, rate in zip(share, rates, strict=True)]
                worker = slowest.index(max(slowest))
                slope[worker] += rates[worker]
            scale = max(slope)
            share = [
                x * math.exp(-0.5 * s / scale / math.sqrt(round_number)) for x, s in zip(share, slope, strict=True)
            ]
            share = [x * total / sum(share) for x in share]
            best = min(best, self.static([round(x) for x in share]))
        return best

    def recommended(self) -> tuple[float, int]:
        """Ratio and number of plans of Monitor and Controller."""
        total, plans, _ = self._run(AdjustBatchSize())
        return total / self.clairvoyant, plans

    def started_again(self, *, balance: bool) -> list[str]:
        """Whom AntDT-ND would start again where that costs so many even steps."""
        bill_s = BILL_STEPS * median(max(row) for row in self.rows)
        parameters = NonDedicatedParameters(balance=balance, restart_s=0.0, pause_s=bill_s, cooldown_s=0.0)
        return self._run(NonDedicated(parameters))[2]

    def _run(self, policy: Policy) -> tuple[float, int, list[str]]:
        """Total time, number of plans, and who would be started again: nobody is."""
        monitor = MonitorState(DetectorOptions(fixed_s=self.fixed))
        controller = ControllerState(policy)
        split, plan, total, plans = self.even, 0, 0.0, 0
        killed: list[str] = []
        waiting: list[tuple[int, Decision]] = []
        offset = measured = 0
        for step, rates in enumerate(self.rates):
            if waiting and waiting[0][0] == step:
                decision = waiting.pop(0)[1]
                sizes = {a.worker: a.batch_size for a in decision.assignments}
                split, plan = [sizes[f"w{w}"] for w in range(self.workers)], decision.plan
            step_s = self.cost(split, rates)
            total += step_s
            for worker in range(self.workers):
                own = self.fixed + split[worker] * rates[worker]
                one = replace(batch(worker, step, split[worker], own, plan), wait_s=(step_s - own,))
                for found in monitor.process(one, Position(0, offset), step):
                    for decision in controller.process(found, Position(0, measured), step):
                        if decision.action is Action.KILL_RESTART:
                            killed.append(decision.target)
                        elif decision.action is not Action.NONE:
                            waiting.append((step + 2, decision))
                            plans, total = plans + 1, total + self.change_cost
                    measured += 1
                offset += 1
        return total, plans, killed


EXPECTED = {1: (1.116, 1.082, 1.087, 7), 4: (4.317, 1.242, 1.160, 88)}


@dataclass(frozen=True, slots=True)
class Law:
    """Ratios of total time to the clairvoyant split of each step."""

    job: int
    even: float
    best_static: float
    recommended: float
    plans: int


def compare(job: int, rows: list[Row]) -> Law:
    """All splits on one trace."""
    track = Track(rows)
    ratio, plans = track.recommended()
    return Law(job, track.static(track.even), track.best_static(), ratio, plans)


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 when an outcome of the detector differs from what was expected."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, help="folder with job_1_norm.csv and job_4_norm.csv")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args(arguments)
    traces = {job: load(options.data / f"job_{job}_norm.csv") for job in JOBS}
    changes = {job: detect(rows) for job, rows in traces.items()}
    outcomes = list(expectations(changes, {job: len(rows) for job, rows in traces.items()}))
    for job, rows in traces.items():
        killed = Track(rows).started_again(balance=True)
        outcomes.append(
            (f"job {job}: nobody started again, at a bill of {BILL_STEPS} even steps", f"{killed}", not killed)
        )
    for expected, found, ok in outcomes:
        print(f"{'ok     ' if ok else 'DIFFERS'}  {expected}: {found}")
    laws = [compare(job, rows) for job, rows in traces.items()]
    print("\nratio to the clairvoyant split       even    best static   recommended / plans")
    for law in laws:
        even, static, ratio, plans = EXPECTED[law.job]
        found = f"{law.even:.3f}   {law.best_static:.3f}         {law.recommended:.3f} / {law.plans}"
        print(f"job {law.job}   found                      {found}")
        print(f"        expected                   {even:.3f}   {static:.3f}         {ratio:.3f} / {plans}")
    if options.json:
        result = {
            "detector": [{"expected": e, "found": f, "ok": ok} for e, f, ok in outcomes],
            "changes": {job: [asdict(c) for c in found if c.node_class in LASTING] for job, found in changes.items()},
            "adjust_batch_size": [asdict(law) for law in laws],
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if all(ok for _, _, ok in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
