"""A server in virtual time: the life of one, over the pure core of the data plane and a model that remembers what was
really added to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from antdt.strategies.ps.core.facts import Order
from antdt.strategies.ps.core.ordering import Ordering
from antdt.strategies.ps.core.staging import Answer, Apply, Item, Save, Staging
from antdt.worker import instructions as ask
from antdt.worker.serving import ServingLife
from antdt.worker.session import SERVER
from antdt_schemas import records

from tests.simulation.model import Model
from tests.simulation.servers.plane import Bye, Idle, Push, Saved, Staged, Told, Wanted
from tests.simulation.servers.process import Process
from tests.simulation.trainer import FILE_FAILS, Steps

if TYPE_CHECKING:
    from tests.simulation.servers.world import ServedWorld
    from tests.simulation.world import Launch

HEARD = (1, 1, 2, 5, 20)  # messages of one turn


class Server(Process):
    """It holds one part of the model: `rank`, in the order of their names. The first one decides the order."""

    role, life_of = SERVER, ServingLife

    def __init__(self, world: ServedWorld, name: str, life: int, launch: Launch) -> None:
        self.peers: tuple[str, ...] = ()
        self.rank, self.saved_step, self.wanted = -1, -1, False
        self.staging: Staging | None = None
        self.ordering: Ordering | None = None
        self.writing: list[tuple[str, Model]] = []
        self.saving, self.saved = "", set[int]()
        self.file_of: dict[int, str] = {}
        super().__init__(world, name, life, launch)

    # -- what the life asks of its strategy

    @property
    def lineage(self) -> bytes:  # type: ignore[override]
        """What is in its part."""
        return self.model.lineage

    @property
    def active(self) -> int:
        """Workers that are at something."""
        return len(self.ordering.active) if self.ordering is not None else 0

    @property
    def backup(self) -> int:
        """So many need not be waited for, as the script says."""
        return self.world.backup

    @property
    def is_saving(self) -> bool:
        """Whether files were asked for that are not all there."""
        return bool(self.saving)

    # -- a generation

    def do(self, asked: ask.Instruction) -> Steps:
        """What only a server does."""
        match asked:
            case ask.Form(grant):
                self.generation, self.rank = grant.generation, self.session.rank
                self.peers = tuple(m.incarnation for m in grant.members)
                self.staging = self.ordering = None
                yield from self.pause()
            case ask.Align(grant):
                yield from self.align(grant)
            case ask.Serve():
                return (yield from self.serve())
            case ask.Obey(lost, plan, backup, _):
                self.refuse(lost, plan, backup)
            case ask.Mark():
                self.mark()
            case ask.Publish(parts):
                return (yield from self.publish(parts))
            case ask.Prune():
                self.world.prune(self.session)
            case ask.Bind():
                return 1
            case _:
                raise AssertionError(asked)
        return None

    def align(self, grant: records.Grant) -> Steps:
        """The model is that of the file."""
        world = self.world
        self.void = True
        yield from self.pause()
        self.model, self.void = world.files[grant.restore_file or ""].parts[self.rank], False
        at = self.model.step, self.model.lineage
        self.saved_step, self.staging = self.model.step, Staging(*at)
        self.writing, self.saving, self.saved, self.wanted = [], "", set(), False
        world.say(self.incarnation, f"serves part {self.rank} in generation {self.generation} from version {at[0]}")
        if self.rank == 0:
            self.ordering = Ordering(world.mode, len(self.peers), *at)

    def serve(self) -> Steps:
        """Some of what is there, or a pause."""
        self.enter("serving")
        yield from self.pause()
        self.enter("serving")
        assert self.generation is not None
        turned: tuple[ask.Parts, ...] = ()
        for _ in range(self.world.rng.choice(HEARD)):
            found = self.world.links.take(self.generation, self.incarnation, self.world.rng)
            if found is not None:
                turned += self.hear(*found)
                self.world.aim(self, 0.004, "server_killed_in_turn")
        if self.writing and self.world.rng.random() < 0.3:
            turned += self.write(*self.writing.pop(0))
        return ask.Turned(self.decided(), turned)

    def decided(self) -> list[ask.Decided]:
        """Versions since this was last asked."""
        out = []
        for made in self.ordering.versions if self.ordering is not None else ():
            ranges = tuple(number for one in made.contributions for number in one.ranges)
            out.append(ask.Decided(made.version, ranges, made.lineage, made.plan))
            self.world.count("version")
            if len(made.contributions) > 1:
                self.world.count("version_of_many")
        if self.ordering is not None:
            self.ordering.versions.clear()
        return out

    def send(self, receiver: str, message: Any) -> None:
        """To somebody of this generation."""
        assert self.generation is not None
        self.world.links.send(self.generation, self.incarnation, receiver, message)

    # -- what comes

    def hear(self, sender: str, message: Any) -> tuple[ask.Parts, ...]:
        """One message; what is saved by it."""
        assert self.staging is not None
        match message:
            case Push(facts, truth):
                self.stage(sender, facts, truth)
            case Order():
                self.obey(message)
            case Saved(rank, name):
                return self.on_saved(rank, name)
            case Wanted():
                self.wanted = True
            case _:
                self.decide(self.on_primary(sender, message))
        return ()

    def stage(self, sender: str, facts: Any, truth: tuple[int, ...]) -> None:
        """A part of a push, unless its worker is given up."""
        assert self.staging is not None
        if not self.staging.stage(Item(facts, (sender, truth))):
            self.world.count("push_of_a_lost_worker")
        elif self.ordering is None:
            self.send(self.peers[0], Staged(self.rank, facts.key))
        else:
            self.decide(self.ordering.on_staged(0, facts.key, facts))

    def on_primary(self, sender: str, message: Any) -> list[Order]:
        """What only the first server is told."""
        assert self.ordering is not None
        match message:
            case Staged(rank, key):
                return self.ordering.on_staged(rank, key)
            case Idle():
                return self.ordering.on_idle(sender)
            case Bye():
                return self.ordering.on_bye(sender)
        raise AssertionError(message)

    def refuse(self, lost: tuple[str, ...], plan: int, backup: int) -> None:
        """Whom the ledger has given up, and under which plan versions are made."""
        assert self.ordering is not None
        self.decide(self.ordering.on_lost(lost))
        self.ordering.plan = plan
        self.decide(self.ordering.set_backup(backup))
        if lost:
            self.world.count("losses_obeyed")

    # -- what follows

    def decide(self, orders: list[Order]) -> None:
        """All servers obey in this order."""
        for order in orders:
            for peer in self.peers[1:]:
                self.send(peer, order)
            self.obey(order)

    def obey(self, order: Order) -> None:
        """What this server does at this point of the order."""
        assert self.staging is not None
        for do in self.staging.obey(order):
            match do:
                case Apply(version, items, plan, _):
                    self.apply(version, items, plan)
                case Answer(item, outcome, version, _):
                    worker = item.payload[0]
                    idle = self.ordering is not None and self.ordering.somebody_is_idle
                    self.send(worker, Told(outcome, item.facts.key, version, self.model.lineage, idle))
                    self.world.count(f"contribution_{outcome}")
                case Save(name, version, lineage):
                    assert (self.model.step, self.model.lineage) == (version, lineage)
                    self.writing.append((name, self.model))

    def apply(self, version: int, items: tuple[Item, ...], plan: int) -> None:
        """What its part of each push was really computed from is in the model."""
        truth = tuple(number for item in items for number in item.payload[1])
        self.model = self.model.then(truth, plan)
        assert self.staging is not None
        assert (self.model.step, self.model.lineage) == (version, self.staging.lineage), "what is added is not told"

    # -- files

    def mark(self) -> None:
        """All save their parts behind the same version."""
        if self.ordering is None:
            self.send(self.peers[0], Wanted())
        else:
            self.saving, self.saved, self.wanted = self.world.file_name(self), set(), False
            self.decide(self.ordering.mark(self.saving))

    def write(self, name: str, model: Model) -> tuple[ask.Parts, ...]:
        """A durable part; where the disk is full, later."""
        if self.world.rng.random() < FILE_FAILS:
            self.world.count("file_failed")
            self.writing.append((name, model))
            return ()
        self.world.parts.setdefault(name, {})[self.rank] = model
        self.saved_step = model.step
        if self.rank:
            self.send(self.peers[0], Saved(self.rank, name))
            return ()
        return self.on_saved(0, name)

    def on_saved(self, rank: int, name: str) -> tuple[ask.Parts, ...]:
        """All parts are there with the last one."""
        assert name == self.saving
        self.saved.add(rank)
        if len(self.saved) < len(self.peers):
            return ()
        self.saving = ""
        model = self.world.parts[name][0]
        self.file_of[model.step] = name
        return (ask.Parts(model.step, model.lineage, model.plan, ()),)

    def publish(self, parts: ask.Parts) -> Steps:
        """The file that names all parts."""
        yield from self.pause()
        name = self.file_of[parts.version]
        if self.world.rng.random() < FILE_FAILS:
            self.world.count("file_failed")
            self.owes = True
            return None
        self.owes = False
        assert self.generation is not None
        model = self.world.make_file(name)
        self.world.aim(self, 0.15, "killed_after_file")
        return records.Checkpoint(self.generation, model.step, model.lineage, name)
