"""What holds for a group of workers that train one model together: one set of rules for each strategy.

Owns who may commit, what becomes of a generation when somebody comes or goes, when the next one is granted and why not
yet, and what settles. Rules only look at a state and say which events follow. Must not know requests or answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Protocol

from antdt_schemas import records
from antdt_schemas.errors import Mismatch
from antdt_schemas.strategies import kind_of

from antdt_streams.ledger.core.batches import Batches
from antdt_streams.ledger.core.members import Incarnation
from antdt_streams.ledger.core.state import State

REASON_CHARS_MAX = 300


class GroupRules(Protocol):
    """The rules of one strategy. name: the kind of what a job names as `JobSpec.strategy`."""

    name: ClassVar[str]

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


class AllReduce:
    """Every member holds the whole model, and all of them take every step together.

    So whoever comes or goes ends the generation; any member of the last one may be the source of the next.
    """

    name: ClassVar[str] = "allreduce"

    def on_join(self, s: State, who: str) -> Iterator[records.Event]:
        """A newcomer can take part from the next generation on: the open one is closed for it."""
        if s.members.open:
            yield closed(s, f"{s.members.incarnations[who].worker} joins")

    def on_loss(self, s: State, who: str, why: str) -> Iterator[records.Event]:
        """Without one of its members, a generation completes no step."""
        if s.members.open and who in s.members.group:
            yield closed(s, why)

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
        members = tuple(sorted(asking, key=lambda n: (natural(asking[n].worker), n)))
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


RULES: Mapping[str, GroupRules] = {rules.name: rules for rules in (AllReduce(), InUnits(), LocalSGD())}


def rules_of(strategy: str) -> GroupRules:
    """The rules of a strategy. Raises Mismatch: there are none here."""
    kind = kind_of(strategy)
    if kind not in RULES:
        raise Mismatch("The strategy of the job", f"one of {', '.join(sorted(RULES))}", strategy, "Upgrade antdt.")
    return RULES[kind]


def excluded(s: State, generation: int, source_step: int) -> tuple[records.Excluded, ...]:
    """What is left out from this generation on, which goes on behind that step."""
    return tuple(s.shards.exclusions_due(generation, source_step)) if isinstance(s.shards, Batches) else ()


def closed(s: State, reason: str) -> records.Closed:
    """The end of the open generation."""
    return records.Closed(s.members.generation, reason[:REASON_CHARS_MAX])


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key under which w2 comes before w10."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(p)) if p.isdigit() else (1, p) for p in parts)
