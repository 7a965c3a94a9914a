"""A worker's session against a real ledger core, in virtual time: claims, prefetch, and a ledger that is away."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from antdt.worker.session import Composition, Phase, Session, SessionOptions, Where
from antdt_schemas import codec, lineage, records
from antdt_schemas.limits import CHECKPOINTS_KEPT

from tests.helpers.ledger import SPEC
from tests.helpers.memory_ledger import MemoryBroker, MemoryLedger

LONG = replace(SPEC, samples=100_000, epochs=1, shard_size=10, workers_min=1)


class Desk:
    """Sessions of workers and a ledger; `run` lets time pass, and the ledger is there or away."""

    def __init__(self, spec: records.JobSpec, workers: int = 1, options: SessionOptions | None = None) -> None:
        self.broker = MemoryBroker.founded(spec, patience_ms=10**9)
        self.ledger = MemoryLedger(self.broker)
        where = Where("h", 1, launch="one")
        self.sessions = [Session(f"w{i}", f"w{i}.0", spec, where, options) for i in range(workers)]
        self.now_s = 1.0
        self.sent: Counter[str] = Counter()
        self.lineage, self.step = lineage.ROOT, 0

    def run(self, seconds: float, *, away: bool = False) -> None:
        for _ in range(round(seconds / 0.02)):
            self.now_s += 0.02
            self.broker.now_ms = int(self.now_s * 1000)
            requests = [r for s in self.sessions for r in s.tick(self.now_s)]
            self.sent.update(type(r.body).__name__ for r in requests)
            for request in requests:
                self.broker.send(request)
            if not away:
                self.answer()

    def answer(self) -> None:
        for reply in self.ledger.run():
            for session in self.sessions:
                session.on_reply(reply)

    def train(self, samples: int, skipped: tuple[str, ...] | None = None) -> int:
        """A step of every member; returns how many samples it had. The one before it is proven by it."""
        first, self.step = self.sessions[0], self.step + 1
        taken = [v for s in self.sessions for r in s.leases.take(samples, 8) for v in r]
        quads = [v for i in range(0, len(taken), 5) for v in (taken[i], *taken[i + 2 : i + 5])]
        self.lineage = lineage.next_lineage(self.lineage, self.step, quads)
        for session in self.sessions:
            session.proven(self.step - 1)
            session.applied(Composition(self.step, tuple(taken), self.lineage, 0, skipped))
        assert first.phase is Phase.MEMBER
        return sum(taken[4::5])


def begun(spec: records.JobSpec, workers: int = 1, options: SessionOptions | None = None) -> Desk:
    desk = Desk(spec, workers, options)
    desk.run(1)
    for session in desk.sessions:
        assert session.phase is Phase.MEMBER
        session.begin([], lineage.ROOT)
    return desk


def test_a_model_that_was_rolled_back_is_not_claimed_before_it_was_restored() -> None:
    desk = begun(SPEC, workers=2)
    first, second = desk.sessions
    assert first.grant is not None
    rolled_back = replace(first.grant, generation=2, source=None, restore_file="step-3.pt", committed=3)
    for session in desk.sessions:
        session.regroup(7, b"x" * 16)
        session.on_reply(
            records.Reply(session.worker, session.incarnation, -1, records.Status.OK, "", 2, 3, False, (), rolled_back)
        )
    second.begin([], bytes(16))  # it has got the file's model, the first one has not
    claims = []
    for session in desk.sessions:
        session.regroup(7, b"x" * 16)
        (request,) = session.tick(100.0)
        assert isinstance(request.body, records.Regroup)
        claims.append(request.body.claim)
    assert claims == [None, 7]


def test_while_the_ledger_is_away_training_goes_on_and_little_is_sent() -> None:
    desk = begun(LONG)
    for _ in range(100):  # 50 steps a second of 8 samples each
        desk.sessions[0].leases.batch_size = desk.train(8) or 8
        desk.sessions[0].leases.observe(8)
        desk.run(0.02)
    desk.sent.clear()
    for _ in range(1_500):  # 30 s
        assert desk.train(8) == 8, f"out of samples at step {desk.step}"
        desk.run(0.02, away=True)
    assert 25 <= desk.sent.total() <= 60, "not to be taken for dead; every request is a sign of life"
    assert desk.sent["Commit"] <= 20
    assert desk.sent["Lease"] <= 20
    assert desk.sessions[0].unreported >= 1_499
    desk.run(2)
    assert desk.sessions[0].committed == desk.step - 1
    desk.ledger.office.state.check()


def test_prefetch_leaves_the_others_their_share_at_the_end_of_the_data() -> None:
    """Two workers of unequal speed, each with a plan to match: nobody is left with more than a step at the end."""
    spec = replace(LONG, samples=6_000, batch_size=64, workers_min=2, shard_size=2)
    desk = begun(spec, workers=2)
    sizes = 48, 16
    for session, size in zip(desk.sessions, sizes, strict=True):
        session.leases.batch_size = size
    alone, total = 0, 0
    while total < spec.samples:
        desk.step += 1
        taken = [s.leases.take(size, 8) for s, size in zip(desk.sessions, sizes, strict=True)]
        counts = [sum(r[4] for r in ranges) for ranges in taken]
        flat = [v for ranges in taken for r in ranges for v in r]
        quads = [v for i in range(0, len(flat), 5) for v in (flat[i], *flat[i + 2 : i + 5])]
        if flat:
            desk.lineage = lineage.next_lineage(desk.lineage, desk.step, quads)
            for session in desk.sessions:
                session.applied(Composition(desk.step, tuple(flat), desk.lineage, 0))
                session.leases.observe(sum(counts))
                session.proven(desk.step)
            alone += 0 in counts
        else:
            desk.step -= 1
        total += sum(counts)
        desk.run(0.1)
    assert alone <= 2, f"{alone} steps in which one worker had nothing while the other one worked"


def test_only_what_the_ledger_accepted_counts_as_kept() -> None:
    desk = begun(LONG)
    session = desk.sessions[0]
    files = []
    for number in range(CHECKPOINTS_KEPT + 2):
        desk.train(8)
        session.proven(desk.step)
        desk.run(0.5)
        assert session.committed == desk.step
        good = desk.lineage if number != 1 else b"another branch.."
        session.files.wrote(records.Checkpoint(1, desk.step, good, f"f{number}", b"d" * 16))
        desk.run(1)
        assert session.files.newest is None
        files.append(desk.step)
    del files[1]
    assert list(session.files.kept_steps) == files[-CHECKPOINTS_KEPT:]
    assert [c.step for c in desk.ledger.office.state.line.checkpoints] == files[-CHECKPOINTS_KEPT:]


def test_who_comes_later_knows_what_is_kept_before_it_has_written_anything() -> None:
    """Or the files of first members that die early would never be removed."""
    desk = begun(LONG)
    session = desk.sessions[0]
    for number in range(CHECKPOINTS_KEPT + 2):
        desk.train(8)
        session.proven(desk.step)
        desk.run(0.5)
        session.files.wrote(records.Checkpoint(1, desk.step, desk.lineage, f"f{number}", b"d" * 16))
        desk.run(1)
    kept = [c.step for c in desk.ledger.office.state.line.checkpoints]
    assert min(kept) > 0
    heir = Session("w0", "w0.1", LONG, Where("h", 1, launch="one"))
    desk.sessions = [heir]
    assert list(heir.files.kept_steps) == [0], "nothing is removed by who knows of nothing"
    desk.run(1)
    assert heir.phase is Phase.MEMBER
    assert list(heir.files.kept_steps) == kept
    assert heir.grant is not None
    assert heir.grant.shard_size == LONG.shard_size


def test_the_answer_to_an_older_file_says_nothing_about_the_newest() -> None:
    desk = begun(LONG)
    session = desk.sessions[0]
    desk.train(8)
    session.proven(1)
    desk.run(0.5)
    session.files.wrote(records.Checkpoint(1, 1, desk.lineage, "old", b""))
    desk.run(0.02, away=True)
    session.files.wrote(records.Checkpoint(1, 2, desk.lineage, "new", b""))
    desk.answer()
    assert session.files.newest is not None
    assert session.files.newest.file == "new"


def test_a_commit_names_no_more_numbers_than_the_topics_take() -> None:
    desk = begun(LONG)
    session = desk.sessions[0]
    session.limit_commits(12)
    for _ in range(7):
        desk.train(8)
    session.proven(desk.step)
    desk.run(2)
    bodies = [codec.decode(payload, records.Request).body for _, payload in desk.broker.requests]
    sent = [body for body in bodies if isinstance(body, records.Commit)]
    assert desk.ledger.office.state.line.committed == 7
    assert sent
    assert all(sum(map(len, commit.compositions)) <= 12 for commit in sent)


def test_who_made_a_step_be_skipped_reaches_the_log_however_late() -> None:
    desk = begun(LONG)
    for authors in (None, ("w1",), None, ()):
        desk.train(20, authors)
        desk.run(0.1, away=True)
    desk.train(20)
    desk.run(3.0)
    bodies = [codec.decode(payload, records.Entry).body for payload in desk.broker.log]
    events = [e for body in bodies if isinstance(body, records.Cycle) for e in body.events]
    assert [e.step for e in events if isinstance(e, records.Committed)] == [1, 2, 3, 4]
    assert [e for e in events if isinstance(e, records.StepSkipped)] == [
        records.StepSkipped(2, ("w1",)),
        records.StepSkipped(4, ()),
    ]
