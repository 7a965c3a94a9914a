"""Which rules a log is folded by: those of the version that its Genesis names.

Who changes what an event does to a state, or which rows it becomes, adds a class of states here and leaves the others
as they are: logs of before lead, for ever, to the digests that are in them. What is decided may change at any time, as
decisions are in the log.
"""

from __future__ import annotations

from collections.abc import Mapping

from antdt_schemas import records
from antdt_schemas.errors import Mismatch

from antdt_streams.ledger.core import groups
from antdt_streams.ledger.core.batches import Batches
from antdt_streams.ledger.core.line import Bounds
from antdt_streams.ledger.core.state import State


class Surviving(State):
    """In steps of a fixed size, of members that die beside others each is evidence, since two samples of one step may
    end two members, every time. It counts as an attempt only where a member survives: what ends all of them is no
    sample's fault, but narrows down as well, so that the next time fewer have suspects at hand.
    """

    def death_speaks(self, incarnation: str) -> bool:
        return isinstance(self.shards, Batches) or not self.dead_beside(incarnation)

    def _gone(self, incarnation: str, status: str) -> None:
        if not isinstance(self.shards, Batches):
            super()._gone(incarnation, status)
            return
        self.members.end(incarnation, status)
        if self.shards.clues and not self._somebody_survives():
            self.shards.doubt()

    def _blamed(self, e: records.Blamed) -> None:
        deadly = self.members.incarnations[e.incarnation].gone
        if isinstance(self.shards, Batches):
            self.shards.blame(e, deadly, counts=not deadly or self._somebody_survives())
        else:
            self.shards.blame(e, deadly)

    def _somebody_survives(self) -> bool:
        """Of the newest generation; whoever was alone in it dies alone."""
        group = self.members.group
        return len(group) == 1 or any(not self.members.incarnations[name].gone for name in group)


Surviving.how = {**State.how, records.Blamed: Surviving._blamed}


class TailSince(Surviving):
    """What is readmitted counts from the next generation on: the last step behind the epochs that an older one has
    executed is as long as the tail was then, whenever it is committed.
    """

    def _readmitted(self, e: records.Readmitted) -> None:
        if isinstance(self.shards, Batches):
            self.shards.readmit(e, self.members.generation + 1)
            self.done = None  # there is something to do again
        else:
            super()._readmitted(e)


TailSince.how = {**Surviving.how, records.Readmitted: TailSince._readmitted}


class Together(TailSince):
    """Steps of a fixed size that are reported together have one lineage, the last one's: it is the hash of theirs."""

    @property
    def tells_each(self) -> bool:
        return not isinstance(self.shards, Batches)


# 2: steps of a fixed size may be meant, which a reader of version 1 would not know. 3: their size may change, a job may
# end behind a step, topics may be meant, and members that die beside others are evidence. 4: what is readmitted counts
# from a generation on. 5: of steps that are reported together, the last one has a lineage.
STATES: Mapping[int, type[State]] = {1: State, 2: State, 3: Surviving, 4: TailSince, 5: Together}
FOLD_VERSION = max(STATES)  # of the logs that begin now


def state_of(genesis: records.Genesis, bounds: Bounds | None = None) -> State:
    """The empty state at the begin of a log.

    Raises:
        Mismatch: its rules, or those of its strategy, are not known here.
    """
    check_version(genesis.fold_version)
    groups.rules_of(genesis.spec.strategy)
    return STATES[genesis.fold_version](genesis.spec, bounds)


def check_version(version: int) -> None:
    """Raise Mismatch if a log or a leader is of rules that are not known here."""
    if version not in STATES:
        raise Mismatch(
            "The version of the log's rules", f"at most {FOLD_VERSION}", version, "Upgrade antdt to read this log."
        )
