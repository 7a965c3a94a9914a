"""Figures of the Controller: what it has decided, and what has come of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from antdt_schemas.figures import Family, Kind, Metric
from antdt_schemas.records import Action, Decision, Effect, Verdict

DECISIONS = Metric(
    "antdt_decisions_total",
    Kind.COUNTER,
    "Decisions by what they do; NONE are answers and what is not done.",
    ("action",),
)
EFFECTS = Metric(
    "antdt_decision_effects_total", Kind.COUNTER, "Decisions by what was measured of them.", ("action", "verdict")
)
GAIN = Metric(
    "antdt_decision_gain_ratio",
    Kind.GAUGE,
    "Share of the step time that the decision measured last was to save, and has saved; 0 before there is one.",
    ("kind",),
)
PLAN = Metric("antdt_plan", Kind.GAUGE, "Number of the plan that was commanded last; 0 is what workers began with.")
ACTIONS = [action for action in Action if action is not Action.NONE]


class ControllerFigures:
    """What came of the records of this process's life."""

    def __init__(self) -> None:
        self._decided, self._effects = Counter[Action](), Counter[tuple[Action, Verdict]]()
        self._newest: Effect | None = None
        self._plan = 0

    def observe(self, record: Any, outputs: Sequence[Decision]) -> None:
        for decision in outputs:
            self._plan = decision.plan
            if decision.effect is None:
                self._decided[decision.action] += 1
            else:
                self._newest = decision.effect
                self._effects[decision.effect.action, decision.effect.verdict] += 1

    def __call__(self) -> list[Family]:
        newest = self._newest
        predicted, measured = (newest.predicted_gain, newest.measured_gain) if newest is not None else (0.0, 0.0)
        return [
            (DECISIONS, {(str(action),): self._decided[action] for action in Action}),
            (EFFECTS, {(str(a), str(v)): self._effects[a, v] for a in ACTIONS for v in Verdict}),
            (GAIN, {("predicted",): predicted, ("measured",): measured}),
            PLAN.of(self._plan),
        ]
