"""The judge of a job with servers: each part of the model is held against the log."""

from __future__ import annotations

from typing import Any

from antdt.worker.session import SERVER
from antdt_schemas import records
from antdt_schemas.strategies import drops, servers_of, sharding_of
from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.dropping import REASON
from antdt_streams.ledger.core.state import State
from antdt_streams.proof.audit import audit

from tests.simulation.judge import Judge, checked


def is_dropped(event: records.Event) -> bool:
    """Whether this is in quarantine because it was too late."""
    return isinstance(event, records.Returned) and event.quarantined and not event.counted


class ServedJudge(Judge):
    """Reads the log along."""

    def event(self, event: records.Event) -> None:
        if isinstance(event, records.Checkpointed):
            self.parts_agree(event.file, event.step, event.lineage)
        elif isinstance(event, records.Fenced):
            self.world.count("fenced")
        elif isinstance(event, records.Joined):
            self.world.count(f"joined_as_{event.role}")
        elif isinstance(event, records.Dealt | records.Moved):
            self.world.count("dealt_anew" if isinstance(event, records.Dealt) and event.anew else type(event).__name__)
        elif drops(self.world.spec.strategy) and (is_dropped(event) or getattr(event, "reason", "") == REASON):
            self.world.count("dropped" if isinstance(event, records.Returned) else "drop_blamed")
        else:
            super().event(event)

    def parts_agree(self, file: str, step: int, lineage: bytes) -> None:
        """All parts are of one version."""
        parts = self.world.files[file].parts  # type: ignore[attr-defined]
        assert len(parts) == servers_of(self.world.spec.strategy), f"{file} has {len(parts)} parts"
        for part in parts:
            assert (part.step, part.lineage) == (step, lineage), f"a part of {file} holds something else"

    def committed(self, event: records.Committed) -> None:
        """Where a server of the generation has this version, it is the one that the log has; the first one has it."""
        for rank, name in enumerate(self.members[event.generation]):
            server: Any = self.world.process_of(name)
            if server is None or server.generation != event.generation or server.staging is None:
                continue
            made = server.model.at(event.step)
            assert rank or made is not None, f"{name} has not made version {event.step}"
            assert made is None or made.lineage == self.lineage_after(event), f"{name} has another version {event.step}"

    def granted(self, event: records.Granted) -> None:
        """All servers, and a file of what is committed."""
        self.world.count("generation")
        assert self.fold.state is not None
        known = self.fold.state.members.incarnations
        names = [known[m].worker for m in event.members]
        assert names == self.world.server_names, names  # type: ignore[attr-defined]
        assert all(known[m].role == SERVER for m in event.members)
        assert event.source is None and event.restore_file is not None, event
        assert event.committed == len(self.chain) - 1, event
        self.parts_agree(event.restore_file, event.committed, self.chain[-1])

    def counted(self, event: records.Returned) -> None:
        """An attempt counts for what failed by itself, or for what somebody had who died."""
        for position in range(event.start, event.start + event.length):
            assert any(b.epoch == event.epoch and b.start <= position < b.start + b.length for b, _ in self.blamed), (
                event
            )
        self.world.count("counted")

    def verdict(self) -> None:
        world, state = self.world, self.fold.state
        assert state is not None and state.done is not None, "the job did not end"
        state.check()
        stored = dict(rows.all_rows(state))
        assert dict(rows.all_rows(rows.load(State(world.spec), stored))) == stored, "rows do not give the state back"
        self.parts_agree(state.done, state.line.committed, state.line.lineage)
        for rank, part in enumerate(world.files[state.done].parts):  # type: ignore[attr-defined]
            self.agrees(part, f"part {rank} of the final model")
            seen = part.samples()
            for epoch in range(world.spec.epochs):
                apart = state.shards.epoch(epoch).quarantined
                for position in range(world.spec.samples):
                    due = not apart.overlaps(position, position + 1)
                    assert seen[epoch, position] == due, (rank, epoch, position)
        if sharding_of(world.spec.strategy) or drops(world.spec.strategy):
            self.follow_the_parts()

    def follow_the_parts(self) -> None:
        """An audit, and a checker that shares no code with it, follow what was dealt and moved, and say the same."""
        report, theirs = audit(enumerate(self.world.broker.log)), checked(self.world.broker.log)
        assert not (report["broken"] or report["missing"] or report["repeated"]), report["verdict"]
        same = ("exactly_once", "committed", "missing", "repeated", "steps", "lineage")
        assert all(theirs[name] == report[name] for name in same), [(n, theirs[n], report[n]) for n in same]
