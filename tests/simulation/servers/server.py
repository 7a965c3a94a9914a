"""A server in virtual time: the pure core of the data plane, and a model that remembers what was really added to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from antdt.strategies.ps.core.facts import Order
from antdt.strategies.ps.core.ordering import Ordering
from antdt.strategies.ps.core.staging import Answer, Apply, Item, Save, Staging
from antdt.worker.session import SERVER, Composition, Session
from antdt_schemas import records
from antdt_schemas.limits import INIT_FILE

from tests.simulation.model import Model
from tests.simulation.servers.plane import Bye, Idle, Push, Saved, Staged, Told
from tests.simulation.servers.process import Process
from tests.simulation.trainer import FILE_FAILS, Steps

if TYPE_CHECKING:
    from tests.simulation.servers.world import ServedWorld
    from tests.simulation.world import Launch


class Server(Process):
    """It holds one part of the model: `rank`, in the order of their names. The first one decides the order, commits
    and tells of files.
    """

    role = SERVER

    def __init__(self, world: ServedWorld, name: str, life: int, launch: Launch) -> None:
        super().__init__(world, name, life, launch)
        self.peers: tuple[str, ...] = ()
        self.rank = -1
        self.staging: Staging | None = None
        self.ordering: Ordering | None = None
        self.writing: list[tuple[str, Model]] = []
        self.saving, self.saved, self.saved_at = "", dict[int, bool](), 0

    # -- a generation

    def take_part(self) -> Steps:
        """Restore, then serve until it is over."""
        session, grant = self.session, self.session.grant
        assert grant is not None and grant.restore_file is not None
        self.generation, self.rank = grant.generation, session.rank
        self.peers = tuple(m.incarnation for m in grant.members)
        self.model = Model("void")
        yield from self.pause()
        if not self.stands(session, grant.generation):
            return
        self.model = self.world.files[grant.restore_file].parts[self.rank]
        self.begin(session)
        while self.stands(session, grant.generation) and not self.leaves:
            yield from self.pause()
            if self.stands(session, grant.generation):
                self.turn(session)

    def begin(self, session: Session) -> None:
        """The model is that of the file."""
        at, world = (self.model.step, self.model.lineage), self.world
        self.staging, self.ordering = Staging(*at), None
        self.writing, self.saving, self.saved, self.saved_at = [], "", {}, self.model.step
        session.begin([], self.model.lineage)
        world.say(self.incarnation, f"serves part {self.rank} in generation {self.generation} from version {at[0]}")
        if self.rank == 0:
            session.proven(self.model.step)
            self.ordering = Ordering(world.mode, len(self.peers), *at)
            self.decide(self.ordering.set_backup(world.backup))

    def turn(self, session: Session) -> None:
        """What is there."""
        self.enter("serving")
        assert self.generation is not None
        if self.ordering is not None and session.losses:
            self.refuse(session)
        found = self.world.links.take(self.generation, self.incarnation, self.world.rng)
        if found is not None:
            self.hear(*found)
            self.world.aim(self, 0.002, "server_killed_in_turn")
        if self.writing and self.world.rng.random() < 0.3:
            self.write(*self.writing.pop(0))
        if self.ordering is not None and self.wants_file(session):
            self.saving, self.saved = self.world.file_name(self), {}
            self.decide(self.ordering.mark(self.saving))

    def send(self, receiver: str, message: Any) -> None:
        """To somebody of this generation."""
        assert self.generation is not None
        self.world.links.send(self.generation, self.incarnation, receiver, message)

    # -- what comes

    def hear(self, sender: str, message: Any) -> None:
        """One message."""
        assert self.staging is not None
        match message:
            case Push(facts, truth):
                if self.staging.stage(Item(facts, (sender, truth))):
                    self.staged(Staged(self.rank, facts.key), facts)
                else:
                    self.world.count("push_of_a_lost_worker")
            case Order():
                self.obey(message)
            case Saved(rank, name, written):
                self.on_saved(rank, name, written)
            case _:
                assert self.ordering is not None
                self.decide(self.on_primary(sender, message))

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

    def staged(self, message: Staged, facts: Any) -> None:
        """It has a part."""
        if self.ordering is None:
            self.send(self.peers[0], message)
        else:
            self.decide(self.ordering.on_staged(0, message.key, facts))

    def refuse(self, session: Session) -> None:
        """Whom the ledger has given up."""
        assert self.ordering is not None
        lost = session.losses
        self.decide(self.ordering.on_lost([loss.incarnation for loss in lost]))
        session.obey(lost[-1].number)
        self.world.count("losses_obeyed")

    # -- what follows

    def decide(self, orders: list[Order]) -> None:
        """All servers obey in this order; the ledger is told at the decision."""
        assert self.ordering is not None
        for order in orders:
            for peer in self.peers[1:]:
                self.send(peer, order)
            self.obey(order)
        for made in self.ordering.versions:
            ranges = tuple(number for one in made.contributions for number in one.ranges)
            self.session.applied(Composition(made.version, ranges, made.lineage, made.plan))
            self.session.proven(made.version)
            self.world.count("version")
            if len(made.contributions) > 1:
                self.world.count("version_of_many")
        self.ordering.versions.clear()

    def obey(self, order: Order) -> None:
        """What this server does at this point of the order."""
        assert self.staging is not None
        for do in self.staging.obey(order):
            match do:
                case Apply(version, items, plan, _):
                    self.apply(version, items, plan)
                case Answer(item, outcome, version, _):
                    worker = item.payload[0]
                    self.send(worker, Told(outcome, item.facts.key, version, self.model.lineage))
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

    def wants_file(self, session: Session) -> bool:
        """Now and then, and in the end; one at a time."""
        if self.saving or session.files.newest is not None:
            return False
        version, known = self.model.step, session.files.kept_steps
        final = session.finished and session.committed == version and version not in known
        return final or version >= self.saved_at + self.world.checkpoint_every

    def write(self, name: str, model: Model) -> None:
        """A durable part, or a disk that is full."""
        written = self.world.rng.random() >= FILE_FAILS
        if written:
            self.world.parts.setdefault(name, {})[self.rank] = model
        else:
            self.world.count("file_failed")
        if self.rank:
            self.send(self.peers[0], Saved(self.rank, name, written))
        else:
            self.on_saved(0, name, written)

    def on_saved(self, rank: int, name: str, written: bool) -> None:
        """The file is there when its last part is; then it is told of."""
        assert name == self.saving
        self.saved[rank] = written
        if len(self.saved) < len(self.peers):
            return
        self.saving = ""
        if all(self.saved.values()):
            model = self.world.make_file(name)
            self.saved_at = model.step
            assert self.generation is not None
            self.session.files.wrote(records.Checkpoint(self.generation, model.step, model.lineage, name))
            self.world.aim(self, 0.15, "killed_after_file")
            self.prune()

    def prune(self) -> None:
        """What the ledger keeps no longer is removed."""
        world = self.world
        if world.prunes:
            oldest = min(self.session.files.kept_steps)
            for name in [n for n, s in world.files.items() if n != INIT_FILE and s.model.step < oldest]:
                del world.files[name]
                world.count("file_removed")
