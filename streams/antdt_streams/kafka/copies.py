"""Offsets that are committed for tools which show lag: under the group of each service, and never read back.

Where the truth is, is said by the log and by the state beside it, so a copy that cannot be written ends nothing. It is
told once, and once more when it can be written again.
"""

from __future__ import annotations

import logging

from confluent_kafka import KafkaError

# A group that is about to change takes none, and everybody commits again when it has.
PASSING = (
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError._NO_OFFSET,
)
HINT = "Lag tools see nothing of it, and `antdt status` no sign of life. Where a right is missing: deploy/acls.txt."

log = logging.getLogger("antdt.offsets")


class Copies:
    """What has become of the copies of one group. Called by whatever thread serves the client."""

    def __init__(self, group: str) -> None:
        self.group, self._failing = group, False

    def came_to(self, error: KafkaError | None) -> None:
        """The broker has answered."""
        if error is None and self._failing:
            self._failing = False
            log.info("event=offsets-copied-again group=%s", self.group)
        elif error is not None and error.code() not in PASSING and not self._failing:
            self._failing = True
            log.warning("event=offsets-not-copied group=%s reason=%r hint=%r", self.group, error.str(), HINT)
