"""The judge: reads every entry as it is appended, and holds it against what really is in models and files.

It may know what no process can: which worker is alive, and what was really added to whose model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from antdt_schemas import container, lineage, records
from antdt_schemas.batches import DROP
from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.batches import Batches
from antdt_streams.ledger.core.committing import AUTHORS_OF_SKIP_MAX
from antdt_streams.ledger.core.fold import Fold, Verdict
from antdt_streams.ledger.core.samples import ELSEWHERE, Epoch
from antdt_streams.ledger.core.state import State
from antdt_streams.proof.audit import audit

from tests.simulation.model import Model
from tools import verify_standalone

if TYPE_CHECKING:
    from tests.simulation.world import World


def checked(log: Sequence[bytes]) -> dict[str, Any]:
    """What the checker that shares no code with anything here makes of a log."""
    entries = (container.LogEntry(offset, 0, payload) for offset, payload in enumerate(log))
    with TemporaryDirectory() as folder:
        container.write(Path(folder) / "log.avro", "memory", "topic-1", entries)
        return verify_standalone.verify(f"{folder}/log.avro")


class Judge:
    """Reads the log along. Every disagreement is an AssertionError at the entry where it began."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.restart()

    def restart(self) -> None:
        """Read the log from its beginning, as it is now; what was judged before is not judged against the present."""
        self.live = False
        self.fold, self.verdicts = Fold(), list[Verdict]()
        self.members: dict[int, tuple[str, ...]] = {}
        self.chain = [lineage.ROOT]
        self.newest, self.gone_of = 0, dict[int, set[str]]()
        self.blamed: list[tuple[records.Blamed, int]] = []
        self.skipped: dict[int, tuple[str, ...]] = {}
        # Where steps have a fixed size: samples that are out, by where each was proven to fail.
        # in_tail: the epochs of what was readmitted of a sample.
        self.out: dict[int, records.Excluded] = {}
        self.in_tail: dict[int, set[int]] = {}
        for offset, payload in enumerate(self.world.broker.log):
            self.read(offset, payload)
        self.live = True

    def read(self, offset: int, payload: bytes) -> None:
        """The next entry."""
        verdict = self.fold.read(offset, payload)
        self.verdicts.append(verdict)
        body = self.fold.entry
        if not self.live:
            for event in body.events if isinstance(body, records.Cycle) and verdict is Verdict.COUNTED else ():
                self.remember(event)
            return
        if verdict is Verdict.VOID:
            self.world.count("void_entry")
        if isinstance(body, records.Leader):
            self.world.say("LOG", offset, body.leader_id, "takes office")
        elif isinstance(body, records.Cycle):
            for event in body.events:
                self.world.say("LOG", offset, "VOID" if verdict is Verdict.VOID else "", event)
                if verdict is Verdict.COUNTED:
                    self.event(event)
                    self.remember(event)

    def remember(self, event: records.Event) -> None:
        """The lineage of every step that counts, and who was a member of which generation."""
        if isinstance(event, records.Committed):
            assert event.step == len(self.chain), (event, len(self.chain))
            self.chain.append(self.lineage_after(event))
        elif isinstance(event, records.StepSkipped):
            self.skipped[event.step] = event.authors
        elif isinstance(event, records.RolledBack):
            del self.chain[event.step + 1 :]
            self.skipped = {step: authors for step, authors in self.skipped.items() if step <= event.step}
        elif isinstance(event, records.Granted):
            self.members[event.generation] = event.members
            self.newest, self.gone_of[event.generation] = event.generation, set()
        elif isinstance(event, records.Lost | records.Left):
            if event.incarnation in self.members.get(self.newest, ()):
                self.gone_of[self.newest].add(event.incarnation)
        elif isinstance(event, records.Blamed):
            self.blamed.append((event, self.newest))
        elif isinstance(event, records.Excluded):
            self.out.setdefault(self.world.sample(event.epoch, event.start), event)
        elif isinstance(event, records.Readmitted | records.Lifted):
            for position in range(event.start, event.start + event.length):
                sample = self.world.sample(event.epoch, position)
                self.out.pop(sample, None)
                if isinstance(event, records.Readmitted):
                    self.in_tail.setdefault(sample, set()).add(event.epoch)

    def lineage_after(self, event: records.Committed) -> bytes:
        """That of the step which is committed next; the log has it of some steps only."""
        return lineage.next_lineage(self.chain[-1], event.step, event.ranges)

    def event(self, event: records.Event) -> None:
        """One event that counts, held against what there is at this moment."""
        if isinstance(event, records.Committed):
            self.committed(event)
        elif isinstance(event, records.Granted):
            self.granted(event)
        elif isinstance(event, records.Checkpointed):
            model = self.world.files[event.file].model
            assert (model.step, model.lineage) == (event.step, event.lineage), "the file holds something else"
        elif isinstance(event, records.RolledBack):
            self.world.count("rolled_back_by_operator" if event.author else "rolled_back")
            self.world.count("rollback_undid_steps" if event.step < len(self.chain) - 1 else "rollback_undid_nothing")
        elif isinstance(event, records.Returned):
            self.world.count("quarantined" if event.quarantined else "returned")
            assert not event.quarantined or event.counted, event
            if event.counted:
                self.counted(event)
        elif isinstance(event, records.Excluded):
            self.excluded(event)
        elif isinstance(event, records.Resized):
            self.world.count("resized_by_plan" if event.plan else "resized")
            self.world.count("resized_by_launch" if event.reason.startswith("launched") else "resized_midway")
        elif isinstance(event, records.Stopped):
            self.stopped(event)
        elif isinstance(event, records.Lost):
            self.world.count("displaced" if event.by else "lost")
        elif isinstance(event, records.Readmitted | records.Lifted):
            self.world.count(type(event).__name__.lower())
        elif isinstance(event, records.Regressed):
            self.world.loss = False
            self.world.count("loss_accepted")
        elif isinstance(event, records.Blamed):
            where = self.world.failures.get(event.incarnation, ()) or self.world.deaths[event.incarnation]
            of_it = zip(where[::3], where[1::3], where[2::3], strict=True)
            inside = [a <= event.start and event.start + event.length <= a + n for e, a, n in of_it if e == event.epoch]
            assert any(inside), f"{event} names what was never at hand: {where}"
            self.world.count("blamed_alive" if event.incarnation in self.world.failures else "blamed_dead")
        elif isinstance(event, records.RequestsMoved):
            self.world.count("requests_moved")
        elif isinstance(event, records.Refused):
            self.world.count(f"refused_{event.kind}")

    def counted(self, event: records.Returned) -> None:
        """An attempt counts for what failed by itself, or for what somebody had who died alone; for nothing else."""
        for position in range(event.start, event.start + event.length):
            of_it = [
                (b, generation)
                for b, generation in self.blamed
                if b.epoch == event.epoch and b.start <= position < b.start + b.length
            ]
            assert any(
                b.incarnation in self.world.failures or self.gone_of[generation] == {b.incarnation}
                for b, generation in of_it
            ), f"{event}: {of_it}"
        self.world.count("counted")

    def committed(self, event: records.Committed) -> None:
        """Whoever is a member holds this very step."""
        after = self.lineage_after(event)
        for name in self.members[event.generation]:
            model = self.model_of(name)
            made = model and model.at(event.step)
            assert model is None or (made is not None and made.lineage == after), (
                f"step {event.step} is committed, but not in the model of {name}"
            )

    def granted(self, event: records.Granted) -> None:
        """The source holds all that is committed; a file to be restored is there."""
        self.world.count("generation")
        assert event.committed == len(self.chain) - 1, event
        if event.source is None:
            assert event.restore_file == "init" or event.restore_file in self.world.files, event
            return
        worker = self.world.process_of(event.source)
        if worker is not None:
            assert not worker.void, f"the source {event.source} holds no valid model"
            self.agrees(worker.model, f"the source {event.source}")

    @property
    def stated(self) -> int:
        """The batch size that scripts state."""
        shards = self.fold.state.shards if self.fold.state is not None else None
        return shards.stated if isinstance(shards, Batches) else self.world.spec.batch_size

    def model_of(self, incarnation: str) -> Model | None:
        """Its model, if its process is alive and holds one."""
        worker = self.world.process_of(incarnation)
        return None if worker is None or worker.void else worker.model

    def agrees(self, model: Model, whose: str) -> None:
        """The model holds every committed step, each exactly as the log has it."""
        committed = len(self.chain) - 1
        assert model.step >= committed, f"{whose} is at step {model.step}, {committed} are committed"
        for made in model.steps():
            if made.step <= committed:
                assert made.lineage == self.chain[made.step], f"{whose} differs from the log in step {made.step}"

    def whole(self, model: Model, shards: Batches) -> None:
        """Members together really computed, in each step, what the log says that it consists of."""
        for made in model.steps():
            executed, _, *place = made.ranges
            due = [(p.epoch, p.start + k) for p in shards.holes.live(executed, *place) for k in range(p.length)]
            truth = [(r.epoch, r.start + k) for r in made.truth or () for k in range(r.length)]
            assert sorted(truth) == sorted(due), f"step {made.step}: {truth} instead of {due}"

    def stopped(self, event: records.Stopped) -> None:
        """Nobody who is a member has made a step behind it."""
        self.world.count("stopped")
        for name in self.members[self.newest]:
            model = self.model_of(name)
            assert model is None or model.step <= event.step, f"{name} is at step {model.step}, behind {event}"

    def excluded(self, event: records.Excluded) -> None:
        """Only what fails by itself, or what somebody died of alone, again and again, is left out."""
        self.world.count("excluded")
        assert event.length == 1, event
        sample = self.world.sample(event.epoch, event.start)
        root = self.out.get(sample)
        if event.reason.startswith(ELSEWHERE):
            assert root is not None and f" {root.start} of epoch {root.epoch}: " in event.reason, (event, root)
            assert root.epoch < event.epoch or event.epoch in self.in_tail.get(sample, ()), (event, root)
            self.world.count("left_out_later")
            return
        if root is not None:
            self.world.count("proven_again")
        if sample in self.world.ever_poison:
            self.world.count("poison_excluded")
            return
        exactly = (event.epoch, event.start, 1)
        framed = [name for name, where in self.world.deaths.items() if tuple(where) == exactly]
        assert len(framed) >= self.world.spec.max_attempts, f"innocent: {event}"
        self.world.count("framed_by_the_adversary")

    def may_fail(self, epoch: int, position: int, generation: int | None) -> None:
        """Whoever fails at a sample in this generation is not one whose members know that it is out."""
        sample = self.world.sample(epoch, position)
        root, tail = self.out.get(sample), self.in_tail.get(sample, set())
        if not self.world.spec.batches or root is None or generation is None or generation < root.generation:
            return
        both = {epoch, root.epoch} <= tail  # it failed where it was readmitted, or did not
        assert not both and (epoch <= root.epoch or epoch in tail), f"position {position} of epoch {epoch}: {root}"

    def verdict(self) -> None:
        """At the end: log, ledgers and the final model agree, and every sample is where it must be exactly once."""
        world, state = self.world, self.fold.state
        assert state is not None and state.done is not None, "the job did not end"
        state.check()
        stored = dict(rows.all_rows(state))
        assert dict(rows.all_rows(rows.load(State(world.spec), stored))) == stored, "rows do not give the state back"
        model = world.files[state.done].model
        assert (model.step, model.lineage) == (state.line.committed, state.line.lineage), (
            "the final file is not the last step"
        )
        # Where many are to blame, the log names the first of them.
        skipped = {m.step: m.skipped[:AUTHORS_OF_SKIP_MAX] for m in model.steps() if m.skipped is not None}
        assert skipped == self.skipped, "the log does not say which steps the final model was left out of"
        self.agrees(model, "the final model")
        for worker in world.workers.values():
            if worker.alive and worker.life.workers and worker.generation == state.members.generation:
                self.agrees(worker.model, worker.incarnation)
        seen = model.samples()
        if isinstance(state.shards, Batches):
            self.whole(model, state.shards)
            self.ends(model, state, state.shards)
        late, tail = self.late(state), self.tail(state)
        for epoch in range(world.spec.epochs):
            found = state.shards.epochs.get(epoch) or Epoch()  # this state is that of a reader, and stays as it is
            apart, trained = found.quarantined, found.cursor if world.spec.batches else world.spec.samples
            for position in range(world.spec.samples):
                taken_out = bool(apart.overlaps(position, position + 1)) or (epoch, position) in late
                # What was readmitted is, also where fewer epochs are reached since: a roll-back, and smaller steps.
                due = (position < trained or (epoch, position) in tail) and not taken_out
                assert seen[epoch, position] == due, (epoch, position)
        world.services.check()

    def late(self, state: State) -> set[tuple[int, int]]:
        """What was readmitted, and a script has stopped the job before it."""
        shards = state.shards
        if state.stop is None or not isinstance(shards, Batches):
            return set()
        at = shards.cursor.position if shards.cursor.epoch == self.world.spec.epochs else 0
        return set(self.tail(state)[at:])

    def tail(self, state: State) -> list[tuple[int, int]]:
        """What was readmitted, in its order."""
        pieces = state.shards.holes.tail if isinstance(state.shards, Batches) else ()
        return [(piece.epoch, piece.start + number) for piece in pieces for number in range(piece.length)]

    def ends(self, model: Model, state: State, shards: Batches) -> None:
        """It has ended where it was to end: behind its epochs, as many steps as were asked for, or where it stopped.

        What an audit, and one that shares no code with it, make of the log is the same.
        """
        spec, made = self.world.spec, [m.ranges for m in model.steps()]
        of_epochs = sum(ranges[2] < spec.epochs for ranges in made)
        sizes = [spec.batch_size, *(change.batch_size for change in shards.changes)]
        assert max(ranges[4] for ranges in made) <= max(sizes)
        # There may be no such step: it was undone since, and is a part of a larger one now.
        stopped = state.stop is not None and model.step >= state.stop.step
        if stopped:
            assert state.stop is not None and model.step == state.stop.step, (model.step, state.stop)
        elif spec.steps:
            assert of_epochs == spec.steps, (of_epochs, spec.steps)
        last = max(ranges[2] for ranges in made if ranges[2] < spec.epochs)
        for epoch in range(last if stopped or spec.steps else spec.epochs):
            left = spec.samples - shards.epochs[epoch].cursor
            assert left < max(sizes) if spec.batches == DROP else left == 0, (epoch, left)
        if self.world.changes.at or spec.steps or self.world.counts["left_out_later"]:
            self.world.count("audited")
            report = audit(enumerate(self.world.broker.log))
            assert not (report["broken"] or report["missing"] or report["repeated"]), report["verdict"]
            assert report["exactly_once"] == (not report["quarantined"]), report["verdict"]
            theirs = checked(self.world.broker.log)
            same = ("exactly_once", "committed", "missing", "repeated", "not_trained", "steps", "lineage")
            assert all(theirs[name] == report[name] for name in same), [(theirs[n], report[n]) for n in same]
            due = sum(e.committed.total for e in shards.epochs.values())
            assert report["committed"] == due and (report["stopped"] is None) == (state.stop is None)
