"""Whether a script counts its batches by `enumerate`, where that is no count of the model's steps.

A process that was started again begins at 0, and a step that is given up, or is made in micro-batches, is several
batches: a schedule that goes by such a count is another one on each worker. Must not know what a script counts for.
"""

from __future__ import annotations

import gc
import logging
import weakref
from typing import Any

log = logging.getLogger("antdt")


class Counting:
    """Of one Agent. Says it once, as the count may only be shown."""

    def __init__(self) -> None:
        self._iterators: list[weakref.ref[Any]] = []
        self._given, self._said = 0, False

    def goes_through(self, iterator: Any) -> Any:
        """The script gets this one."""
        self._iterators = [one for one in self._iterators if one() is not None] + [weakref.ref(iterator)]
        return iterator

    def gives(self, step: int) -> None:
        """The script is given a batch of the step behind this one."""
        if self._given != step and not self._said:
            self._said = True
            iterators = [one for ref in self._iterators if (one := ref()) is not None]
            if any(type(one) is enumerate for one in gc.get_referrers(*iterators)):
                log.warning(
                    "enumerate counts %d batches of this process before this one, and the model is at step %d: a "
                    "learning rate, a weight of a term, or whatever else a step depends on goes by agent.step_number.",
                    self._given,
                    step,
                )
        self._given += 1
