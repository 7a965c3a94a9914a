"""What goes wrong, beside the losses and delays that are always there. Each method is one kind; `counts` says how often
it really struck.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from antdt_schemas import codec, records

from tests.simulation.ledgers import knowledge
from tests.simulation.trainer import Worker

if TYPE_CHECKING:
    from tests.simulation.world import World

WORKERS_MAX = 7
HOUR_MS = 3_600_000
FOREIGN_OF, FOREIGN_FROM, FOREIGN_SHARE = 200, 180, 0.02


class Faults:
    """The adversary. `budget` is how many strikes are left; bursts make them come together."""

    def __init__(self, world: World, moves: Collection[int]) -> None:
        """moves: the ticks at which requests are moved."""
        self.world, self.moves = world, moves
        rng = world.rng
        self.budget = rng.choice((0, 2, 4, 8, 14))
        self.share = rng.choice((0.002, 0.006, 0.02))
        self.burst_until = self.last_tick = 0
        # Some worlds have somebody who writes what is not ours into our topics; with chances of its own, so that the
        # other worlds are what they were.
        self.foreigner = random.Random(world.seed) if world.seed % FOREIGN_OF >= FOREIGN_FROM else None
        self.kinds: list[Callable[[], bool]] = [
            *[self.worker_killed] * 4,
            self.several_killed,
            self.everybody_killed,
            *[self.worker_stalled] * 2,
            *[self.worker_suspected] * 2,
            self.zombie_worker,
            self.zombie_group,
            self.worker_drained,
            *[self.newcomer] * 2,
            *[self.ledger_killed] * 3,
            *[self.ledger_asleep] * 2,
            self.standbys_race,
            self.clock_jumps,
            *[self.service_crash] * 3,
            self.readmit,
            *[self.foreign_file] * 2,
            *[self.rollback] * 2,
            # Files of checkpoints that only lost entries had made old are gone: nobody survives both.
            *([] if world.prunes else [self.log_tail_lost] * 2),
        ]

    def maybe(self) -> None:
        """Now and then, or soon after the last strike, the next one."""
        world = self.world
        if self.foreigner is not None and self.foreigner.random() < FOREIGN_SHARE:
            self.foreign_record(self.foreigner)
        share = 0.05 if world.tick < self.burst_until else self.share
        if not self.budget or world.rng.random() >= share:
            return
        kind = world.rng.choice(self.kinds)
        if kind():
            self.struck(kind.__name__)
            if world.rng.random() < 0.5:
                self.burst_until = world.tick + world.rng.randint(10, 300)

    def struck(self, kind: str) -> None:
        """Count one strike."""
        self.budget -= 1
        self.last_tick = self.world.tick
        self.world.count(kind)

    def _workers(self) -> list[Worker]:
        return self.world.processes()

    def _pick(self, hit: Callable[[Worker], None]) -> bool:
        live = self._workers()
        if live:
            hit(self.world.rng.choice(live))
        return bool(live)

    # -- workers

    def worker_killed(self) -> bool:
        return self._pick(self.world.kill)

    def several_killed(self) -> bool:
        live = self._workers()
        if len(live) < 3:
            return False
        for worker in self.world.rng.sample(live, self.world.rng.randint(2, len(live) - 1)):
            self.world.kill(worker)
        return True

    def everybody_killed(self) -> bool:
        """Launchers as well: whoever starts them again does it in the same place."""
        self.world.launched_again()
        for worker in self._workers():
            self.world.kill(worker, back=True)
        return True

    def _stall(self, worker: Worker) -> None:
        worker.asleep_until = self.world.tick + self.world.rng.randint(50, 1500)

    def _suspect(self, worker: Worker) -> None:
        body = records.Exited(-9, "so it seemed")
        self.world.operator(body, worker.name, worker.incarnation)

    def worker_stalled(self) -> bool:
        return self._pick(self._stall)

    def worker_suspected(self) -> bool:
        """Declared lost while it lives and works."""
        return self._pick(self._suspect)

    def zombie_worker(self) -> bool:
        """Declared lost while it sleeps; it wakes up in the middle of what it was doing."""

        def hit(worker: Worker) -> None:
            self._suspect(worker)
            self._stall(worker)

        return self._pick(hit)

    def zombie_group(self) -> bool:
        """A whole working group is declared lost while others come."""
        for worker in self._workers():
            self._suspect(worker)
        return self.newcomer()

    def worker_drained(self) -> bool:
        """SIGTERM: it finishes its step and says good-bye; another one comes."""
        if len(self._workers()) < 2:
            return False

        def hit(worker: Worker) -> None:
            worker.tell()

        return self._pick(hit)

    def newcomer(self) -> bool:
        if self.world.names >= WORKERS_MAX:
            return False
        self.world.add_worker()
        return True

    def second_launch(self) -> None:
        """Somebody launches a worker that is running, from elsewhere: by mistake, or to take over."""
        live = [w for w in self._workers() if w.name not in {rival.name for rival in self.world.rivals}]
        if live and self.world.judge.fold.state is not None and self.world.judge.fold.state.members.generation:
            self.world.launch_second(self.world.second.choice(live))
            self.last_tick = self.world.tick

    def script_left(self) -> None:
        """A script leaves the loop early, by a break or an exception of its own; it is launched again."""
        live = self._workers()
        if live:
            self.world.quits.choice(live).quits = True
            self.last_tick = self.world.tick

    # -- services

    def ledger_killed(self) -> bool:
        world = self.world
        killed = bool(world.ledgers) and not world.loss  # an operator whose process dies is not what is meant here
        if killed:
            leads = [ledger for ledger in world.ledgers if not ledger.stands_by]
            victim = world.rng.choice(leads or world.ledgers)
            world.ledgers.remove(victim)
            world.say(victim.name, "is killed")
        return killed

    def ledger_asleep(self) -> bool:
        """It wakes up later, possibly in the middle of a cycle, and another one leads by then."""
        awake = [x for x in self.world.ledgers if x.asleep_until <= self.world.tick]
        for ledger in awake:
            ledger.asleep_until = self.world.tick + self.world.rng.randint(20, 1000)
            self.world.say(ledger.name, "falls asleep")
        return bool(awake)

    def standbys_race(self) -> bool:
        for _ in range(self.world.rng.randint(1, 3)):
            self.world.add_ledger(standby=self.world.rng.random() < 0.3)
        return True

    def service_crash(self) -> bool:
        self.world.services.crash_soon()
        return True

    def log_tail_lost(self) -> bool:
        """The broker has lost acknowledged entries, and an operator accepts it. Whoever leads is stopped for that."""
        world, state = self.world, self.world.judge.fold.state
        if state is None or state.done is not None or len(world.broker.log) < 4:
            return False
        world.ledgers.clear()
        kept = world.rng.randint(max(1, len(world.broker.log) - 20), len(world.broker.log) - 1)
        world.loss = True
        world.loss_is_known = max(map(knowledge, world.stores))[1] > kept
        world.say("broker", f"loses the entries from {kept} on")
        del world.broker.log[kept:]
        world.judge.restart()
        return True

    def requests_moved(self) -> None:
        """Their topic is created again, or has lost its head, or its tail, read or not."""
        broker, tick = self.world.broker, self.world.tick
        some = broker.requests_high - broker.requests_low
        match tick % 3:
            case 0:
                broker.requests_topic, broker.requests_low = f"requests-{tick}", 0
                broker.requests.clear()
            case 1:
                broker.requests_low += some
                broker.requests.clear()
            case 2:
                del broker.requests[-(some // 3) :]
        self.world.count(f"requests_{('created_again', 'head_lost', 'tail_lost')[tick % 3]}")
        self.world.say("broker", "has other requests:", broker.requests_topic, broker.requests_low)

    # -- the rest

    def foreign_record(self, rng: random.Random) -> None:
        """Junk, nothing, an unknown schema, a copy of what is there: in the log, or among the requests."""
        world = self.world
        log = world.broker.log
        if not log:
            return
        strange = codec.MARKER + rng.randbytes(8) + b"of some day"
        junk = [b"{}", b"", strange, log[0]]
        copy = rng.choice(log[-20:])
        if codec.begins_as(copy, records.Entry) and isinstance(codec.decode(copy, records.Entry).body, records.Cycle):
            junk += [copy] * 4
        if rng.random() < 0.5:
            offset = world.broker.append(rng.choice(junk))
            world.count("foreign_entry")
            world.say("somebody", "writes something into the log at", offset)
        else:
            world.broker.send(rng.choice(junk))
            world.count("foreign_request")

    def clock_jumps(self) -> bool:
        """The broker's clock is set."""
        self.world.clock_offset_ms += self.world.rng.choice((-HOUR_MS, HOUR_MS))
        return True

    def rollback(self) -> bool:
        """An operator goes back to a checkpoint, the newest or any that is kept."""
        state = self.world.judge.fold.state
        if state is None:
            return False
        step = self.world.rng.choice((-1, *(c.step for c in state.line.checkpoints)))
        self.world.operator(records.Rollback(step, f"operator-{self.world.tick}", "the loss has diverged"))
        return True

    def readmit(self) -> bool:
        self.world.operator(records.Readmit())
        self.world.later(2_000, lambda: self.world.operator(records.Readmit()))
        return True

    def foreign_file(self) -> bool:
        """Somebody tells of a file that was written before, perhaps on a branch that was undone."""
        files = [(name, s.model) for name, s in self.world.files.items() if name != "init"]
        if not files:
            return False
        name, model = self.world.rng.choice(files)
        self.world.operator(records.Checkpoint(1, model.step, model.lineage, name), "ghost", "ghost.1")
        return True
