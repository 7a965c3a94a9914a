"""A job at a glance: what `antdt top` and the page show. Owns the numbers and the words, not how they are drawn.

Every number says where it comes from: those of the log are as of `offset`, those of workers as of the newest records of
`steps` and `measurements`, a decision lies at its own offset.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any

from antdt_schemas import records
from antdt_schemas.strategies import WATCHED

from antdt_streams.controller.core.effects import told
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.core.groups import rules_of
from antdt_streams.proof.walker import Read
from antdt_streams.views import places
from antdt_streams.views.control import SLOW, UNKNOWN, Command, Control, WorkerView
from antdt_streams.views.pace import Pace
from antdt_streams.views.progress import Progress
from antdt_streams.views.projection import Projection
from antdt_streams.views.why import Why, why_from

DECISIONS_KEPT, DECISIONS_TOLD = 100, 12
CHANGES_TOLD = 6  # shares of workers that one plan has changed
SERVERS_TOLD = 32
WHY_EVERY_S, WHYS_KEPT = 2.0, 64  # medians over many workers


@dataclass(frozen=True, slots=True)
class View:
    """What somebody looks at: rows of workers from `first` on, the slowest first, whose names have `search` in them;
    rows None: all of them. lanes: their steps, too. worker: of whom is told why; empty: of the slowest.
    """

    first: int = 0
    rows: int | None = None
    search: str = ""
    lanes: bool = False
    worker: str = ""


class Newest(Projection["tuple[int, int]"]):
    """Offset and time of the newest entry."""

    def __init__(self, offset: int, time_ms: int = 0) -> None:
        self.offset, self.time_ms = offset, time_ms

    def on_entry(self, read: Read) -> None:
        self.offset, self.time_ms = read.offset, read.time_ms

    def view(self) -> tuple[int, int]:
        return self.offset, self.time_ms


class Glance:
    """What is known of one job. fold: a state of its log, which whoever feeds the projections goes on with."""

    def __init__(self, job: str, fold: Fold) -> None:
        self.job, self.fold = job, fold
        self.progress, self.control, self.pace = Progress(), Control(keep=DECISIONS_KEPT), Pace()
        self.newest = Newest(fold.position.next_offset - 1, fold.state.now_ms if fold.state else 0)
        # Several look at the same moment: what is the same for all is worked out once.
        self._order: tuple[int, list[dict[str, Any]], str] = (-1, [], "")
        self._whys: dict[str, tuple[int, float, Why]] = {}

    @property
    def projections(self) -> tuple[Projection[Any], ...]:
        return self.progress, self.control, self.pace, self.newest

    def document(self, view: View | None = None, now_s: float | None = None) -> dict[str, Any]:
        """All that is shown, ready for JSON."""
        view = view or View()
        workers, sentence = self._ordered()
        found = [one for one in workers if view.search in one["worker"]] if view.search else workers
        shown = found[view.first : None if view.rows is None else view.first + view.rows]
        now_s = time.time() if now_s is None else now_s
        age_s = max(0.0, now_s - self.newest.time_ms / 1000) if self.newest.time_ms else None
        servers = ranked(self.control.servers)[:SERVERS_TOLD]
        out = self._of_log() | {
            "verdict": sentence,
            "slow": sum(one["class"] in SLOW for one in workers),
            "workers": self._rows(self.control.workers, shown, view),
            "workers_total": len(workers),
            "workers_found": len(found),
            "first": view.first,
            "servers": self._rows(self.control.servers, servers, view),
            "decisions": decided(self.control),
            "last_entry_s": age_s,
        }
        if view.lanes:
            out |= {
                "pace": self.pace.view(),
                "marks": marks(self.control),
                "why": self._why(view, workers),
                "policy": self.control.policy,
            }
        return out

    def _ordered(self) -> tuple[list[dict[str, Any]], str]:
        """A row of each worker, the slowest first, and the verdict on them."""
        changes, rows, sentence = self._order
        if changes != self.control.changes:
            rows = ranked(self.control.workers)
            sentence = verdict(rows)
            self._order = self.control.changes, rows, sentence
        return rows, sentence

    def _of_log(self) -> dict[str, Any]:
        """What the log says."""
        state, office, measured = self.fold.state, self.fold.office, self.control.measured
        members = state.members if state else None
        return {
            "job": self.job,
            "offset": self.newest.offset,
            "time_ms": self.newest.time_ms or None,
            "run_id": self.fold.genesis.run_id if self.fold.genesis else None,
            "watched": self._watched,
            "samples": places.samples(state),
            "epochs": places.epochs(state),
            "step": self._step(),
            "skipped_steps": state.line.skipped if state else 0,
            "generation": members.generation if members else 0,
            "open": bool(members and members.open),
            "members": len(members.group) if members else 0,
            "attached": len(members.attached) if members else 0,
            "waits": rules_of(state.spec.strategy).grant(state)[1] if state and not state.members.open else "",
            "done": state.done if state else None,
            "stopped": state.why_stopped if state else "",
            "strategy": state.spec.strategy if state else "",
            "plan": state.line.plan if state else 0,
            "checkpoints": [one.step for one in state.line.checkpoints] if state else [],
            "leader": office.owner if office else None,
            "leader_at": office.offset if office else None,
            "void_entries": self.fold.void_entries,
            "refused": state.refused if state else 0,
            "samples_per_s": round(measured.samples_per_s, 1) if measured else None,
            "measured_at": self.control.measured_at if measured else None,
        }

    @property
    def _watched(self) -> bool:
        state = self.fold.state
        return state is not None and state.spec.strategy == WATCHED

    def _step(self) -> int:
        """The newest committed one; where nothing is committed, the newest that a worker has told of."""
        if self._watched:
            return max((view.steps[-1].step for view in self.control.workers.values() if view.steps), default=0)
        return self.fold.state.line.committed if self.fold.state else 0

    def _rows(
        self, nodes: Mapping[str, WorkerView], shown: Iterable[dict[str, Any]], view: View
    ) -> list[dict[str, Any]]:
        if not view.lanes:
            return list(shown)
        return [{**one, "lane": lane(nodes[one["worker"]])} for one in shown]

    def _why(self, view: View, workers: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """The verdict on one worker with its evidence, what was done, and what comes next, as `antdt why` has it."""
        worker = view.worker or (workers[0]["worker"] if workers else "")
        if worker not in self.control.workers and worker not in self.control.servers:
            return None
        changes, at_s, found = self._whys.get(worker, (-1, 0.0, None))
        if found is None or (changes != self.control.changes and time.monotonic() - at_s > WHY_EVERY_S):
            found = why_from(self.control, worker, None)
            if len(self._whys) >= WHYS_KEPT:
                self._whys.clear()
            self._whys[worker] = self.control.changes, time.monotonic(), found
        return {"worker": worker, "verdict": found.verdict, "evidence": found.evidence, "done": found.done,
                "next": found.next}  # fmt: skip


def ranked(nodes: Mapping[str, WorkerView]) -> list[dict[str, Any]]:
    """A row for each, the slowest first."""
    rows = [row(name, view) for name, view in nodes.items()]
    rows.sort(key=lambda one: (-one["own_ms_a_sample"], one["worker"]))
    return rows


def row(name: str, view: WorkerView) -> dict[str, Any]:
    """One worker. Times are means over its newest steps, in milliseconds; where it has told of none, the Monitor's."""
    if view.row is not None:
        return view.row
    own = view.own_s
    taken, seconds = sum(n for n, _ in own), sum(s for _, s in own)
    view.row = {
        "worker": name,
        "class": view.node_class,
        "batch_size": view.batch_size,
        "plan": view.plan,
        "samples_per_s": round(taken / seconds if seconds else 0.0, 1),
        "own_ms": round(1e3 * seconds / len(own), 2) if own else 0.0,
        "own_ms_a_sample": round(1e3 * (seconds / taken if taken else view.measured_s), 4),
        "wait_ms": round(1e3 * view.wait_s, 2),
        "step": view.steps[-1].step if view.steps else None,
        "steps_at": view.steps[-1].offset if view.steps else None,
    }
    return view.row


def lane(view: WorkerView) -> list[int]:
    """Five numbers a step: which one, then data, compute, communication and wait in tenths of a millisecond."""
    if view.lane is None:
        view.lane = [
            number
            for one in view.steps
            for number in (
                one.step,
                round(1e4 * one.data_s),
                round(1e4 * one.compute_s),
                round(1e4 * one.communication_s),
                round(1e4 * one.wait_s),
            )
        ]
    return view.lane


def decided(control: Control) -> list[dict[str, Any]]:
    """The newest decisions that count, the newest last, with what came of each."""
    commands = list(control.commands)
    before = [None, *commands]
    return [
        _decided(command, earlier, control.effects.get(command.decision.cause))
        for command, earlier in list(zip(commands, before, strict=False))[-DECISIONS_TOLD:]
    ]


def marks(control: Control) -> list[list[Any]]:
    """All decisions that are kept, for a curve: the broker's time, plan, action, and where each lies."""
    return [[one.time_ms, one.decision.plan, str(one.decision.action), one.offset] for one in control.commands]


def _decided(command: Command, earlier: Command | None, effect: records.Effect | None) -> dict[str, Any]:
    one = command.decision
    return {
        "plan": one.plan,
        "action": str(one.action),
        "reason": one.reason,
        "target": one.target,
        "offset": command.offset,
        "time_ms": command.time_ms or None,
        "policy": f"{one.policy}/{one.policy_version}",
        "author": one.author,
        "evidence": [one.evidence_first, one.evidence_last],
        "predicted_gain": one.predicted_gain,
        "changes": _changes(one, earlier.decision if earlier else None),
        "effect": None
        if effect is None
        else {
            "verdict": str(effect.verdict),
            "measured_gain": effect.measured_gain,
            "gain_error": effect.gain_error,
            "windows": effect.windows,
            "in_effect_step": effect.in_effect_step,
            "delay_s": round(effect.delay_s, 2),
            "told": told(effect),
        },
    }


def _changes(one: records.Decision, earlier: records.Decision | None) -> list[list[Any]]:
    """Those whose share it has changed most: worker, samples a step before (None: not known) and now."""
    before = {a.worker: a.batch_size for a in earlier.assignments} if earlier else {}
    changed = [a for a in one.assignments if before.get(a.worker) != a.batch_size]
    changed.sort(key=lambda a: (-abs(before.get(a.worker, 0) - a.batch_size), a.worker))
    return [[a.worker, before.get(a.worker), a.batch_size] for a in changed[:CHANGES_TOLD]]


def verdict(workers: Sequence[Mapping[str, Any]]) -> str:
    """The one sentence on top. workers: the slowest first."""
    if not workers:
        return "No worker has said anything of a step yet."
    slow = [one for one in workers if one["class"] in SLOW]
    if all(one["class"] == UNKNOWN for one in workers):
        return f"How fast the {len(workers)} workers are for their kind is not known yet."
    if not slow:
        return f"All {len(workers)} workers are as fast as their kind."
    middle = median_low(one["own_ms_a_sample"] for one in workers)
    times = f", {slow[0]['own_ms_a_sample'] / middle:.1f} times the median" if middle else ""
    others = f"; so are {len(slow) - 1} others" if len(slow) > 2 else f"; so is {slow[1]['worker']}" if slow[1:] else ""
    return f"{slow[0]['worker']} is slow ({slow[0]['class']}{times}){others}."
