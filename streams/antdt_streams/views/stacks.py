"""The stacks of a worker: asked for through the Controller, which launchers hear, and answered on the topic of steps.

Owns the question, the bound on the wait, and what is said where nobody answers: why, and since when. Only reads, but
for the one record that asks.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import Unavailable, UsageError
from antdt_schemas.launch_locks import process_name
from antdt_schemas.topics import STEPS
from antdt_schemas.waiting import Waiting

from antdt_streams.kafka.reader import TopicReader, decoded
from antdt_streams.kafka.steer import steer
from antdt_streams.ledger.core.members import Incarnation
from antdt_streams.views.job import newest_state
from antdt_streams.views.standings import standings

SAY_AFTER_S = 3.0
FRESH_S = 10.0  # of a heartbeat, which comes every second
# At what a training thread waits for the others.
TOGETHER = ("forming", "reducing", "idle")


def stack_of(
    connection: Connection, job: str, worker: str, timeout_s: float, say: Callable[[str], None]
) -> records.Stack:
    """What the launcher of this worker finds. say: is told what is waited for.

    Raises:
        UsageError: no such worker ever joined, or this client may not ask.
        Unavailable: the Controller, or the launcher, does not answer in time; which, and since when.
    """
    with TopicReader(connection, job, STEPS) as reader:
        reader.follow(0)
        answer = steer(connection, job, records.Steering(process_name(), stack=worker), timeout_s)
        began_s, waiting = monotonic(), Waiting(SAY_AFTER_S)
        while monotonic() - began_s < timeout_s:
            for _, found in decoded(reader.poll(0.1), records.Stack, records.StepBatch):
                if isinstance(found, records.Stack) and found.asked == answer.cause.offset:
                    return found
            if waiting.is_due(monotonic()):
                known = _known(connection, job)
                if (error := absence(job, worker, known)) is not None:
                    raise error
                left_s = timeout_s - (monotonic() - began_s)
                if left_s > 1.0:
                    say(f"The launcher of {worker} has not answered yet: waiting for it, {left_s:.0f} s at most.")
    known = _known(connection, job)
    raise absence(job, worker, known) or silence(worker, known, standings(connection, job, None), timeout_s)


def _known(connection: Connection, job: str) -> Mapping[str, Incarnation]:
    """Everybody who ever joined, in order."""
    fold, _ = newest_state(connection, job)
    return fold.state.members.incarnations if fold.state is not None else {}


def absence(job: str, worker: str, known: Mapping[str, Incarnation]) -> UsageError | Unavailable | None:
    """Why nobody can answer for this worker, as far as the log tells; None if somebody could."""
    mine = [name for name, one in known.items() if one.worker == worker]
    if not mine:
        others = ", ".join(sorted({one.worker for one in known.values()})) or "nobody yet"
        return UsageError(f"No worker or server {worker!r} has joined job {job}. Who has: {others}.")
    if not known[mine[-1]].gone:
        return None
    gone = "has left" if known[mine[-1]].status == "left" else f"was {known[mine[-1]].status}"
    return Unavailable(
        f"{worker} is not there: its last life, {mine[-1]}, {gone}, and no launcher answers for it.",
        f"`antdt status {job}` says who is there.",
    )


def newest_life(worker: str, known: Mapping[str, Incarnation]) -> str:
    """Of a worker that has joined, the incarnation that joined last."""
    return [name for name, one in known.items() if one.worker == worker][-1]


def has_launcher(worker: str, known: Mapping[str, Incarnation]) -> bool:
    """Whether an `antdt launch` started it. Whoever comes back under another name by itself was launched under one."""
    launch = known[newest_life(worker, known)].launch
    lives = [name for name, one in known.items() if (one.worker, one.launch) == (worker, launch)]
    return any(name.endswith(f".{launch}") for name in lives)


def silence(
    worker: str, known: Mapping[str, Incarnation], said: Mapping[str, Mapping[str, Any]], waited_s: float
) -> Unavailable:
    """Why nobody answers for a worker that is there. said: the last heartbeats."""
    name = newest_life(worker, known)
    one, heard = known[name], _heard(worker, said.get(name))
    if not has_launcher(worker, known):
        return Unavailable(
            f"{worker} ({name}) was not started by `antdt launch`, but by torchrun or by hand, as {one.launcher}: no "
            f"launcher is beside it that could be asked. {heard}",
            f"On its machine, `py-spy dump --pid {one.launcher.rpartition(':')[2]}` tells its stacks.",
        )
    why, then = _launcher(one.launcher)
    silent = f"The launcher of {worker}, {one.launcher}, has not answered for {waited_s:.0f} s: {why}. {heard}"
    return Unavailable(silent, then)


def _launcher(launcher: str) -> tuple[str, str]:
    """What is known of its process from here, and what is to be done."""
    place, _, pid = launcher.rpartition(":")
    look = "Its own output, where it runs, says whether orders are heard."
    if place.rpartition("@")[2] != socket.gethostname() or not pid.isdigit():
        return "it is of an older version, stopped, dead, or cut off from the broker", look
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "its process is not on this machine any more", "Its workers have ended with it: launch again."
    if state in "tT":
        return "its process is stopped", f"Continue it by `kill -CONT {pid}`."
    return "its process runs, and is of an older version, or cut off from the broker", look


def _heard(worker: str, standing: Mapping[str, Any] | None) -> str:
    if standing is None:
        return f"{worker} itself has not said lately what it is at."
    return f"{worker} itself was heard {standing['age_s']:.0f} s ago: {_at(standing)}."


def _at(standing: Mapping[str, Any]) -> str:
    detail = f" ({standing['detail']})" if standing["detail"] else ""
    return f"{standing['phase']} for {standing['phase_s']:.1f} s{detail}"


def waited_for(found: records.Stack, said: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What the worker is at, and whom it waits for there, as far as heartbeats tell."""
    phase = found.phase or "not in its loop over the Agent"
    detail = found.detail or said.get(found.incarnation, {}).get("detail", "")
    yield f"{phase}{f' for {found.phase_s:.1f} s' if found.phase else ''}{f' ({detail})' if detail else ''}"
    if found.phase not in TOGETHER:
        return
    for name, standing in sorted(said.items()):
        if name != found.incarnation and standing["age_s"] < FRESH_S and standing["phase"] not in TOGETHER:
            yield f"waits for {name.partition('.')[0]}, which is {_at(standing)}"
