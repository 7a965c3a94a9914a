"""The batches of an Agent as frameworks take them, who iterate once an epoch.

Owns which epoch comes next for a framework that counts its own. The state of a Loader is a few bytes, and says where
the job was: the truth stays in the log, and the model in the Agent's own files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from antdt_schemas.errors import Mismatch

from antdt.agent import Agent

VERSION = 1

log = logging.getLogger("antdt")


class Loader:
    """Each iteration is an epoch of the Agent, or what is left of it; behind the last one there is nothing.

    `over`: the Agent has come to its end. `state_dict` and `load_state_dict` are torchdata's `Stateful`, which torch's
    distributed checkpoints know as well. device: where batches are moved to; None: they stay where they are.
    """

    _is_antdt = True
    _is_accelerate_prepared = True  # Accelerate returns it untouched

    def __init__(self, agent: Agent, device: Any = None) -> None:
        self.agent, self.device = agent, device
        self.dataset, self.batch_size = agent.source, agent.spec.batch_size
        self.over = False
        self._epochs: Iterator[Any] | None = None
        self._batches: Iterator[Any] = iter(())
        self._expected: Mapping[str, Any] = {}

    def __len__(self) -> int:
        return self.agent.steps_per_epoch

    def __iter__(self) -> Iterator[Any]:
        """What is left of the epoch at hand, if a framework that counts batches has left it before its end (it may have
        more of them than steps, where the model went back); else the next one. Nothing happens before the first batch
        is asked for.
        """
        if self._epochs is None:
            self._epochs = iter(self.agent.epochs())
        while (first := next(self._batches, None)) is None:
            epoch = next(self._epochs, None)
            if epoch is None:
                self.over = True
                return
            self._batches = iter(epoch)
        for batch in chain((first,), self._batches):
            if self._expected:
                self._compare()
            yield batch if self.device is None else moved(batch, self.device)
        if self.agent.has_made_all:
            self._come_to_an_end()

    def _come_to_an_end(self) -> None:
        """The last step is made: the Agent ends behind it, with a durable file, without being asked once more."""
        assert self._epochs is not None
        epoch = next(self._epochs, None)
        self.over = epoch is None
        self._batches = iter(()) if epoch is None else iter(epoch)

    def rest_of_step(self) -> Iterator[Any]:
        """Where a step is cut into micro-batches, those behind the one at hand, for a framework whose step is one
        batch. Each is passed to the Agent before the next one.
        """
        while self.agent.is_in_step and (batch := next(self._batches, None)) is not None:
            yield batch if self.device is None else moved(batch, self.device)

    def set_epoch(self, epoch: int) -> None:
        """What draws an epoch is the job's."""

    @property
    def epoch(self) -> int:
        """That of the batch at hand."""
        return self.agent.epoch

    def finish(self, train: Callable[[Any], Any] | None = None, reason: str = "") -> None:
        """The framework makes no further step of its own: the Agent ends as it does behind its loop. What is left is
        trained by `train`, a batch at a time, as the Agent's epochs count and not the framework's; with a reason, the
        job is stopped before that, on record. Without `train` what is left is left, and said.
        """
        if reason and not self.over:
            self.agent.stop(reason)
        while not self.over:
            for batch in self:
                if train is None:
                    self.over = True  # the Agent's iterations end with their last reference: it says good-bye
                    self._batches, self._epochs = iter(()), None
                    return
                train(batch)

    # -- where the job is

    def state_dict(self) -> dict[str, Any]:
        """Job, run, and the steps in the model; the log has the rest."""
        agent = self.agent
        at = {"step": agent.step_number, "lineage": agent.lineage}
        return {"version": VERSION, "job": agent.settings.job, "run": agent.run_id, **at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with that job, from where its log is. Raises Mismatch where it is another one; of its run that is
        known with the first batch.
        """
        if not state:
            return
        if state["version"] != VERSION:
            raise Mismatch("The version of the loader's state", VERSION, state["version"], "Upgrade antdt.")
        if state["job"] != self.agent.settings.job:
            raise Mismatch("The job", self.agent.settings.job, state["job"], _SAME)
        self._expected = dict(state)

    def _compare(self) -> None:
        state, self._expected = self._expected, {}
        agent = self.agent
        if state["run"] and state["run"] != agent.run_id:
            raise Mismatch(f"The run of job {state['job']}", agent.run_id, state["run"], _SAME)
        if state["step"] != agent.step_number:
            said = "the checkpoint is of step %d, the log of job %s of step %d: training goes on from there"
            log.warning(said, state["step"], state["job"], agent.step_number)


_SAME = "Load the checkpoint of this job, or name the job that it is of by ANTDT_JOB."


def moved(batch: Any, device: Any) -> Any:
    """The same, its tensors on the device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: moved(part, device) for name, part in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(part, device) for part in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(moved(part, device) for part in batch)
    return batch
