"""What to say where a broker with an authorizer does not let a client do something. Knows Kafka's codes, no client."""

from __future__ import annotations

from typing import Any

from antdt_schemas.errors import UsageError

WRITE, READ = "Write", "Read"


def denied(error: Any, operation: str, topic: str) -> UsageError | None:
    """The missing right as a sentence; None if `error`, a KafkaError, says something else.

    operation: WRITE or READ. A client without any right to write is refused the id of an idempotent producer, by the
    name of the cluster, which librdkafka tells as a fatal error.
    """
    said = str(error.str())  # by its text: the code of a fatal error may only be that it is fatal
    if "uthorization failed" not in said:
        return None
    return UsageError(
        f"The broker does not let this client {operation.lower()} {topic}: {said.rstrip('.')}. "
        f"Ask for the ACL {operation} on the topic {topic}; deploy/acls.txt has what each principal needs."
    )
