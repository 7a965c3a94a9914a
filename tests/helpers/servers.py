"""A ledger in memory with two servers and two workers attached to them: what the tests of its rules are written in."""

from __future__ import annotations

from dataclasses import replace

from antdt_schemas import lineage, records

from tests.helpers.ledger import SPEC, Bench

PS = replace(SPEC, strategy="ps-asp/servers=2")


class Servers(Bench):
    """Names of servers begin with an s."""

    def __init__(self, spec: records.JobSpec = PS) -> None:
        super().__init__(spec)

    def say(self, who: str, body: records.RequestBody) -> records.Reply:
        if isinstance(body, records.Join) and who.startswith("s"):
            body = replace(body, role="server")
        return super().say(who, body)

    def formed(self) -> Servers:
        """The first generation."""
        self.join("w0.0", "s1.0", "s0.0", "w1.0")
        assert self.state.members.group == ("s0.0", "s1.0") and self.state.members.open
        return self

    def obey(self, losses: int, who: str = "s0.0") -> records.Reply:
        """The first server refuses these from here on, and has nothing else to report."""
        generation = self.state.members.generation
        return self.say(who, records.Commit(generation, self.step + 1, (), (), self.lineage, losses))

    def exited(self, who: str, *at: int) -> list[records.Reply]:
        """Its launcher says that it is dead, and what it was at; what follows is told."""
        return self.ledger.run([self.request(who, records.Exited(-9, "killed", at))])

    def again(self, *names: str) -> None:
        """These servers ask for the next generation."""
        for name in names:
            self.say(name, records.Regroup(self.state.members.generation, None, b"", "h", 2))

    def begun_anew(self) -> None:
        """What they go on from is what the log says."""
        line = self.state.line
        self.step, self.lineage = line.committed, line.lineage
        assert self.lineage == (line.lineage_at(self.step) or lineage.ROOT)
