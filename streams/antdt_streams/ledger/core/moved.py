"""Where requests go on when they are not those that were read before.

Requests are only questions, and whoever is not answered asks again: what is gone of them is no loss, and what is read
again changes nothing. So the ledger goes on at what there is, and says so in the log.
"""

from __future__ import annotations

from antdt_schemas import records

from antdt_streams.ledger.core.state import State


def moved(state: State, genesis: records.Genesis, topic_id: str, low: int, high: int) -> records.RequestsMoved | None:
    """What is to be recorded, if anything. topic_id, low, high: Kafka's id of the topic, and what it holds now."""
    known, at = state.requests_topic or genesis.requests_topic, state.requests_next
    if known and topic_id != known:
        return records.RequestsMoved(topic_id, low, f"The topic was created again: its id was {known}.")
    if at > high:
        return records.RequestsMoved(topic_id, high, f"Up to {at} was read, but the requests end at {high}.")
    if at < low:
        return records.RequestsMoved(topic_id, low, f"Requests {at} to {low - 1} were removed before they were read.")
    return None
