"""Who works on a job: every incarnation that ever joined, and the newest generation of them.

Owns who waits, is a member or is gone, and which models may still be claimed. Where a job has servers, these are its
members, and workers are attached to whatever generation is open. Must not know samples, steps or files; when a
generation is granted is decided elsewhere (`groups`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from antdt_schemas import records

from antdt_streams.ledger.core.dirty import Dirty

SERVER = "server"


@dataclass(slots=True)
class Incarnation:
    """One life of a worker or server. status: waiting, ready, member, attached, lost, displaced or left.

    launch, launcher, place: who started it, and what of this machine only one launch at a time can hold. loss: where it
    was attached, the number of its end among those of all workers of the job, from 1.
    """

    worker: str
    role: str
    host: str
    port: int
    node: str
    hardware: str
    restarts: int
    status: str = "waiting"
    claim: int | None = None
    launch: str = ""
    launcher: str = ""
    place: str = ""
    loss: int = 0

    @property
    def gone(self) -> bool:
        return self.status in ("lost", "left", "displaced")


class Members:
    """Incarnations by name, and the newest generation.

    group: the names of its members, in rank order. settled: what older generations still held has returned. restoring:
    after a roll-back every model there is belongs to an undone branch, until the next grant restores a file.

    servers: so many are a generation; 0: the workers are. attached: workers that live, where there are servers. losses:
    those that do not any more, by number. fenced: up to this one, the first server of the generation refuses them.
    """

    def __init__(self, dirty: Dirty, servers: int = 0) -> None:
        self.servers, self.fenced = servers, 0
        self.attached, self.losses = dict[str, None](), dict[int, str]()
        self.generation, self.open, self.settled = 0, False, True
        self.group: tuple[str, ...] = ()
        self.grant: records.Granted | None = None
        self.restoring = False
        self.incarnations: dict[str, Incarnation] = {}
        self.dirty = dirty

    def everybody(self) -> Iterator[str]:
        """Who is told what becomes of the generation: its members that live, and whoever is attached."""
        yield from (name for name in self.group if not self.incarnations[name].gone)
        yield from self.attached

    def took_part(self, name: str) -> bool:
        """Whether it is or was of the newest generation, or attached to any."""
        return name in self.group or name in self.attached or self.incarnations[name].loss > 0

    def dead_beside(self, name: str) -> set[str]:
        """Who of the newest generation is gone, apart from this one."""
        return {m for m in self.group if m != name and self.incarnations[m].gone}

    def _mark(self, name: str) -> None:
        self.dirty.others.add(("incarnation", name))

    def join(self, e: records.Joined) -> None:
        """A new incarnation is known."""
        assert e.incarnation not in self.incarnations, e
        who = Incarnation(e.worker, e.role, e.host, e.port, e.node, e.hardware, e.restarts)
        who.launch, who.launcher, who.place = e.launch, e.launcher, e.place
        self.incarnations[e.incarnation] = who
        if self.servers and e.role != SERVER:
            who.status = "attached"
            self.attached[e.incarnation] = None
        self._mark(e.incarnation)

    def end(self, name: str, status: str) -> None:
        """An incarnation is gone for good."""
        who = self.incarnations[name]
        assert not who.gone, (name, who)
        if name in self.attached:
            del self.attached[name]
            who.loss = len(self.losses) + 1
            self.losses[who.loss] = name
        who.status, who.claim = status, None
        self._mark(name)

    def disband(self, generation: int) -> None:
        """What there is of models and generations counts for nothing, and their numbers go on beyond this one."""
        self.open = False
        self.void_models()
        self.generation = max(self.generation, generation)

    def close(self, e: records.Closed) -> None:
        """The open generation is over."""
        assert self.open and e.generation == self.generation, e
        self.open = False

    def ready(self, e: records.Ready) -> None:
        """A member asks for the next generation, with the step that its model claims."""
        who = self.incarnations[e.incarnation]
        assert not self.open and who.status == "member", (e, who)
        assert e.claim is None or not self.restoring, e
        who.status, who.claim, who.host, who.port = "ready", e.claim, e.host, e.port
        self._mark(e.incarnation)

    def form(self, e: records.Granted) -> None:
        """The next generation begins."""
        assert not self.open and e.generation == self.generation + 1 and e.members, e
        assert e.source is None or not self.restoring, e
        self.generation, self.group, self.open, self.settled = e.generation, e.members, True, False
        self.restoring = False
        self._fence(0)
        self.grant = e
        self.dirty.others.add(("grant", 0))
        for name in e.members:
            who = self.incarnations[name]
            assert who.status in ("waiting", "ready"), (name, who)
            who.status, who.claim = "member", None
            self._mark(name)

    def settle(self, e: records.Settled) -> None:
        """This generation has reported what it began with."""
        assert e.generation == self.generation and not self.settled, e
        self.settled = True

    def fence(self, e: records.Fenced) -> None:
        """The first server of the generation refuses those that were lost up to here."""
        assert self.open and e.generation == self.generation, e
        assert self.fenced < e.losses <= len(self.losses), (e, self.fenced, len(self.losses))
        self._fence(e.losses)

    def _fence(self, losses: int) -> None:
        if self.fenced != losses:
            self.fenced = losses
            self.dirty.others.add(("fenced", 0))

    def void_models(self) -> None:
        """No model that anybody holds may be claimed."""
        self.restoring = True
        for name, who in self.incarnations.items():
            if who.claim is not None:
                who.claim = None
                self._mark(name)
