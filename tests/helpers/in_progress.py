"""A job in progress: how far it is, who takes part and ran where, and an order that a worker is to start again."""

from __future__ import annotations

from contextlib import suppress

from antdt_schemas import codec, records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import Unavailable
from antdt_schemas.topics import DECISIONS
from antdt_streams.ledger.core.state import State
from antdt_streams.views.job import newest_state
from confluent_kafka import Producer


def state_of(connection: Connection, job: str) -> State | None:
    """What the log says now; None, too, where the broker of a busy machine does not answer at once: ask again."""
    with suppress(Unavailable):
        return newest_state(connection, job)[0].state
    return None


def long_enough(script: str) -> str:
    """The example, which takes its time until there is a file `go`."""
    slow = "    if not os.path.exists('go'):\n        time.sleep(0.05)\n"
    for before, now in (
        ("import antdt\n", "import os\nimport time\n\nimport antdt\n"),
        ("epochs=10", "epochs=100"),
        ("for x, y in agent:\n", f"for x, y in agent:\n{slow}"),
    ):
        assert script.count(before) == 1, before
        script = script.replace(before, now)
    return script


def committed(connection: Connection, job: str) -> int:
    """Samples."""
    state = state_of(connection, job)
    return state.shards.committed_total if state else 0


def order(connection: Connection, job: str, worker: str) -> None:
    """What a Controller writes that has a worker started again."""
    state = state_of(connection, job)
    assert state is not None
    (who,) = [n for n, i in state.members.incarnations.items() if i.worker == worker and not i.gone]
    cause = records.Cause(0, 1 << 40, 0)
    decision = records.Decision(cause, 0, records.Action.KILL_RESTART, (), 1.0, 0, who, "test", 1, "slow", 0.3, 0, 0)
    producer = Producer(connection.producer())
    producer.produce(DECISIONS.name(job), codec.encode(decision))
    assert producer.flush(20) == 0


def members(connection: Connection, job: str) -> int:
    """Who of the newest generation lives."""
    state = state_of(connection, job)
    return len([m for m in state.members.group if not state.members.incarnations[m].gone]) if state else 0


def joined(connection: Connection, job: str) -> list[tuple[str, str]]:
    """Worker and node of every incarnation, sorted."""
    state = state_of(connection, job)
    assert state is not None
    return sorted((i.worker, i.node) for i in state.members.incarnations.values())
