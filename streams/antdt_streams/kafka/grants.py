"""The rights that the processes of a job need on a broker with an authorizer: `acls.txt`, as ACLs. One connection."""

from __future__ import annotations

import re
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


def acls_of(job: str) -> dict[str, list[AclBinding]]:
    """Line of the list -> the ACLs that it grants for a job."""
    out = {}
    for line in ACLS.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        principal, kind, pattern, operations = line.replace("JOB", check_job(job)).split()
        prefixed = ResourcePatternType.PREFIXED if pattern.endswith("*") else ResourcePatternType.LITERAL
        where = ResourceType[kind.upper()], pattern.removesuffix("*"), prefixed, f"User:{principal}", "*"
        words = [re.sub("(?<=[a-z])(?=[A-Z])", "_", word).upper() for word in operations.split(",")]  # DESCRIBE_CONFIGS
        granted = [AclBinding(*where, AclOperation[word], AclPermissionType.ALLOW) for word in words]
        out[" ".join((principal, kind, pattern, operations))] = granted
    return out


def grant(connection: Connection, job: str) -> list[str]:
    """Grant every line; granting twice changes nothing. The lines.

    Raises:
        UsageError: this client may not, or the broker has no authorizer.
    """
    lines = acls_of(job)
    topics_admin.create_acls(connection, job, [acl for granted in lines.values() for acl in granted])
    return list(lines)
