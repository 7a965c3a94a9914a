"""What people order of a job, whatever they order it by: what is sent, to whom, and what is said of it then.

Everything is recorded with who said it. who: a name that somebody gave; the process that sends stands behind it.
"""

from __future__ import annotations

from collections.abc import Mapping

from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import Refused, UsageError

from antdt_streams.kafka import ask
from antdt_streams.kafka.steer import steer


def rollback(connection: Connection, job: str, secret: bytes | None, step: int, reason: str, who: str = "") -> str:
    """Go back to the checkpoint of a step; -1: to the newest one."""
    if step < -1:
        raise UsageError(f"--step {step}: name the step of a checkpoint, from 0.")
    order(connection, job, lambda author: records.Rollback(step, author, reason), secret, who)
    return f"Job {job} goes back to {'its newest checkpoint' if step < 0 else f'step {step}'}."


def readmit(connection: Connection, job: str, secret: bytes | None, who: str = "") -> str:
    """Try again what is in quarantine."""
    order(connection, job, records.Readmit, secret, who)
    whom = "by the workers that run or by the next launch"
    return f"What was in quarantine in job {job} will be trained on again, {whom}."


def resize(connection: Connection, job: str, secret: bytes | None, batch_size: int, reason: str, who: str = "") -> str:
    """Change the global batch."""
    order(connection, job, lambda author: records.Resize(batch_size, author, reason), secret, who)
    return f"Job {job} goes on with {batch_size} samples in a step."


def end(connection: Connection, job: str, secret: bytes | None, reason: str, who: str = "") -> str:
    """End the data of a job that trains on a topic that grows."""
    order(connection, job, lambda author: records.End(author, reason), secret, who)
    return (
        f"The data of job {job} end here: it finishes with what it knows of. `antdt status {job}` shows how far it is."
    )


def order(connection: Connection, job: str, body: ask.Body, secret: bytes | None, who: str = "") -> None:
    """Ask the ledger. Raises Refused, with its reason, and what `ask` raises."""
    reply = ask.ask(connection, job, body, secret, who)
    if reply.status is not records.Status.OK:
        raise Refused(f"The ledger refused: {reply.reason}")


def set_policy(
    connection: Connection, job: str, changes: Mapping[str, str], reason: str, name: str = "", who: str = ""
) -> str:
    """Change parameters of the Controller's policy, which must be `name` where that is given."""
    parameters = tuple(records.Parameter(key, value) for key, value in changes.items())
    return tell(connection, job, records.Steering(ask.author(who), name, parameters, reason=reason))


def tell(connection: Connection, job: str, said: records.Steering) -> str:
    """A word to the Controller, and its answer. Raises Refused, and what `steer` raises."""
    answer = steer(connection, job, said)
    if answer.reason.startswith("refused: "):
        raise Refused(f"The Controller refuses: {answer.reason.removeprefix('refused: ')}")
    return answer.reason
