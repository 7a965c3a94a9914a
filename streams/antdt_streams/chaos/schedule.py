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
    """What can go wrong. `stop` is SIGSTOP with a SIGCONT later, `term` SIGTERM, `kill` SIGKILL. A process that is
    `deaf` gets no record any more by the clients that it has. `preempt` is SIGTERM, and SIGKILL for those that are
    still there a moment later. `long-step`: in the middle of one that takes seconds. `full-disk`: nothing more can be
    written.
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
    SECOND_LAUNCH = "second-launch"
    PREEMPT_EVERYBODY = "preempt-everybody"
    FULL_DISK = "full-disk"
    POISON_SAMPLE = "poison-sample"
    TERM_LONG_STEP = "term-long-step"
    KILL_SERVER = "kill-server"
    KILL_SERVERS = "kill-servers"
    STOP_SERVER = "stop-server"


# Of parameter servers; and what else strikes a job that has some.
OF_SERVERS = (Kind.KILL_SERVER, Kind.KILL_SERVERS, Kind.STOP_SERVER)
WITH_SERVERS = (
    *OF_SERVERS, Kind.KILL_WORKER, Kind.KILL_WORKERS, Kind.KILL_LEDGER, Kind.KILL_STANDBY, Kind.KILL_SERVICES,
    Kind.KILL_EVERYBODY, Kind.STOP_WORKER, Kind.STOP_LEDGER, Kind.BROKER_KILL, Kind.BROKER_STOP, Kind.DEAF_WORKER,
    Kind.PREEMPT_EVERYBODY,
)  # fmt: skip
OF_MEMBERS = tuple(kind for kind in Kind if kind not in OF_SERVERS)
STOPS = tuple(kind for kind in Kind if kind.startswith("stop-"))
EVERYBODY, WORKERS = "everybody", "workers"
TAKES_OVER, REFUSED = "takes-over", "is-refused"
# Of whom one is drawn; of the workers for kinds that are not here, unless their own name says whom they strike.
ONE_OF = {
    **dict.fromkeys((Kind.TERM_SERVICE, Kind.CLOCK_SERVICE, Kind.WIPE_SERVICE), SERVICES),
    Kind.DEAF_SERVICE: (*SERVICES, STANDBY),
    Kind.SECOND_LAUNCH: (REFUSED, TAKES_OVER),
    Kind.FULL_DISK: (*SERVICES, WORKERS, EVERYBODY),
}
PREEMPTED_S = (0.5, 5.0)  # a scheduler's patience: not every worker comes to leave in it


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
    clean stop. full_s: how long the disk is full. long_step_s: how long a long step takes.
    """

    kinds: tuple[Kind, ...] = OF_MEMBERS
    workers: int = 4
    servers: int = 0
    faults: int = 5
    span_s: float = 9.0
    stop_s: float = 3.5
    outage_s: float = 2.0
    long_outage_s: float = 0.0
    shift_s: int = 3600
    samples: int = 1437
    full_s: float = 3.0
    long_step_s: float = 5.0

    def __post_init__(self) -> None:
        if self.workers < 2:
            raise UsageError(f"--workers {self.workers}: at least two are needed, so that one can die and one go on.")
        if self.faults < 1 or not self.kinds:
            raise UsageError("A schedule needs at least one fault and one kind.")
        if not self.servers and any(kind in OF_SERVERS for kind in self.kinds):
            raise UsageError("Servers can be struck where there are some: say --servers 2.")


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
    targets, lasting_s = _targets(kind, draw, options), _lasting_s(kind, draw, options)
    return Fault(at_s, kind, targets, lasting_s, draw.choice((-1, 1)) * options.shift_s if "clock" in kind else 0)


def _targets(kind: Kind, draw: Random, options: ScheduleOptions) -> tuple[str, ...]:
    workers, named = [f"w{i}" for i in range(options.workers)], kind.partition("-")[2]
    if named in (*SERVICES, STANDBY, EVERYBODY):
        return (named,)
    if BROKER in kind:
        return (BROKER,)
    if kind is Kind.KILL_SERVICES:
        return SERVICES
    if kind is Kind.KILL_WORKERS:
        return tuple(sorted(draw.sample(workers, draw.randint(2, max(2, options.workers - 1)))))
    if kind in OF_SERVERS:
        servers = [f"s{i}" for i in range(options.servers)]
        return tuple(servers) if kind is Kind.KILL_SERVERS else (draw.choice(servers),)
    if kind is Kind.POISON_SAMPLE:
        return str(draw.randrange(options.samples)), draw.choice(("raise", "kill"))
    return (draw.choice(ONE_OF.get(kind, workers)),)


def _lasting_s(kind: Kind, draw: Random, options: ScheduleOptions) -> float:
    if kind is Kind.PREEMPT_EVERYBODY:
        return round(draw.uniform(*PREEMPTED_S), 1)
    return {
        **dict.fromkeys(STOPS, options.stop_s),
        Kind.BROKER_KILL: options.outage_s,
        Kind.BROKER_STOP: options.long_outage_s or options.outage_s,
        Kind.FULL_DISK: options.full_s,
        Kind.TERM_LONG_STEP: options.long_step_s,
    }.get(kind, 0.0)
