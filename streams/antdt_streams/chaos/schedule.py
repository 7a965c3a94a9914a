"""Which faults a seed means: pure, the same for the same seed and options.

Kinds are dealt from shuffled decks that hold each kind once, `faults` to a seed: over consecutive seeds every kind has
the same share, and none is left to luck. When they strike and whom is drawn by the seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from antdt_schemas.errors import UsageError

SERVICES = ("ledger", "monitor", "controller")
STANDBY = "standby"
BROKER = "broker"


class Kind(StrEnum):
    """What can go wrong. `stop` is SIGSTOP with a SIGCONT later, `term` SIGTERM, `kill` SIGKILL. Who is `deaf` gets no
    record any more by the clients that it has.
    """

    KILL_WORKER = "kill-worker"
    KILL_WORKERS = "kill-workers"
    KILL_LEDGER = "kill-ledger"
    KILL_STANDBY = "kill-standby"
    KILL_MONITOR = "kill-monitor"
    KILL_CONTROLLER = "kill-controller"
    KILL_SERVICES = "kill-services"
    KILL_EVERYBODY = "kill-everybody"
    STOP_WORKER = "stop-worker"
    STOP_LEDGER = "stop-ledger"
    STOP_MONITOR = "stop-monitor"
    STOP_CONTROLLER = "stop-controller"
    TERM_WORKER = "term-worker"
    TERM_SERVICE = "term-service"
    BROKER_KILL = "broker-kill"
    BROKER_STOP = "broker-stop"
    CLOCK_BROKER = "clock-broker"
    CLOCK_SERVICE = "clock-service"
    WIPE_SERVICE = "wipe-service"
    DEAF_SERVICE = "deaf-service"
    DEAF_WORKER = "deaf-worker"


CLOCK_KINDS = (Kind.CLOCK_BROKER, Kind.CLOCK_SERVICE)
VICTIM = {
    Kind.KILL_LEDGER: "ledger",
    Kind.STOP_LEDGER: "ledger",
    Kind.KILL_STANDBY: STANDBY,
    Kind.KILL_MONITOR: "monitor",
    Kind.STOP_MONITOR: "monitor",
    Kind.KILL_CONTROLLER: "controller",
    Kind.STOP_CONTROLLER: "controller",
    Kind.BROKER_KILL: BROKER,
    Kind.BROKER_STOP: BROKER,
    Kind.CLOCK_BROKER: BROKER,
}
STOPS = (Kind.STOP_WORKER, Kind.STOP_LEDGER, Kind.STOP_MONITOR, Kind.STOP_CONTROLLER)
BROKER_GONE = (Kind.BROKER_KILL, Kind.BROKER_STOP)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: `at_s` after the first committed step, upon whom, for how long, and by how much a clock jumps."""

    at_s: float
    kind: Kind
    targets: tuple[str, ...]
    for_s: float = 0.0
    shift_s: int = 0

    def __str__(self) -> str:
        lasting = f" for {self.for_s:.1f} s" if self.for_s else ""
        shift = f" by {self.shift_s:+d} s" if self.shift_s else ""
        return f"{self.at_s:.1f} s {self.kind} {' '.join(self.targets)}{lasting}{shift}"


@dataclass(frozen=True, slots=True)
class ScheduleOptions:
    """What a schedule is made of. `stop_s`: how long a stopped process sleeps, past the patience of the ledger.

    outage_s: how long the broker is away; with `long_outage_s` above 0 that is how long it is in every deck's
    clean stop.
    """

    kinds: tuple[Kind, ...] = tuple(Kind)
    workers: int = 4
    faults: int = 5
    span_s: float = 9.0
    stop_s: float = 3.5
    outage_s: float = 2.0
    long_outage_s: float = 0.0
    shift_s: int = 3600

    def __post_init__(self) -> None:
        if self.workers < 2:
            raise UsageError(f"--workers {self.workers}: at least two are needed, so that one can die and one go on.")
        if self.faults < 1 or not self.kinds:
            raise UsageError("A schedule needs at least one fault and one kind.")


def schedule(seed: int, options: ScheduleOptions) -> list[Fault]:
    """The faults of a seed, in the order of time."""
    draw = Random(f"antdt-chaos/{seed}")
    kinds = dealt(seed, options.kinds, options.faults)
    slot_s = options.span_s / options.faults
    return [_fault(kind, (i + 0.8 * draw.random()) * slot_s, draw, options) for i, kind in enumerate(kinds)]


def dealt(seed: int, kinds: Sequence[Kind], faults: int) -> list[Kind]:
    """The kinds of a seed: `faults` cards from the endless row of shuffled decks, beginning at seed * faults."""
    out = []
    for card in range(seed * faults, (seed + 1) * faults):
        deck, place = divmod(card, len(kinds))
        out.append(Random(f"antdt-chaos-deck/{deck}").sample(kinds, len(kinds))[place])
    return out


def _fault(kind: Kind, at_s: float, draw: Random, options: ScheduleOptions) -> Fault:
    workers = [f"w{i}" for i in range(options.workers)]
    targets: tuple[str, ...]
    if kind in VICTIM:
        targets = (VICTIM[kind],)
    elif kind is Kind.KILL_WORKERS:
        targets = tuple(sorted(draw.sample(workers, draw.randint(2, max(2, options.workers - 1)))))
    elif kind is Kind.KILL_SERVICES:
        targets = SERVICES
    elif kind is Kind.KILL_EVERYBODY:
        targets = ("everybody",)
    elif kind in (Kind.TERM_SERVICE, Kind.CLOCK_SERVICE, Kind.WIPE_SERVICE):
        targets = (draw.choice(SERVICES),)
    elif kind is Kind.DEAF_SERVICE:
        targets = (draw.choice((*SERVICES, STANDBY)),)
    else:
        targets = (draw.choice(workers),)
    for_s = 0.0
    if kind in STOPS:
        for_s = options.stop_s
    elif kind in BROKER_GONE:
        for_s = options.outage_s
        if kind is Kind.BROKER_STOP and options.long_outage_s:
            for_s = options.long_outage_s
    shift_s = draw.choice((-1, 1)) * options.shift_s if kind in CLOCK_KINDS else 0
    return Fault(at_s, kind, targets, for_s, shift_s)
