"""Which Agents a process may have, one after the other.

A worker of a job is a process, and has one Agent for its life; one that was given settings of its own says itself which
worker of which job it is. A process without a job may train model after model. Owns that nothing begins a second time
by mistake. Must not know what an Agent does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

from antdt_schemas.errors import UsageError

_trained: WeakSet[Any] = WeakSet()
_in_a_job: list[bool] = []


def has_begun() -> bool:
    """Whether an Agent trains, or has trained, in this process."""
    return bool(_in_a_job) or bool(_trained)


class Begun:
    """Of one Agent. model: as the script gave it, one or several. named: its settings were given by the script. alone:
    without a job.
    """

    def __init__(self, model: Any, *, named: bool, alone: bool) -> None:
        several = list(model.values()) if isinstance(model, Mapping) else model
        self._models = several if isinstance(several, list | tuple) else [model]
        self._named, self._alone, self._begun = named, alone, False
        self._refuse_another()

    def begin(self) -> None:
        """Its loop begins. Raises UsageError: it is a second one."""
        if self._begun:
            raise UsageError(
                "This Agent was iterated already: it runs through all epochs itself. Write one loop over it and pass "
                "epochs=N to antdt.Agent, or nest: for epoch in agent.epochs(): for batch in epoch."
            )
        self._refuse_another()
        self._begun = True
        for model in self._models:
            _trained.add(model)
        if not self._named and not self._alone:
            _in_a_job.append(True)

    def _refuse_another(self) -> None:
        if self._alone and any(model in _trained for model in self._models):
            raise UsageError(
                "An Agent of this process has trained this model before: pass epochs=N to it instead of making one for "
                "each epoch; what is trained anew is another model."
            )
        if _in_a_job and not self._named:
            raise UsageError(
                "This process has trained with an Agent before, and a worker has one for its life: pass epochs=N to it "
                "instead of making one for each epoch; train another model by another script, as another job, or with "
                'settings=antdt.Settings.of(job="NAME") of a job that is up.'
            )
