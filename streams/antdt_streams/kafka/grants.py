"""The rights that the processes of a job need on a broker with an authorizer: `acls.txt`, as ACLs. One connection."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from antdt_schemas.connection import Connection
from antdt_schemas.topics import check_job
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from antdt_streams.kafka import topics_admin

ACLS = Path(__file__).with_name("acls.txt")


@dataclass(frozen=True, slots=True)
class Right:
    """One line of the list, for one job. kind: "topic" or "group". operations: as Java's tools name them."""

    principal: str
    kind: str
    name: str
    prefixed: bool
    operations: tuple[str, ...]


def rights_of(job: str) -> dict[str, Right]:
    """Line of the list -> what it grants for a job."""
    out = {}
    for line in ACLS.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        principal, kind, pattern, operations = line.replace("JOB", check_job(job)).split()
        right = Right(principal, kind, pattern.removesuffix("*"), pattern.endswith("*"), (*operations.split(","),))
        out[" ".join((principal, kind, pattern, operations))] = right
    return out


def acls_of(job: str) -> dict[str, list[AclBinding]]:
    """Line of the list -> the ACLs that it grants for a job."""
    out = {}
    for line, right in rights_of(job).items():
        prefixed = ResourcePatternType.PREFIXED if right.prefixed else ResourcePatternType.LITERAL
        where = ResourceType[right.kind.upper()], right.name, prefixed, f"User:{right.principal}", "*"
        words = [re.sub("(?<=[a-z])(?=[A-Z])", "_", word).upper() for word in right.operations]  # DESCRIBE_CONFIGS
        out[line] = [AclBinding(*where, AclOperation[word], AclPermissionType.ALLOW) for word in words]
    return out


def grant(connection: Connection, job: str) -> list[str]:
    """Grant every line; granting twice changes nothing. The lines.

    Raises:
        UsageError: this client may not, or the broker has no authorizer.
    """
    lines = acls_of(job)
    topics_admin.create_acls(connection, job, [acl for granted in lines.values() for acl in granted])
    return list(lines)
