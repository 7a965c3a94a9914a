"""How far a job is: steps, generations and leaders as its log shows them, and its pace."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

from antdt_schemas import records

from antdt_streams.ledger.core.fold import Verdict
from antdt_streams.proof.walker import Read
from antdt_streams.views.projection import Projection


@dataclass(slots=True)
class Progress(Projection["Progress"]):
    """Counts are since the first entry; times are the broker's.

    done_by_s: samples in the model at the end of each second since the first lease, or the first commit where nothing
    is leased. source_step: the step that the newest generation has to be beyond to have gone on.
    """

    step: int = 0
    commits: int = 0
    committed: int = 0
    total: int = 0
    leaders: int = 0
    leader: str = ""
    generation: int = 0
    members: int = 0
    source_step: int = 0
    first_ms: int | None = None
    now_ms: int = 0
    done_by_s: list[int] = field(default_factory=list)

    def on_entry(self, read: Read) -> None:
        body, state = read.body, read.state
        if read.verdict is Verdict.LEADER and isinstance(body, records.Leader):
            self.leader = body.owner
            self.leaders += 1
        if state is None or not isinstance(body, records.Cycle) or not read.events:
            return
        self.step, self.committed, self.total = state.line.committed, state.shards.committed_total, state.samples_total
        for event in read.events:
            if isinstance(event, records.Granted):
                self.generation, self.members = event.generation, len(event.members)
                self.source_step = event.committed if event.source_step is None else event.source_step
            elif isinstance(event, records.Leased | records.Settled | records.Committed) and self.first_ms is None:
                self.first_ms = body.now_ms
        commits = sum(isinstance(event, records.Committed) for event in read.events)
        self.commits += commits
        if commits and self.first_ms is not None:
            self.now_ms = body.now_ms
            second = max(0, body.now_ms - self.first_ms) // 1000
            last = self.done_by_s[-1] if self.done_by_s else 0
            self.done_by_s += [last] * (second + 1 - len(self.done_by_s))
            self.done_by_s[second] = self.committed

    def view(self) -> Progress:
        """A copy that stays as it is."""
        return replace(self, done_by_s=self.done_by_s.copy())

    @property
    def train_s(self) -> float:
        """Seconds from the first lease, or step, to the newest commit, as the audit counts them."""
        return 0.0 if self.first_ms is None or not self.now_ms else (self.now_ms - self.first_ms) / 1000

    @property
    def speeds(self) -> list[int]:
        """Samples in each whole second so far."""
        return [b - a for a, b in pairwise([0, *self.done_by_s])]

    @property
    def leader_pid(self) -> int | None:
        """Process id of the leader, where it runs on this machine."""
        pid = self.leader.rpartition(":")[2]
        return int(pid) if pid.isdigit() else None
