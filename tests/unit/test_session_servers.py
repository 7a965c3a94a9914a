"""Sessions of servers and of workers attached to them, against a real ledger core in virtual time."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from antdt.connect.client import renew
from antdt.worker.session import SERVER, Composition, Phase, Session, SessionOptions, Where
from antdt_schemas import lineage, records
from antdt_schemas.records import Status

from tests.helpers.memory_ledger import MemoryBroker, MemoryLedger
from tests.helpers.servers import PS

OPTIONS = SessionOptions(prefetch_steps=2, prefetch_s=0.0, reenter_s=1.0, commit_steps_max=2)


class Desk:
    """Two servers and two workers; `run` lets time pass. deaf: whom no reply reaches."""

    def __init__(self, spec: records.JobSpec = PS) -> None:
        self.spec, self.broker = spec, MemoryBroker.founded(spec, patience_ms=10**9)
        self.ledger = MemoryLedger(self.broker)
        self.now_s, self.deaf = 1.0, set[str]()
        self.sessions: dict[str, Session] = {}
        self.sent: deque[records.Request] = deque(maxlen=5_000)
        self.step, self.lineage = 0, lineage.ROOT
        for name in ("s0", "s1", "w0", "w1"):
            self.start(name)

    def start(self, name: str, life: int = 0) -> Session:
        role = {"role": SERVER} if name.startswith("s") else {}
        where = Where("h", 1, launch="one", restarts=life)
        self.sessions[name] = made = Session(name, f"{name}.{life}", self.spec, where, OPTIONS, **role)
        return made

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.02)):
            self.now_s += 0.02
            self.broker.now_ms = int(self.now_s * 1000)
            for session in self.sessions.values():
                for request in session.tick(self.now_s):
                    self.sent.append(request)
                    self.broker.send(request)
            for reply in self.ledger.run():
                for name, session in self.sessions.items():
                    if name not in self.deaf:
                        session.on_reply(reply)

    def formed(self) -> Desk:
        """The first generation, its samples leased."""
        self.run(1.0)
        self.begin()
        self.run(0.5)
        return self

    def begin(self) -> None:
        """What servers restore is what is committed."""
        line = self.state.line
        self.step, self.lineage = line.committed, line.lineage
        for name in ("s0", "s1"):
            self.sessions[name].begin([], self.lineage)
        self.sessions["s0"].proven(self.step)

    @property
    def state(self):  # type: ignore[no-untyped-def]
        return self.ledger.office.state

    def push(self, name: str, samples: int) -> None:
        """A step of one worker's samples; the first server decides it."""
        taken = [v for r in self.sessions[name].leases.take(samples, 8) for v in r]
        assert taken
        quads = [v for i in range(0, len(taken), 5) for v in (taken[i], *taken[i + 2 : i + 5])]
        self.step += 1
        self.lineage = lineage.next_lineage(self.lineage, self.step, quads)
        self.sessions["s0"].applied(Composition(self.step, tuple(taken), self.lineage, 0))
        self.sessions["s0"].proven(self.step)

    def exited(self, name: str) -> None:
        who = self.sessions.pop(name)
        self.broker.send(records.Request(name, who.incarnation, 0, records.Exited(-9, "killed")))

    def bodies(self, kind: type) -> list[records.Request]:
        return [r for r in self.sent if isinstance(r.body, kind)]


def test_servers_and_workers_enter_a_generation() -> None:
    desk = Desk().formed()
    assert {n: (s.phase, s.rank, s.attached) for n, s in desk.sessions.items()} == {
        "s0": (Phase.MEMBER, 0, False),
        "s1": (Phase.MEMBER, 1, False),
        "w0": (Phase.MEMBER, -1, True),
        "w1": (Phase.MEMBER, -1, True),
    }
    grant = desk.sessions["w0"].grant
    assert grant is not None and [m.worker for m in grant.members] == ["s0", "s1"]
    assert {r.worker for r in desk.bodies(records.Lease)} == {"w0", "w1"}
    assert {r.worker for r in desk.bodies(records.Commit)} == {"s0"}  # the first one, which settles
    assert not desk.bodies(records.Regroup)


def test_the_first_server_commits_what_workers_pushed() -> None:
    desk = Desk().formed()
    desk.push("w0", 4), desk.push("w1", 3), desk.push("w0", 4)
    desk.run(1.0)
    assert desk.state.shards.committed_total == 11
    assert desk.sessions["w1"].committed == 3 or desk.sessions["s0"].committed == 3


def test_a_loss_is_obeyed_with_the_last_step_that_may_hold_something_of_it() -> None:
    """Steps go in several commits, and none but the one that reports the last of them says that the loss is obeyed."""
    desk = Desk().formed()
    held = desk.sessions["w0"].incarnation
    for _ in range(5):
        desk.push("w0", 1)
    desk.exited("w0")
    while not desk.sessions["s0"].losses:
        desk.run(0.02)
    assert [loss.incarnation for loss in desk.sessions["s0"].losses] == [held]
    desk.push("w1", 2)
    desk.sessions["s0"].obey(1)
    step = desk.step
    desk.push("w1", 2)
    desk.run(3.0)
    seen = [
        (c.body.first_step + len(c.body.compositions) - 1)
        for c in desk.bodies(records.Commit)
        if isinstance(c.body, records.Commit) and c.body.log_seen == 1
    ]
    assert seen and min(seen) >= step
    assert held not in desk.state.shards.held
    assert not desk.sessions["s0"].losses
    assert desk.state.shards.committed_total == 9
    desk.state.check()


def test_a_loss_is_obeyed_without_a_step_to_report() -> None:
    desk = Desk().formed()
    desk.push("w0", 4)
    desk.run(1.0)
    desk.exited("w0")
    desk.run(0.1)
    desk.sessions["s0"].obey(desk.sessions["s0"].losses[-1].number)
    desk.run(0.3)
    assert desk.state.members.fenced == 1
    assert desk.sessions["s0"].phase is Phase.MEMBER
    before = len(desk.bodies(records.Commit))
    desk.run(3.0)
    assert len(desk.bodies(records.Commit)) == before


def test_a_commit_that_was_lost_says_again_what_is_obeyed() -> None:
    desk = Desk().formed()
    desk.exited("w0")
    desk.run(0.1)
    desk.sessions["s0"].obey(1)
    desk.deaf.add("s0")
    desk.run(1.0)
    commits = [c for c in desk.bodies(records.Commit) if isinstance(c.body, records.Commit) and c.body.log_seen == 1]
    assert len(commits) > 1
    assert desk.state.members.fenced == 1
    desk.deaf.clear()
    desk.run(3.0)
    assert not desk.sessions["s0"].losses


def test_workers_follow_the_servers_into_the_next_generation() -> None:
    desk = Desk().formed()
    desk.push("w0", 4)
    desk.run(0.5)
    desk.exited("s1")
    desk.run(0.1)
    assert {s.phase for s in desk.sessions.values()} == {Phase.CLOSED}
    for session in desk.sessions.values():
        session.regroup(desk.step, desk.lineage)
    assert not desk.sessions["w0"].leases.held
    desk.run(1.0)
    assert {s.phase for s in desk.sessions.values()} == {Phase.REGROUPING}
    desk.start("s1", 1)
    desk.run(0.6)
    assert {(s.phase, s.generation) for s in desk.sessions.values()} == {(Phase.MEMBER, 2)}
    assert not [r for r in desk.bodies(records.Regroup) if r.worker.startswith("w")]
    assert desk.state.line.committed == 0  # there was no file
    desk.begin()
    desk.run(1.0)
    assert desk.sessions["w0"].leases.untaken
    desk.state.check()


def test_a_worker_that_hears_of_the_next_generation_first_leaves_the_last_one() -> None:
    desk = Desk().formed()
    desk.deaf.add("w0")
    desk.exited("s1")
    desk.run(0.1)
    desk.sessions["s0"].regroup(None, b"")
    desk.start("s1", 1)
    desk.deaf.clear()
    desk.run(1.0)
    worker = desk.sessions["w0"]
    assert (worker.phase, worker.generation) == (Phase.CLOSED, 1)
    worker.regroup(None, b"")
    assert (worker.phase, worker.generation) == (Phase.MEMBER, 2)


def test_a_worker_that_leaves_an_open_generation_comes_back_as_another_one() -> None:
    """Its connection broke, and nobody else's did: what it has pushed may be in the model or not."""
    desk = Desk().formed()
    desk.sessions["w0"].regroup(None, b"")
    desk.run(0.5)
    assert desk.sessions["w0"].phase is Phase.REGROUPING
    desk.run(3.0)
    old = desk.sessions["w0"]
    assert old.phase is Phase.LOST
    desk.sessions["w0"] = renew(old, "w0.1")
    desk.run(1.0)
    assert (desk.sessions["w0"].phase, desk.state.members.generation) == (Phase.MEMBER, 1)
    assert [loss.incarnation for loss in desk.sessions["s0"].losses] == ["w0.0"]


def test_a_grant_that_comes_before_the_own_join_is_read_is_not_entered() -> None:
    """It is read by all: whoever leases before it has joined is unknown."""
    desk = Desk()
    worker = desk.sessions["w0"]
    worker.tick(0.0)
    grant = records.Grant("run", 1, (records.Member("s0.0", "s0", "h", 1),), None, None, 0, "init")
    news = records.Reply("w0", "", -1, Status.OK, "", 1, 0, False, (), grant)
    worker.on_reply(news)
    assert worker.phase is Phase.JOINING
    worker.on_reply(replace(news, incarnation="w0.0", number=1, grant=None))
    assert (worker.phase, worker.rank) == (Phase.MEMBER, -1)


def test_a_server_never_claims_its_model_and_renews_as_a_server() -> None:
    desk = Desk().formed()
    desk.sessions["s0"].regroup(7, b"x" * 16)
    desk.run(0.1)
    (regroup, *_) = desk.bodies(records.Regroup)
    assert isinstance(regroup.body, records.Regroup) and regroup.body.claim is None
    assert renew(desk.sessions["s0"], "s0.1").role == SERVER
    assert desk.state.members.open is False  # a server that asks for the next one ends this one
