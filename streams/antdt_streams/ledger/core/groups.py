"""What holds for a group of workers that train one model together: one set of rules for each strategy.

Owns who may join, take and commit, what becomes of a generation when somebody comes or goes, when the next one is
granted and why not yet, and what settles. Rules only look at a state and say which events follow. Must not know
requests or answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import ClassVar, Protocol

from antdt_schemas import records
from antdt_schemas.errors import Mismatch
from antdt_schemas.strategies import COLONY, EVEN, WATCHED, kind_of, server_name

from antdt_streams.ledger.core import later
from antdt_streams.ledger.core.batches import Batches
from antdt_streams.ledger.core.members import SERVER, Incarnation
from antdt_streams.ledger.core.state import State

REASON_CHARS_MAX = 300
NAMED_MAX = 4  # servers in a sentence


class GroupRules(Protocol):
    """The rules of one strategy. name: the kind of what a job names as `JobSpec.strategy`."""

    name: ClassVar[str]

    def may_join(self, s: State, worker: str, role: str) -> str | None:
        """Why nobody of this name and role has a place in the job, or None."""

    def may_take(self, s: State, who: str) -> str | None:
        """Why this incarnation, which takes part in the open generation, is leased no samples, or None."""

    def takers(self, s: State) -> int:
        """Among how many what is left of the samples is shared."""

    def on_join(self, s: State, who: str) -> Iterable[records.Event]:
        """What follows once this incarnation has joined."""

    def on_loss(self, s: State, who: str, why: str) -> Iterable[records.Event]:
        """What follows once this incarnation is gone, whether it was lost or has left. why: a sentence."""

    def grant(self, s: State) -> tuple[tuple[records.Event, ...], str]:
        """The events that begin the next generation, none while it is not due; and the reason, either way."""

    def may_commit(self, s: State, who: str) -> str | None:
        """Why this member of the open generation may not report steps, or None."""

    def settles(self, s: State) -> bool:
        """Whether the open generation has reported all steps that it began with: whatever older generations still
        hold is in no model.
        """


class AllOfThem:
    """What holds where a generation completes no step without one of its members."""

    def on_loss(self, s: State, who: str, why: str) -> Iterator[records.Event]:
        """It ends."""
        if s.members.open and who in s.members.group:
            yield closed(s, why)


class AllReduce(AllOfThem):
    """Every member holds the whole model, and all of them take every step together.

    So whoever comes or goes ends the generation; any member of the last one may be the source of the next.
    """

    name: ClassVar[str] = "allreduce"

    def may_join(self, s: State, worker: str, role: str) -> str | None:
        """Workers only."""
        return f"{worker} is a server, and this job has none: start it as a worker." if role == SERVER else None

    def may_take(self, s: State, who: str) -> str | None:
        """All of them take."""
        return None

    def takers(self, s: State) -> int:
        """All members."""
        return len(s.members.group)

    def on_join(self, s: State, who: str) -> Iterator[records.Event]:
        """A newcomer can take part from the next generation on: the open one is closed for it."""
        if s.members.open:
            yield closed(s, f"{s.members.incarnations[who].worker} joins")

    def grant(self, s: State) -> tuple[tuple[records.Event, ...], str]:
        """When every member of the last generation has asked or is gone; the first one, when enough have joined."""
        who = s.members
        if who.open:
            return (), f"generation {who.generation} is open"
        late = next((m for m in who.group if who.incarnations[m].status == "member"), None)
        if late is not None:
            return (), f"{late} did not ask for the next one yet"
        asking = {n: i for n, i in who.incarnations.items() if i.status in ("waiting", "ready")}
        if not asking or (who.generation == 0 and len(asking) < s.spec.workers_min):
            return (), f"{len(asking)} of {s.spec.workers_min if who.generation == 0 else 'any'} workers ask for it"
        return self._next(s, asking)

    def _next(self, s: State, asking: Mapping[str, Incarnation]) -> tuple[tuple[records.Event, ...], str]:
        """Whoever holds at least the committed step may be the source; nobody: roll back to the newest checkpoint."""
        committed, number = s.line.committed, s.members.generation + 1
        members = ranked(asking)
        holders = [(i.claim, n) for n, i in asking.items() if i.claim is not None and i.claim >= committed]
        if holders:
            step, source = max(holders)
            granted = records.Granted(number, members, source, step, committed, None)
            return (*excluded(s, number, step), granted), f"{source} holds step {step}"
        newest = s.line.checkpoints[-1]
        granted = records.Granted(number, members, None, None, newest.step, newest.file)
        out = excluded(s, number, newest.step)
        if committed > newest.step:
            reason = "nobody holds a model with everything committed"
            return (records.RolledBack(newest.step, reason), *out, granted), reason
        return (*out, granted), f"{newest.file} holds step {newest.step}"

    def may_commit(self, s: State, who: str) -> str | None:
        """One of them speaks for all: the first."""
        first = s.members.group[0]
        return None if who == first else f"Only the first member commits: {first}."

    def settles(self, s: State) -> bool:
        """The source's steps are in every member's model: as long as one is not committed, old leases may be in it.

        Found by killing a worker after the broker was away: the source held 109 steps, a commit holds 64.
        """
        assert s.members.grant is not None
        return s.line.committed >= (s.members.grant.source_step or 0)


class LocalSGD(AllReduce):
    """Members take several steps of the optimizer by themselves, then average: that is one step of the log.

    Only averages are claimed, committed and saved, and between two of them nobody has a model that the others could go
    on from. So a generation that ends in the midst of a period loses it whole, and the rules are AllReduce's.
    """

    name: ClassVar[str] = "local-sgd/every=N"


class InUnits(AllReduce):
    """Gradients are added up in one order. Nobody but the members knows a difference."""

    name: ClassVar[str] = "allreduce/unit=N"


class Watched(AllReduce):
    """A framework trains, and the ledger only knows who takes part. A generation is those who are there at a time, so
    that what they measure can be compared; nothing is handed out, reported or finished in it.
    """

    name: ClassVar[str] = WATCHED

    def may_take(self, s: State, who: str) -> str | None:
        """Nobody."""
        return "This job is only watched: its samples are handed out by the framework that trains it."

    def may_commit(self, s: State, who: str) -> str | None:
        """Nobody."""
        return "This job is only watched: no step of it is committed."


class ParameterServer(AllOfThem):
    """Servers hold the model, each a part of it; workers only push to them, and are attached to any open generation.

    So workers come and go without an end of it: the first server learns whom it has to refuse (rule 17), and says so
    with a commit. Without one of the servers the model is gone, and with a part of another step it would be none: all
    of them go back to one checkpoint, and none of them is ever a source (rule 18).
    """

    name: ClassVar[str] = "ps-bsp/servers=N"

    def may_join(self, s: State, worker: str, role: str) -> str | None:
        """A server is named after its part."""
        parts = [server_name(part) for part in range(s.members.servers)]
        if (role == SERVER) == (worker in parts):
            return None
        if role == SERVER:
            return f"{worker} is none of the servers of this job, which are {', '.join(parts)}."
        return f"{worker} is the name of a server of this job: give this worker another one."

    def may_take(self, s: State, who: str) -> str | None:
        """Workers only."""
        return None if who in s.members.attached else f"{who} is a server: samples are leased to workers."

    def takers(self, s: State) -> int:
        """All workers."""
        return len(s.members.attached)

    def on_join(self, s: State, who: str) -> Iterator[records.Event]:
        """Workers are attached; a server is waited for."""
        yield from ()

    def grant(self, s: State) -> tuple[tuple[records.Event, ...], str]:
        """When all servers ask for it; the first one, when enough workers have joined."""
        who = s.members
        if who.open:
            return (), f"generation {who.generation} is open"
        asking = {n: i for n, i in who.incarnations.items() if i.role == SERVER and i.status in ("waiting", "ready")}
        if len(asking) < who.servers:
            return (), f"{len(asking)} of {who.servers} servers ask for it{self._missing(s, asking)}"
        if who.generation == 0 and len(who.attached) < s.spec.workers_min:
            return (), f"{len(who.attached)} of {s.spec.workers_min} workers have joined"
        newest = s.line.checkpoints[-1]
        granted = records.Granted(who.generation + 1, ranked(asking), None, None, newest.step, newest.file)
        if s.line.committed > newest.step:
            reason = "servers go on from a file only"
            return (records.RolledBack(newest.step, reason), granted), reason
        return (granted,), f"{newest.file} holds step {newest.step}"

    def _missing(self, s: State, asking: Mapping[str, Incarnation]) -> str:
        """Which do not, by name: those that are in the last generation still, and those that are nowhere."""
        there = {asker.worker for asker in asking.values()}
        late = {
            s.members.incarnations[m].worker for m in s.members.group if s.members.incarnations[m].status == "member"
        }
        names = [name for name in map(server_name, range(s.members.servers)) if name not in there]
        said = [f"{name} did not yet" if name in late else f"{name} is not there" for name in names[:NAMED_MAX]]
        more = len(names) - len(said)
        return f": {', '.join(said)}{f', and {more} more' if more else ''}"

    def may_commit(self, s: State, who: str) -> str | None:
        """The first server decides the order of all steps, and knows them before anybody else."""
        first = s.members.group[0]
        return None if who == first else f"Only the first server commits: {first}."

    def settles(self, s: State) -> bool:
        """It began with a file: nothing that older generations hold can be in its model."""
        return True


class Asynchronous(ParameterServer):
    """Each push is a step. When servers apply what is nothing to the ledger."""

    name: ClassVar[str] = "ps-asp/servers=N"


class Dropping(ParameterServer):
    """What comes too late is thrown away. Which samples that costs is decided elsewhere (`dropping`)."""

    name: ClassVar[str] = "ps-bsp/drop/servers=N"


class BoundedStaleness(ParameterServer):
    """So, and workers wait for each other at some distance."""

    name: ClassVar[str] = "ps-ssp=N/servers=N"


_SERVED: tuple[GroupRules, ...] = (ParameterServer(), Asynchronous(), BoundedStaleness())
_ALL: tuple[GroupRules, ...] = (AllReduce(), InUnits(), LocalSGD(), Watched(), *_SERVED, Dropping())
# How samples are dealt out ahead is nothing to a group.
RULES: Mapping[str, GroupRules] = {rules.name: rules for rules in _ALL} | {
    rules.name.replace("/", f"/{sharding}/", 1): rules for rules in _SERVED for sharding in (EVEN, COLONY)
}


@cache
def rules_of(strategy: str) -> GroupRules:
    """The rules of a strategy. Raises Mismatch: there are none here."""
    kind = kind_of(strategy)
    if kind not in RULES:
        raise Mismatch("The strategy of the job", f"one of {', '.join(sorted(RULES))}", strategy, "Upgrade antdt.")
    return RULES[kind]


def excluded(s: State, generation: int, source_step: int) -> tuple[records.Event, ...]:
    """What is left out from this generation on, which goes on behind that step, and what is not any more."""
    if not isinstance(s.shards, Batches):
        return ()
    proven = tuple(s.shards.exclusions_due(generation, source_step))
    return (*proven, *later.changes(s, proven, generation, source_step))


def ranked(asking: Mapping[str, Incarnation]) -> tuple[str, ...]:
    """Members of the next generation, in the natural order of their names."""
    return tuple(sorted(asking, key=lambda n: (natural(asking[n].worker), n)))


def closed(s: State, reason: str) -> records.Closed:
    """The end of the open generation."""
    return records.Closed(s.members.generation, reason[:REASON_CHARS_MAX])


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key under which w2 comes before w10."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(p)) if p.isdigit() else (1, p) for p in parts)
