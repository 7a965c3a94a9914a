"""What comes of decisions: for each one whether it was carried out, and what it saved, as measured.

Owns the trials that are open and the effects that are known. A decision is acknowledged by whoever carries it out: a
plan by the workers whose steps name it, a restart by the next incarnation's steps. What it saved is the completion rate
of settled windows before and after, medians of few of them; the window in which a decision came into effect belongs to
neither. Where another decision comes before enough windows have passed, or a rate jumps, what is there must do; but
plans that follow a restart belong to it, as whoever is well again is to get its share back: it is measured behind the
last of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from statistics import median
from typing import Any

from antdt_schemas.records import Action, Cause, Decision, Effect, Measurement, Verdict

from antdt_streams.controller.core.lives import is_later, worker_of

BEFORE_WINDOWS = 6
AFTER_WINDOWS = 4
SETTLED_WITHIN = 40  # windows behind a restart: what is there must do
ENOUGH_WINDOWS = 2  # where another decision comes first
KEPT = 32
OPEN_MAX = 8
PLAN_MS_MAX = 120_000  # a plan that is in effect later than this never was
RESTART_MS_MAX = 900_000
ERRORS = 2.0
LITTLE = 0.01  # share of the rate: nothing is measured more exactly
HELPED, IN_VAIN = 0.25, 0.5  # of what was predicted: at least, and surely less
MAD_TO_ERROR = 1.4826 * 1.25


@dataclass(slots=True)
class Trial:
    """One decision that was given. target: of a restart, the incarnation. before, after: samples a second."""

    cause: Cause
    action: Action
    plan: int
    target: str
    predicted_gain: float
    given_ms: int
    before: list[float]
    in_effect_step: int = -1
    delay_s: float = 0.0
    after: list[float] = field(default_factory=list)
    windows: int = 0

    @property
    def worker(self) -> str:
        return worker_of(self.target)

    @property
    def in_effect(self) -> bool:
        return self.in_effect_step >= 0

    def is_acknowledged(self, record: Measurement) -> bool:
        if self.action is not Action.KILL_RESTART:
            return record.plan >= self.plan
        return any(
            node.worker == self.worker
            and is_later(node.incarnation, self.target)
            and math.isfinite(node.seconds_per_sample)
            for node in record.nodes
        )

    def effect(self) -> Effect:
        known = self.in_effect and bool(self.before) and bool(self.after)
        gain, error = gain_of(self.before, self.after) if known else (0.0, 0.0)
        verdict = verdict_of(self.predicted_gain, gain, error) if known else Verdict.UNCLEAR
        return Effect(
            decision=self.cause,
            action=self.action,
            plan=self.plan,
            worker=self.worker,
            predicted_gain=self.predicted_gain,
            measured_gain=gain,
            gain_error=error,
            windows=len(self.after) if known else 0,
            in_effect_step=self.in_effect_step,
            delay_s=self.delay_s,
            verdict=verdict if self.in_effect else Verdict.NOT_CARRIED_OUT,
        )

    def to_row(self) -> list[Any]:
        cause = [self.cause.partition, self.cause.offset, self.cause.index]
        given = [cause, str(self.action), self.plan, self.target, self.predicted_gain, self.given_ms, self.before]
        return [*given, self.in_effect_step, self.delay_s, self.after, self.windows]

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Trial:
        cause, action, *rest = row
        return cls(Cause(*cause), Action(action), *rest)


@dataclass(slots=True)
class Trials:
    """rates: of settled windows since something changed last. done: the newest effects. restarted_ms: when the last
    restart was ordered, by whomever.
    """

    open: list[Trial] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    done: list[Effect] = field(default_factory=list)
    restarts_s: list[float] = field(default_factory=list)
    restarted_ms: int = 0
    changed: bool = False

    def observe(self, record: Measurement, now_ms: int) -> list[Effect]:
        """Take in a measurement; what is known by it."""
        acknowledged = [trial for trial in self.open if not trial.in_effect and trial.is_acknowledged(record)]
        for trial in acknowledged:
            trial.in_effect_step, trial.delay_s = record.last_step, (now_ms - trial.given_ms) / 1000.0
            if trial.action is Action.KILL_RESTART:
                self.restarts_s = [*self.restarts_s, trial.delay_s][-3:]
            self.rates, self.changed = [], True
        if acknowledged:
            for trial in self.open:
                trial.after.clear()
        jumped = record.urgent and not acknowledged
        if record.samples_per_s > 0.0 and not acknowledged and not self.restarting:
            if jumped:  # something else has changed: what was before says nothing of it
                self.rates, self.changed = [record.samples_per_s], True
            else:
                self._settled(record.samples_per_s)
        late = [t for t in self.open if not t.in_effect and now_ms - t.given_ms > _patience_ms(t)]
        ready = [t for t in self.open if t not in late and self._is_ready(t, jumped=jumped)]
        found = [*(self._close(trial, late=True) for trial in late), *(self._close(trial) for trial in ready)]
        return [effect for effect in found if effect is not None]

    def _is_ready(self, trial: Trial, *, jumped: bool) -> bool:
        over = jumped and trial.in_effect and trial.action is not Action.KILL_RESTART
        return over or len(trial.after) >= AFTER_WINDOWS or trial.windows >= SETTLED_WITHIN

    def _settled(self, rate: float) -> None:
        self.rates, self.changed = [*self.rates, rate][-BEFORE_WINDOWS:], True
        for trial in self.open:
            if trial.in_effect:
                trial.after.append(rate)
                trial.windows += 1

    def give(self, decision: Decision, now_ms: int) -> list[Effect]:
        """A decision is given: what is known of earlier ones, which it ends."""
        if decision.action is Action.NONE:
            return []
        self.changed = True
        restart = decision.action is Action.KILL_RESTART
        self.restarted_ms = now_ms if restart else self.restarted_ms
        over = [t for t in self.open if (restart and t.in_effect) or t.action is not Action.KILL_RESTART]
        gain, plan, before = decision.predicted_gain, decision.plan, list(self.rates)
        if len(before) < ENOUGH_WINDOWS and not restart and (plans := [t for t in over if t.before]):
            # One step of several: all of them are measured together.
            before, gain = plans[-1].before, 1.0 - (1.0 - plans[-1].predicted_gain) * (1.0 - gain)
        known = [effect for trial in over if (effect := self._close(trial)) is not None]
        trial = Trial(decision.cause, decision.action, plan, decision.target, gain, now_ms, before)
        self.open = [*self.open, trial][-OPEN_MAX:]
        return known

    def know(self, effect: Effect) -> None:
        """What has come of a decision; of two words about one the later counts."""
        others = [one for one in self.done if one.decision != effect.decision]
        self.done, self.changed = [*others, effect][-KEPT:], True

    def _close(self, trial: Trial, *, late: bool = False) -> Effect | None:
        """Its effect, where there is anything to say."""
        self.open.remove(trial)
        self.changed = True
        if trial.in_effect and (len(trial.after) < ENOUGH_WINDOWS or not trial.before):
            return None
        if not trial.in_effect and trial.action is not Action.KILL_RESTART and not late:
            return None  # a later plan holds all that it would have changed
        effect = trial.effect()
        self.know(effect)
        return effect

    @property
    def restarting(self) -> tuple[str, ...]:
        """Workers that are to be started again and are not back."""
        return tuple(t.worker for t in self.open if t.action is Action.KILL_RESTART and not t.in_effect)

    @property
    def restart_s(self) -> float:
        return median(self.restarts_s) if self.restarts_s else 0.0

    def to_row(self) -> list[Any]:
        done = [_effect_row(effect) for effect in self.done]
        return [[trial.to_row() for trial in self.open], self.rates, done, self.restarts_s, self.restarted_ms]

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Trials:
        trials, rates, done, *restarts = row
        effects = [_effect_of(one) for one in done]
        return cls([Trial.from_row(one) for one in trials], rates, effects, *restarts)


def _patience_ms(trial: Trial) -> int:
    return RESTART_MS_MAX if trial.action is Action.KILL_RESTART else PLAN_MS_MAX


def gain_of(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Share of the time of a step that was saved, and its standard error."""
    ratio = median(before) / median(after)
    return 1.0 - ratio, ratio * math.hypot(_error(before), _error(after))


def _error(rates: Sequence[float]) -> float:
    """Relative standard error of their median."""
    middle = median(rates)
    spread = median(abs(rate - middle) for rate in rates) / middle
    return max(MAD_TO_ERROR * spread / math.sqrt(len(rates)), LITTLE)


def verdict_of(predicted: float, gain: float, error: float) -> Verdict:
    """What was measured against what was predicted, which may be a loss that is taken into account."""
    if gain < min(predicted, 0.0) - ERRORS * error:
        return Verdict.HARMED
    if gain > ERRORS * error and gain >= HELPED * predicted:
        return Verdict.HELPED
    if gain + ERRORS * error < max(IN_VAIN * predicted, ERRORS * error):
        return Verdict.NO_EFFECT
    return Verdict.UNCLEAR


def told(effect: Effect) -> str:
    """One sentence for people."""
    what = f"{effect.action} of {effect.worker}" if effect.worker else f"plan {effect.plan} ({effect.action})"
    wanted = f"{what} was to save {100 * effect.predicted_gain:.0f} % of the step time"
    if effect.action is Action.KILL_RESTART and not effect.predicted_gain:
        wanted = f"{what} was ordered without a prediction"
    if effect.verdict is Verdict.NOT_CARRIED_OUT:
        return f"{wanted}: nobody has carried it out"
    if not effect.windows:
        return f"{wanted}: what it saved is not known"
    saved = f"{100 * effect.measured_gain:.0f} ± {100 * effect.gain_error:.0f} %"
    return f"{wanted} and saved {saved}: {str(effect.verdict).replace('_', ' ')}"


def _effect_row(effect: Effect) -> list[Any]:
    return list(astuple(effect))


def _effect_of(row: Sequence[Any]) -> Effect:
    cause, action, *numbers, verdict = row
    rest: list[Any] = [*numbers, Verdict(verdict)]
    return Effect(Cause(*cause), Action(action), *rest)
