"""Training scripts with several members as threads of one process: the real Agent and strategy, and a life that makes
fixed global batches, split unevenly, without a ledger.

A script is a function of its Agent. `trained` runs it with so many members, `Alone` is what a plain loop has instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from antdt.agent import Agent
from antdt.connect.settings import WORKER
from antdt.data.loading.loader import InThread
from antdt.data.pinning import pinning_of
from antdt.data.sources import source_of
from antdt.hand import Hand
from antdt.host import whereabouts
from antdt.job import AgentOptions
from antdt.strategies.allreduce import AllReduce, GenerationOptions
from antdt.strategies.allreduce.member import AllReduceMember
from antdt.strategies.base import GenerationClosed, Here, Part, Place
from antdt.strategies.once import Once
from antdt.strategies.together import one_model, one_optimizer
from antdt.worker import instructions as ask
from antdt.worker.plans import Plans
from antdt_schemas.batches import Cursor
from antdt_schemas.ranges import Range

PATIENCE_S = 20.0
SMALL = AllReduce(512, 2048, compare_every=1, generation=GenerationOptions(op_timeout_s=10.0))
HERE = "127.0.0.1"


class Died(Exception):
    """A member does, in the middle of its script."""


class Room:
    """Where members meet: everybody who is expected makes a generation; whoever comes back closes the one before."""

    def __init__(self, names: Sequence[str]) -> None:
        self.expected, self.number, self.generations = list(names), 0, 0
        self._claims: dict[str, Any] = {}
        self._grants: dict[int, Any] = {}
        self._done: set[str] = set()
        self._changed = threading.Condition()

    def meet(self, name: str, claim: tuple[int, str, int]) -> Any:
        """claim: the model's step, and where this member's store is."""
        with self._changed:
            assert self._changed.wait_for(lambda: name in self.expected, PATIENCE_S), f"{name} is not asked for"
            self.number = -1
            self._claims[name] = claim
            self._grant()
            assert self._changed.wait_for(lambda: name not in self._claims, PATIENCE_S), f"{name} waits alone"
            return self._grants[self.generations]

    def _grant(self) -> None:
        if not self.expected or not set(self._claims) >= set(self.expected):
            return
        self.generations += 1
        self.number = self.generations
        members = [
            SimpleNamespace(worker=name, incarnation=name, host=self._claims[name][1], port=self._claims[name][2])
            for name in self.expected
        ]
        source = max(self.expected, key=lambda name: (self._claims[name][0], -self.expected.index(name)))
        self._grants[self.generations] = SimpleNamespace(generation=self.number, members=members, source=source)
        self._claims.clear()
        self._changed.notify_all()

    def replace(self, name: str, by: Sequence[str] = ()) -> None:
        """This one is lost; others come."""
        with self._changed:
            self.expected = [one for one in self.expected if one != name] + list(by)
            self.number = -1
            self._grant()
            self._changed.notify_all()

    def until_all_are_done(self, name: str) -> None:
        """Whoever leaves first would end the exchange that another one is in."""
        with self._changed:
            self._done.add(name)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: set(self.expected) <= self._done, PATIENCE_S), self.expected


def shares(samples: int, world: int, step: int) -> list[int]:
    """Uneven, and others in every step; nobody has none where there are enough."""
    wanted = [1 + (step + 2 * rank) % 4 for rank in range(world)]
    out = [max(1, samples * one // sum(wanted)) for one in wanted]
    out[step % world] += samples - sum(out)
    return out


class InProcess(Agent):
    """An Agent whose life makes steps of fixed global batches. `history`: after every step its number, the parameters,
    and whether it was skipped.
    """

    def __init__(
        self, room: Room, name: str, model: Any, optimizer: Any, dataset: Any, batch_size: int, epochs: int = 1,
        accumulation: int = 1, cut_at: int = -1, turns: bool = False, strategy: AllReduce = SMALL,
        before: Callable[[InProcess], None] | None = None, **once: Any,
    ) -> None:  # fmt: skip
        nothing: Any = lambda *_, **__: None  # noqa: E731
        self.options, self._begun = AgentOptions(), SimpleNamespace(begin=nothing)  # type: ignore[assignment]
        self.settings = SimpleNamespace(role=WORKER)  # type: ignore[assignment]
        self.source = source_of(dataset, seed=0, size=None, shuffle=True, collate=None, pinning=pinning_of(False))
        self.loader, self.plans = InThread(self.source), Plans(batch_size)
        self.room, self.name, self.size, self.accumulation = room, name, len(dataset), accumulation
        self.epoch, self._micro, self._broken, self._course, self.before = 0, None, False, None, before
        self.batch, self.spec = batch_size, SimpleNamespace(epochs=epochs, batches="small", steps=0)  # type: ignore[assignment]
        self.history: list[tuple[int, torch.Tensor, bool]] = []
        self._weights = SimpleNamespace(made=nothing)  # type: ignore[assignment]
        self.model, self.whole = one_model(model), one_optimizer(optimizer)
        once["every"] = once.pop("scheduler_every", "step")
        self.strategy = AllReduceMember(self.model, self.whole, strategy, Here(HERE, lambda: HERE))
        self.strategy.accompany(Once(**once))
        self.stopped, self.cut_at, self.turns = False, cut_at, turns
        life = SimpleNamespace(run=self._life, ended=True, workers=(), stop=nothing)
        self._membership = SimpleNamespace(  # type: ignore[assignment]
            life=life, drain_on_sigterm=nothing, finish=self._ends, perform=nothing, is_main=False
        )
        self._client = SimpleNamespace(start=nothing, session=SimpleNamespace(rank=0))  # type: ignore[assignment]
        self._reading = SimpleNamespace(start=nothing, stop=nothing)  # type: ignore[assignment]
        self._page = whereabouts.mine()
        self._hand = Hand(None, self.source, self.loader, self.options)  # type: ignore[arg-type]
        self._hand.unit_seed = 7 if strategy.deterministic else None
        witness = SimpleNamespace(listen=nothing, saw=nothing, left_with=nothing, over=lambda _said: False)
        self._hand.witness = witness  # type: ignore[assignment]

    @property
    def rank(self) -> int:
        generation = self.strategy.generation
        return -1 if generation is None else generation.rank

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.size // self.batch)

    def global_ranges(self, step: int) -> Range:
        """All positions of the step behind so many."""
        epoch, at = divmod(step, self.steps_per_epoch)
        return Range(0, 0, epoch, at * self.batch, min(self.batch, self.size - at * self.batch))

    def _life(self) -> Generator[Any, Any, None]:
        total = self.spec.epochs * self.steps_per_epoch
        while not self.stopped:
            try:
                if self.strategy.generation is None:
                    yield ask.Form(None, lambda: False)  # type: ignore[arg-type]
                    continue
                if self.strategy.step_number == total:
                    self.strategy.generation.check()
                    yield ask.Between()
                    return
                step, world, rank = self.strategy.step_number, self.strategy.generation.world, self.rank
                whole = self.global_ranges(step)
                behind = Cursor(*divmod(step + 1, self.steps_per_epoch))
                turn = self.strategy.generation.number % world if self.turns else 0  # as while something is suspected
                place = Place((1, 0, *whole[2:]), behind, whole.length, step + 1, whole.epoch, -turn % world)
                sizes, part = shares(whole.length, world, step), (rank + turn) % world
                start, length = whole.start + sum(sizes[:part]), sizes[part]
                ranges = [Range(1 + step * world + rank, 1, whole.epoch, start, length)] if length else []
                unit = self.strategy.options.unit_size if self.strategy.options.deterministic else 0
                if unit:
                    counts = shares(-(-whole.length // unit), world, step)
                    start = whole.start + unit * sum(counts[:rank])
                    length = max(0, min(unit * counts[rank], whole.start + whole.length - start))
                    ranges = [Range(1 + step * world + rank, 1, whole.epoch, start, length)] if length else []
                units = [
                    [Range(0, 1, whole.epoch, at, min(unit, start + length - at))]
                    for at in (range(start, start + length, unit) if unit else ())
                ]
                if step == self.cut_at and length > 1:  # as if something in it was suspected
                    units = [[Range(0, 1, whole.epoch, start + at, 1)] for at in range(length)]
                yield ask.Announce(Part(ranges, 0, whole.length, place=place), length, lambda _samples: [])
                if ranges:
                    yield ask.Train(ranges, min(self.accumulation, length), length, units)
                outcome = yield ask.Finish()
                self.strategy.drop_pending(self.strategy.step_number)
                if any(row.stopping for row in outcome.rows):
                    self._membership.life.ended, self.stopped = False, True
                else:
                    self._record(outcome)
            except GenerationClosed:
                yield ask.Between()
                yield ask.Leave()
            else:
                try:
                    yield ask.Between()
                except GenerationClosed:
                    yield ask.Leave()

    def _record(self, outcome: Any) -> None:
        flat = [param.detach().reshape(-1).double() for param in self.model.parameters()]
        self.history.append((self.strategy.step_number, torch.cat(flat), outcome.skipped is not None))

    def _perform(self, asked: ask.Instruction) -> Any:
        match asked:
            case ask.Form():
                self._form()
            case ask.Announce(part):
                if self.before is not None:
                    self.before(self)
                self._first_rank = part.place.first
                self.strategy.announce(part)
            case ask.Finish():
                self._outcome = self.strategy.finish(lambda _plan: None)
                return self._outcome
            case ask.Leave():
                self._micro = None
                self.strategy.abort()
        return None

    def _form(self) -> None:
        claim = 0 if self.strategy.void else self.strategy.step_number
        grant = self.room.meet(self.name, (claim, *self.strategy.address))
        rank = next(at for at, one in enumerate(grant.members) if one.worker == self.name)
        self.strategy.form(grant, rank, lambda: self.room.number != grant.generation)
        self.strategy.align(grant, rank, None)  # type: ignore[arg-type]

    def _leave_early(self) -> None:
        self.strategy.abort()

    def _ends(self, **_: Any) -> None:
        if self.stopped or self.strategy.step_number == self.spec.epochs * self.steps_per_epoch:
            self.room.until_all_are_done(self.name)
        self.strategy.end()


Script = Callable[[InProcess], None]
Build = Callable[[], tuple[Any, Any, dict[str, Any]]]


def trained(
    world: int,
    build: Build,
    script: Script,
    dataset: Any,
    *,
    dies: tuple[int, int] | None = None,
    **words: Any,
) -> list[InProcess]:
    """The Agents of all members after the script. build: model, optimizer and what else the Agent is given.

    dies: (rank, step): that member ends in the body of the step behind this one, and another one comes in its place.
    """
    names = [f"w{rank}" for rank in range(world)]
    room = Room(names)
    if dies is not None:
        names.append("late")
    made = {}
    for name in names:
        torch.manual_seed(1 + (name == "late"))
        model, optimizer, once = build()
        made[name] = InProcess(room, name, model, optimizer, dataset, **words, **once)
    errors: list[BaseException] = []

    def run(name: str) -> None:
        try:
            script(made[name])
        except Died:
            # Its last step is in nobody's model until an exchange behind it was complete: the others, who may have been
            # in the midst of it, then make it anew, in other parts.
            del made[name].history[-1:]
            room.replace(name, ["late"])
        except BaseException as error:  # noqa: BLE001 - handed to the test
            errors.append(error)
            room.replace(name)

    threads = {name: threading.Thread(target=run, args=(name,), daemon=True) for name in names}
    for thread in threads.values():
        thread.start()
    for name, thread in threads.items():
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), f"{name} hangs"
    for agent in made.values():
        agent.strategy.detach()
    if errors:
        raise errors[0]
    return list(made.values())


class Alone:
    """What a plain loop has: the same global batches, one after another, and a record of the parameters after each."""

    def __init__(self, of: InProcess, build: Build) -> None:
        torch.manual_seed(1)
        model, self.optimizer, self.once = build()
        self.model, self._of = one_model(model), of
        self.history: list[torch.Tensor] = []

    def __iter__(self) -> Iterator[Any]:
        for epoch in range(self._of.spec.epochs):
            yield from self.epoch(epoch)

    def epoch(self, number: int) -> Iterator[Any]:
        """Its batches; parameters are recorded after the body."""
        for step in range(number * self._of.steps_per_epoch, (number + 1) * self._of.steps_per_epoch):
            yield self._of.loader.fetch([self._of.global_ranges(step)])
            flat = [param.detach().reshape(-1).double() for param in self.model.parameters()]
            self.history.append(torch.cat(flat))


def equal(agents: Sequence[InProcess], alone: Alone | None = None, tolerance: float = 1e-9) -> None:
    """Parameters after every step are equal on all members to the bit, and to those of one process to a tolerance."""
    steps: dict[int, torch.Tensor] = {}
    for agent in agents:
        for step, params, _ in agent.history:
            assert torch.equal(steps.setdefault(step, params), params), f"step {step} of {agent.name}"
    if alone is None:
        return
    assert sorted(steps) == list(range(1, len(alone.history) + 1))
    for step, params in steps.items():
        torch.testing.assert_close(params, alone.history[step - 1], rtol=tolerance, atol=tolerance, msg=f"step {step}")
    moved = (alone.history[-1] - alone.history[0]).abs().max()
    assert moved > 1e-4, "nothing was trained"
