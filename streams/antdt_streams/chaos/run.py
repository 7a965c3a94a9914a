"""One seed from its schedule to its verdict, on a broker of its own."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

from antdt_schemas.errors import AntdtError

from antdt_streams.broker import BrokerOptions, EmbeddedBroker
from antdt_streams.chaos import clock, judge
from antdt_streams.chaos.driver import Bounds, Driver
from antdt_streams.chaos.launches import Training
from antdt_streams.chaos.schedule import BROKER, STANDBY, Fault, Kind, ScheduleOptions, schedule
from antdt_streams.chaos.world import LEDGERS, World
from antdt_streams.local.supervise import Start, start_process

CATCH_UP_S = 30.0
POLL_S = 0.1
POISONED_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Profile:
    schedule: ScheduleOptions
    training: Training
    bounds: Bounds = field(default_factory=Bounds)


PROFILES = {
    "short": Profile(ScheduleOptions(), Training()),
    "long": Profile(
        ScheduleOptions(faults=12, span_s=90.0, stop_s=8.0, outage_s=4.0, long_outage_s=30.0),
        Training(epochs=45, patience_ms=5000),
        Bounds(end_s=180.0),
    ),
}


@dataclass(slots=True)
class Verdict:
    seed: int
    faults: list[Fault]
    carried_out: list[Fault]
    wrong: list[str]
    wall_s: float
    audit: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def passed(self) -> bool:
        return not self.wrong

    def to_json(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "passed": self.passed,
            "wrong": self.wrong,
            "wall_s": round(self.wall_s, 2),
            "faults": [asdict(f) | {"carried_out": f in self.carried_out} for f in self.faults],
            "audit": {k: v for k, v in self.audit.items() if not isinstance(v, list)},
            "logs": str(self.folder) if self.folder else None,
        }


def available(profile: Profile) -> tuple[Profile, list[str]]:
    """The profile with the kinds that this machine can do, and why others are left out."""
    if clock.library() is not None:
        return profile, []
    kinds = tuple(k for k in profile.schedule.kinds if k is not Kind.CLOCK_BROKER)
    return replace(profile, schedule=replace(profile.schedule, kinds=kinds)), [clock.MISSING]


class Chaos:
    """Runs seeds in a folder; that of a seed stays behind if anything is wrong."""

    def __init__(
        self, folder: Path, profile: Profile, stopping: threading.Event | None = None, start: Start = start_process
    ) -> None:
        self.folder, self.profile, self.stopping = folder, profile, stopping or threading.Event()
        self.start = start

    def run(self, seed: int) -> Verdict:
        faults = schedule(seed, self.profile.schedule)
        folder, began = self.folder / f"seed-{seed}", monotonic()
        shutil.rmtree(folder, ignore_errors=True)
        verdict = Verdict(seed, faults, [], [], 0.0, folder=folder)
        broker_clock = clock.Clock(folder / "clocks" / BROKER)
        prefix = broker_clock.prefix() if Kind.CLOCK_BROKER in self.profile.schedule.kinds else ()
        with EmbeddedBroker(folder / "kafka", BrokerOptions(prefix=prefix)) as broker:
            # Half of the runs have a hot standby, half live by restarts alone.
            standby = seed % 2 == 0 or any(STANDBY in f.targets for f in faults)
            training = replace(self.profile.training, seed=seed, standby=standby)
            if any(f.kind is Kind.POISON_SAMPLE for f in faults):
                training = replace(training, one_by_one=True, max_attempts=POISONED_ATTEMPTS)
            world = World(broker, f"chaos-{seed}", folder, training, self.start)
            world.clocks[BROKER] = broker_clock
            try:
                world.open()
                carried = Driver(world, faults, self.stopping, self.profile.bounds).run()
                verdict.carried_out = carried.done
                verdict.wrong += [carried.failure] if carried.failure else self._services(world)
            finally:
                world.close()
            self._judge(world, verdict)
        verdict.wall_s = monotonic() - began
        if verdict.passed:
            shutil.rmtree(folder, ignore_errors=True)
            verdict.folder = None
        return verdict

    def _services(self, world: World) -> list[str]:
        """Monitor and Controller must come to the end of their input, and to what an undisturbed one writes."""
        wrong, until = list[str](), monotonic() + CATCH_UP_S
        for service, topic in judge.judged_services():
            while True:
                outputs = judge.outputs_of(world.broker.connection, world.job, service, topic)
                if outputs.complete or outputs.wrong or monotonic() > until:
                    break
                world.look()
                self.stopping.wait(POLL_S)
            wrong += outputs.wrong
            if not outputs.complete:
                wrong.append(f"The {service.name} wrote {len(outputs.found)} of {len(outputs.expected)} outputs.")
        return wrong

    def _judge(self, world: World, verdict: Verdict) -> None:
        connection, job = world.broker.connection, world.job
        try:
            entries = judge.entries_of(connection, job)
            verdict.audit, wrong = judge.judge_log(entries)
            verdict.wrong += wrong
            verdict.wrong += judge.judge_quarantine(entries, [int(sample) for sample in world.poison])
            for name in LEDGERS[: 1 + world.training.standby]:
                verdict.wrong += judge.judge_cache(connection, job, world.state_folder(name), entries)
            if not verdict.wrong:
                verdict.wrong += judge.judge_records(entries, world.records)
                verdict.wrong += judge.judge_result(verdict.audit, world.result)
        except AntdtError as error:
            verdict.wrong.append(f"The log cannot be judged: {error}")


def counts(verdicts: Sequence[Verdict], kinds: Sequence[Kind]) -> dict[str, int]:
    """How often each kind was carried out."""
    found = Counter(fault.kind for verdict in verdicts for fault in verdict.carried_out)
    return {str(kind): found[kind] for kind in kinds}
