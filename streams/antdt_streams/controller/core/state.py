"""The Controller's state and its one function: a Measurement or an operator's word in, decisions out.

Owns what is in force, the numbers of plans and the marks by which repeated measurements are dropped; what to do is the
policy's. Every Decision says all that is in force, so that the newest one is the whole truth; its action only says what
has changed. An action that leaves the plan as it is leaves the number, too: no worker would ever report another one.
What has come of earlier decisions, an answer to an operator, and why a policy cannot work are decisions of action NONE.
What an operator orders to be started again is a KILL_RESTART like a policy's; the policy sees it, and is not asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from antdt_schemas.errors import Mismatch, UsageError
from antdt_schemas.records import (
    Action,
    Assignment,
    Cause,
    Decision,
    Effect,
    Measurement,
    NodeMeasurement,
    Steering,
)
from antdt_schemas.strategies import carries_out, is_collective

from antdt_streams.controller.core.deciding import Deciding, Find, finds_none, misfit
from antdt_streams.controller.core.effects import Trials, told
from antdt_streams.controller.core.in_force import InForce
from antdt_streams.controller.core.lives import Lives
from antdt_streams.controller.core.steering import Told, why_of
from antdt_streams.policies import parameters
from antdt_streams.policies.policy import ClusterView, NodeView, Policy, Proposal
from antdt_streams.storage.rows import Marks, Position, decode_row, digest_rows, encode_row

FORMAT = 3
HEAD, IN_FORCE, LIVES, MEMORY, TRIALS = b"head", b"in-force", b"lives", b"memory", b"trials"
ROWS = (HEAD, IN_FORCE, LIVES, MEMORY, TRIALS)


@dataclass(frozen=True, slots=True)
class ControllerOptions:
    """The Controller's own; a policy has its own. A plan that is not in effect after both patiences is no longer waited
    for.
    """

    patience_windows: int = 6
    patience_ms: int = 10_000
    proposals_max: int = 16  # decisions that one measurement may cause

    def __post_init__(self) -> None:
        if min(self.patience_windows, self.patience_ms, self.proposals_max) < 1:
            raise UsageError("patience_windows, patience_ms and proposals_max must be at least 1.")


class ControllerState:
    """Everything the Controller remembers of a job. refused: the last word about what cannot be carried out.

    Invariants: plans are dense from 1; a cause at or below the mark of its partition changes nothing.
    """

    def __init__(self, policy: Policy, options: ControllerOptions | None = None, find: Find = finds_none) -> None:
        """policy: the one that decides as long as no other one is promoted. find: has those by name."""
        self.policy, self.deciding = policy, Deciding(policy, find)
        self.options = options or ControllerOptions()
        self.marks, self.lives = Marks(), Lives()
        self.in_force = InForce()
        self.memory: Mapping[str, Any] = {}
        self.told, self.trials, self.refused = Told(), Trials(), ""
        self._dirty = set(ROWS)

    def process(self, record: Measurement | Steering, position: Position, now_ms: int) -> list[Decision]:
        """Take in one measurement and say what is to be done about it; or an operator's word, and answer it."""
        out: list[Decision] = []
        if isinstance(record, Steering):
            out.append(self._answer(record, position, now_ms))
            self._know(out, self.trials.give(out[-1], now_ms), position)
        else:
            effects, proposals = self._decide(record, now_ms)
            self._know(out, effects, position)
            for proposal in proposals:
                out.append(self._issue(proposal, len(out), record, position, now_ms))
                self._know(out, self.trials.give(out[-1], now_ms), position)
        self._note_trials()
        return out

    def _know(self, out: list[Decision], effects: Sequence[Effect], position: Position) -> None:
        for effect in effects:
            out.append(self._said(Proposal(Action.NONE, told(effect)), len(out), position, effect))

    def _answer(self, record: Steering, position: Position, now_ms: int) -> Decision:
        """To an operator. author: whose order is carried out."""
        if record.restart:
            if refusal := self.lives.refusal(record.restart, self.trials.restarting):
                return self._said(Proposal(Action.NONE, f"refused: {refusal}"), 0, position)
            reason = f"{record.author} orders it{why_of(record)}"
            ordered = Proposal(Action.KILL_RESTART, reason, target=record.restart)
            return self._said(ordered, 0, position, author=record.author)
        before = self.policy
        answer = Proposal(Action.NONE, self._steer(record, now_ms), target=record.stack)
        promoted = bool(record.promote) and self.policy is not before
        return self._said(answer, 0, position, author=record.author if promoted else "")

    def follow(
        self, record: Measurement | Steering | None, position: Position, now_ms: int, written: Sequence[Decision]
    ) -> None:
        """Take in a record that was answered before: what is in force is what was written then, whatever this policy
        would say. Without one, retention has removed it.
        """
        window = 0
        if isinstance(record, Steering):
            if not record.promote and not record.restart:
                self._steer(record, now_ms)
        elif record is not None:
            self._decide(record, now_ms, written)
            window = record.window
        for decision in written:
            self._follow_policy(record, decision, now_ms)
            self.in_force.follow(decision, window, now_ms)
            self._dirty.add(IN_FORCE)
            self.trials.give(decision, now_ms)
            if decision.effect is not None:
                self.trials.know(decision.effect)
            elif record is None and decision.action is Action.NONE and decision.policy == self.policy.name:
                self.policy = self.told.follow(decision.parameters, self.deciding.base)
        self._note_trials()

    def _follow_policy(self, record: Measurement | Steering | None, written: Decision, now_ms: int) -> None:
        """Let the policy decide that decided then, as far as it was promoted, or is the one of the start.

        Raises:
            Mismatch: what was promoted cannot be loaded any more.
        """
        own = self.deciding.own
        if self.deciding.promoted and written.policy == own.name != self.policy.name and not written.author:
            self.deciding.demote()  # the Controller was started with another policy than before
            self._begin(own, {})
        elif written.author and written.action is Action.NONE:
            named = record if isinstance(record, Steering) else Steering(written.author, promote=written.policy)
            answer = self._steer(named, now_ms)
            if self.policy.name != written.policy:
                hint = "Put it back: what was decided is read again with it. Another one can be promoted behind that."
                raise Mismatch(f"The policy that {written.author} promoted", written.policy, answer.rstrip("."), hint)

    def _steer(self, record: Steering, now_ms: int) -> str:
        self._dirty.add(IN_FORCE)
        if not record.promote:
            self.policy, answer = self.told.take(record, self.policy, now_ms)
            return answer
        former = self.policy
        try:
            policy = self.deciding.promote(record, former, self.lives.strategy)
        except UsageError as error:
            return f"refused: {error}"
        asked = {one.name: one.value for one in record.parameters}
        self._begin(policy, asked)
        with_ = ", ".join(f"{name}={text}" for name, text in self.told.changes.items())
        what = f"policy {policy.name}{with_ and f' with {with_}'} decides from here on, in place of {former.name}"
        return f"{what}, says {record.author}{why_of(record)}"

    def _begin(self, policy: Policy, asked: Mapping[str, str]) -> None:
        """Another policy decides: what is in force stays, and what was measured of it; what the former one remembers
        would be stale whenever it decides again.
        """
        self.policy, self.memory, self.refused = policy, {}, ""
        self.told.begin(asked)
        self._dirty |= {HEAD, IN_FORCE, MEMORY}

    def _note_trials(self) -> None:
        if self.trials.changed:
            self._dirty.add(TRIALS)
            self.trials.changed = False

    def _decide(
        self, record: Measurement, now_ms: int, written: Sequence[Decision] = ()
    ) -> tuple[Sequence[Effect], Sequence[Proposal]]:
        """What has come of earlier decisions, and what the policy proposes: once for each measurement. written: what
        was said then; the policy hears no other verdict now.
        """
        if not self.marks.note(record.cause.partition, (record.cause.offset, record.cause.index)):
            return (), ()
        self._dirty.add(HEAD)
        if self.lives.note(record):
            self._dirty.add(LIVES)
        effects = self.trials.observe(record, now_ms)
        for decision in takewhile(lambda one: one.effect is not None, written):
            assert decision.effect is not None
            self.trials.know(decision.effect)
        return effects, self._proposals(record, now_ms)

    def _proposals(self, record: Measurement, now_ms: int) -> Sequence[Proposal]:
        if why := misfit(self.policy, record.strategy):
            return self._refuse(why, record)
        proposals, memory = self.policy.decide(self.view(record, now_ms), self.memory)
        assert len(proposals) <= self.options.proposals_max, f"{self.policy.name} proposes {len(proposals)} at once"
        for proposal in proposals:
            self._check_target(proposal, record)
        # As a row would give it back, so that a policy sees the same after a restart.
        memory = decode_row(encode_row(memory))
        if memory != self.memory:
            self.memory = memory
            self._dirty.add(MEMORY)
        possible = [p for p in proposals if carries_out(record.strategy, p.action) and not _names_nobody(p, record)]
        if len(possible) < len(proposals):
            refused = next(p for p in proposals if p not in possible)
            lacking = " that gives nobody 0 samples" if carries_out(record.strategy, refused.action) else ""
            return [*possible, *self._refuse(f"nobody carries out {refused.action}{lacking}", record)]
        return possible

    def _refuse(self, why: str, record: Measurement) -> Sequence[Proposal]:
        """One sentence, once."""
        text = f"{why}, and this job's strategy is {record.strategy}: choose another policy, or another strategy"
        if text == self.refused:
            return ()
        self.refused = text
        return (Proposal(Action.NONE, text),)

    def _check_target(self, proposal: Proposal, record: Measurement) -> None:
        """A worker's name would be obeyed by its every life: the topic is read from its start."""
        named = proposal.action is Action.KILL_RESTART
        known = {node.incarnation for node in record.nodes} if named else {""}
        if proposal.target not in known:
            raise UsageError(
                f"{self.policy.name} proposes {proposal.action} with target {proposal.target!r}: take the incarnation "
                "of a node in the view, and for other actions none."
            )

    def view(self, record: Measurement, now_ms: int) -> ClusterView:
        in_force = self.in_force
        return ClusterView(
            window=record.window,
            generation=record.generation,
            last_step=record.last_step,
            now_ms=now_ms,
            urgent=record.urgent,
            pending=self._pending(record, now_ms),
            plan=in_force.plan,
            nodes=tuple(self._node(node, record.plan) for node in sorted(record.nodes, key=lambda n: n.worker)),
            rotating=record.rotating,
            structural=record.structural,
            loss=record.loss,
            learning_rate_factor=in_force.learning_rate_factor,
            backup_workers=in_force.backup_workers,
            batch_size=in_force.batch_size,
            strategy=record.strategy,
            step_s=record.step_s,
            samples_per_s=record.samples_per_s,
            effects=tuple(self.trials.done),
            busy=self.told.is_busy(now_ms),
            restarting=self.trials.restarting,
            restart_s=self.trials.restart_s,
            restarted_ms=self.trials.restarted_ms,
        )

    def _pending(self, record: Measurement, now_ms: int) -> bool:
        in_force = self.in_force
        if record.plan >= in_force.plan:
            return False
        waited = record.window - in_force.window
        return waited < self.options.patience_windows or now_ms - in_force.issued_ms < self.options.patience_ms

    def _node(self, node: NodeMeasurement, plan: int) -> NodeView:
        # What was planned, not what was taken: a short step at the end of an epoch must not shrink the global batch.
        planned = self.in_force.assignments.get(node.worker)
        in_effect = planned is not None and plan >= self.in_force.plan
        known = math.isfinite(node.seconds_per_sample)
        return NodeView(
            worker=node.worker,
            incarnation=node.incarnation,
            group=node.group,
            node_class=node.node_class,
            severity=node.severity,
            seconds_per_sample=node.seconds_per_sample if known else None,
            rate_error=node.rate_error if math.isfinite(node.rate_error) else None,
            fixed_s=node.fixed_s,
            batch_size=planned.batch_size if planned and in_effect else node.batch_size,
            accumulation=planned.accumulation if planned else 1,
            persistent_windows=node.persistent_windows,
            batch_size_max=node.batch_size_max,
            role=node.role,
            stage=node.stage,
            busy=node.busy,
        )

    def _issue(self, proposal: Proposal, index: int, record: Measurement, position: Position, now_ms: int) -> Decision:
        self.in_force.take(proposal, record.window, now_ms)
        self._dirty.add(IN_FORCE)
        return self._said(proposal, index, position)

    def _said(
        self, proposal: Proposal, index: int, position: Position, effect: Effect | None = None, author: str = ""
    ) -> Decision:
        in_force = self.in_force
        return Decision(
            cause=Cause(position.partition, position.offset, index),
            plan=in_force.plan,
            action=proposal.action,
            assignments=tuple(a for _, a in sorted(in_force.assignments.items())),
            learning_rate_factor=in_force.learning_rate_factor,
            backup_workers=in_force.backup_workers,
            target=proposal.target,
            policy=self.policy.name,
            policy_version=self.policy.version,
            reason=proposal.reason,
            predicted_gain=proposal.predicted_gain,
            evidence_first=position.offset,
            evidence_last=position.offset,
            batch_size=in_force.batch_size,
            parameters=parameters.stamp(self.policy),
            effect=effect,
            author=author,
        )

    # -- rows

    def _row(self, key: bytes) -> bytes:
        if key == HEAD:
            marks = [[partition, *mark] for partition, mark in sorted(self.marks.items())]
            names = [self.policy.name, self.deciding.own.name, self.deciding.promoted]
            return encode_row([FORMAT, names, self.refused, marks])
        if key == LIVES:
            return encode_row(self.lives.to_row())
        if key == IN_FORCE:
            return encode_row([self.in_force.to_row(), self.told.to_row()])
        return encode_row(self.memory if key == MEMORY else self.trials.to_row())

    def changes(self) -> dict[bytes, bytes | None]:
        """The rows that changed since the last call."""
        out: dict[bytes, bytes | None] = {key: self._row(key) for key in sorted(self._dirty)}
        self._dirty.clear()
        return out

    def rows(self) -> dict[bytes, bytes]:
        return {key: self._row(key) for key in ROWS}

    def digest(self) -> bytes:
        return digest_rows(self.rows())

    @classmethod
    def load(
        cls,
        rows: Mapping[bytes, bytes],
        policy: Policy,
        options: ControllerOptions | None = None,
        find: Find = finds_none,
    ) -> ControllerState:
        """The state that these rows are of. Another policy takes over what is in force, but not the memory.

        Raises:
            Mismatch: the rows were written in another format.
            UsageError: a policy was promoted that cannot be loaded any more.
        """
        state = cls(policy, options, find)
        if not rows:
            return state
        found, names, *rest = decode_row(rows[HEAD])
        if found != FORMAT:
            raise Mismatch("Format of the Controller's state", FORMAT, found)
        (name, own, promoted), (state.refused, marks) = names, rest
        state.deciding.resume(promoted, own)
        same = name == state.deciding.base.name
        state.lives = Lives.from_row(decode_row(rows[LIVES]))
        state.marks = Marks({partition: (offset, index) for partition, offset, index in marks})
        (*numbers, batch_size, assignments), heard = decode_row(rows[IN_FORCE])
        state.in_force, state.told = InForce(*numbers), Told.from_row(heard, same_policy=same)
        state.in_force.batch_size = batch_size
        state.policy, state.trials = state.told.applied(state.deciding.base), Trials.from_row(decode_row(rows[TRIALS]))
        state.in_force.assignments = {row[0]: Assignment(*row) for row in assignments}
        state.memory = decode_row(rows[MEMORY]) if same else {}
        state._dirty = set() if same and own == policy.name else {HEAD, IN_FORCE, MEMORY}
        return state


def _names_nobody(proposal: Proposal, record: Measurement) -> bool:
    """Whether it wants backup workers of a collective, to which nobody can be late, without saying who they are."""
    if not proposal.backup_workers or not is_collective(record.strategy):
        return False
    return all(one.batch_size for one in proposal.assignments or ())
