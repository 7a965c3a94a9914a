"""Orders to a job's Controller that are held against its log before they are sent: who is started again, who decides.

Owns what is refused before anything is sent, and the bounded wait for whoever is to come back. The Controller looks
again, in the one order of its input, at what it knows itself. Writes nothing but the one record of an order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic, sleep

from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import Refused, Unavailable, UsageError
from antdt_schemas.strategies import WATCHED
from antdt_schemas.waiting import Waiting

from antdt_streams.controller.core.deciding import misfit
from antdt_streams.kafka import operating
from antdt_streams.kafka.ask import author
from antdt_streams.ledger.core.members import Incarnation
from antdt_streams.ledger.core.state import State
from antdt_streams.policies import parameters
from antdt_streams.policies.find import find
from antdt_streams.views.job import newest_state
from antdt_streams.views.stacks import absence, has_launcher, newest_life

LOOK_EVERY_S, SAY_AFTER_S = 1.0, 5.0


def restart(connection: Connection, job: str, worker: str, reason: str, who: str = "") -> tuple[str, str]:
    """Have a worker or server started again by its launcher: the incarnation that is to go, and one sentence.

    Raises:
        UsageError: no such worker ever joined.
        Refused: the job is done, nobody would carry it out, or the Controller says why not.
        Unavailable: it is not there, or no Controller answers.
    """
    incarnation = _to_go(job, worker, newest_state(connection, job)[0].state)
    word = records.Steering(author(who), reason=reason, restart=incarnation)
    said = operating.tell(connection, job, word)
    return incarnation, f"{incarnation} is to leave, and its launcher starts {worker} again. {said}"


def _to_go(job: str, worker: str, state: State | None) -> str:
    """The incarnation that an order to start this worker again names."""
    known: Mapping[str, Incarnation] = state.members.incarnations if state is not None else {}
    if state is not None and state.done is not None:
        raise Refused(f"Job {job} is done: nobody of it is started again.")
    if (error := absence(job, worker, known)) is not None:
        raise error
    assert state is not None, worker
    if state.spec.strategy == WATCHED:
        raise Refused(f"Job {job} is only watched: whoever started {worker} is to start it again.")
    incarnation = newest_life(worker, known)
    if not has_launcher(worker, known):
        raise Refused(
            f"{worker} ({incarnation}) was not started by `antdt launch`, but by torchrun or by hand, as "
            f"{known[incarnation].launcher}: no launcher is beside it that would start it again. End it there."
        )
    return incarnation


def await_next(connection: Connection, job: str, incarnation: str, timeout_s: float, say: Callable[[str], None]) -> str:
    """Wait until the worker is back as another incarnation, as the log has it: one sentence. say: is told what is
    waited for.

    Raises:
        Unavailable: it is not, in time.
    """
    worker, began_s, waiting = incarnation.partition(".")[0], monotonic(), Waiting(SAY_AFTER_S)
    while True:
        state = newest_state(connection, job)[0].state
        known = state.members.incarnations if state is not None else {}
        newest = newest_life(worker, known) if worker in {one.worker for one in known.values()} else incarnation
        waited_s = monotonic() - began_s
        if newest != incarnation and not known[newest].gone:
            return f"{worker} is back as {newest}, after {waited_s:.1f} s."
        if state is not None and state.done is not None:
            return f"Job {job} was done before {worker} was back."
        gone = incarnation in known and known[incarnation].gone
        at = f"{incarnation} has left, and nobody has joined in its place" if gone else f"{incarnation} is still there"
        if waited_s >= timeout_s:
            raise Unavailable(
                f"{worker} is not back within {timeout_s:.0f} s: {at}.",
                f"The order stands. Its launcher's output says what it does; `antdt stack {job} {worker}` asks it.",
            )
        if waiting.is_due(monotonic()):
            say(f"{at}: waiting for it, {timeout_s - waited_s:.0f} s at most.")
        sleep(min(LOOK_EVERY_S, timeout_s - waited_s))  # between two looks, which are clients of their own


def promote(connection: Connection, job: str, name: str, changes: Mapping[str, str], reason: str, who: str = "") -> str:
    """Let another policy decide from now on, with these parameters: one sentence.

    Raises:
        UsageError: there is no such policy, it does not take the parameters, or does not work in this job.
        Refused: the Controller cannot load it, or says why not.
        Unavailable: no Controller answers.
    """
    file, colon, of = name.rpartition(":")
    if colon:  # the Controller may have been started in another folder
        name = f"{Path(file).absolute()}:{of}"
    found = find(name)
    parameters.changed(found, changes)
    state = newest_state(connection, job)[0].state
    if state is not None and (why := misfit(found, state.spec.strategy)):
        raise UsageError(f"The {why}, and the strategy of job {job} is {state.spec.strategy}.")
    given = tuple(records.Parameter(key, value) for key, value in changes.items())
    return operating.tell(connection, job, records.Steering(author(who), parameters=given, reason=reason, promote=name))
