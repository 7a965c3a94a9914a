"""Rights, by a dry run: what the broker says this client may do, against what each part of a job does (`acls.txt`).

A broker tells, with the description of a topic, a group or the cluster, what whoever asks is allowed to do with it: so
nothing is tried. Whoever may read the ACLs themselves is told, too, what other principals lack.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from antdt_schemas.topics import SHARD_LOG, TOPICS
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ConfigResource,
    ResourcePatternType,
    ResourceType,
)

from antdt_streams.doctor.checks import Check, Finding, Setup, fault, ok, unknown, warning
from antdt_streams.kafka.grants import acls_of

ASK_S = 5.0
SERVICES = ("ledger", "monitor", "controller")  # which have groups
Op = AclOperation
# What comes with another right.
WITH: Mapping[Any, frozenset[Any]] = {
    Op.DESCRIBE: frozenset({Op.READ, Op.WRITE, Op.DELETE, Op.ALTER, Op.ALL}),
    Op.DESCRIBE_CONFIGS: frozenset({Op.ALTER_CONFIGS, Op.ALL}),
}
Named = tuple[str, str]  # "topic" or "group", and its name
Needs = Mapping[str, Mapping[Named, frozenset[Any]]]  # by role


def needs_of(job: str) -> dict[str, dict[Named, set[Any]]]:
    """What each role does, by every topic and group of the job: prefixes are spelt out."""
    out: dict[str, dict[Named, set[Any]]] = {}
    every = {"topic": [topic.name(job) for topic in TOPICS], "group": [f"antdt.{job}.{name}" for name in SERVICES]}
    for granted in acls_of(job).values():
        acl: Any
        for acl in granted:
            kind, role = acl.restype.name.lower(), acl.principal.removeprefix("User:")
            prefixed = acl.resource_pattern_type is ResourcePatternType.PREFIXED
            names = [name for name in every[kind] if name.startswith(acl.name)] if prefixed else [acl.name]
            for name in names:
                out.setdefault(role, {}).setdefault((kind, name), set()).add(acl.operation)
    return out


def lacking(needs: Mapping[Named, Iterable[Any]], may: Mapping[Named, frozenset[Any] | None]) -> list[str]:
    """What of it is not allowed, in words. may: None where it cannot be told."""
    out = []
    for (kind, name), wanted in needs.items():
        allowed = may.get((kind, name))
        if allowed is not None:
            missing = [op for op in wanted if not ({op, Op.ALL} | WITH.get(op, frozenset())) & allowed]
            out += [f"{word_of(op)} on {kind} {name}" for op in sorted(missing)]
    return sorted(out)


def word_of(operation: Any) -> str:
    """As Kafka's own tools call it: DescribeConfigs."""
    return "".join(part.capitalize() for part in str(operation.name).split("_"))


def allowed_here(admin: AdminClient, job: str) -> tuple[dict[Named, frozenset[Any] | None], bool | None]:
    """What this client may do with each topic and group; and whether the job is there, None if that cannot be told."""
    names = [topic.name(job) for topic in TOPICS]
    asked: Any = partial(admin.describe_topics, include_authorized_operations=True, request_timeout=ASK_S)
    may: dict[Named, frozenset[Any] | None] = {}
    there: bool | None = None
    for name, future in asked(TopicCollection(names)).items():
        found, code = _answer(future)
        may["topic", name] = found
        if name == SHARD_LOG.name(job):
            there = {None: True, KafkaError.UNKNOWN_TOPIC_OR_PART: False}.get(code)
    may |= _configs(admin, [name for (_, name), found in may.items() if found == frozenset()])
    groups = [f"antdt.{job}.{name}" for name in SERVICES]
    asked = partial(admin.describe_consumer_groups, include_authorized_operations=True, request_timeout=ASK_S)
    for name, future in asked(groups).items():
        may["group", name] = _answer(future)[0]
    return may, there


def _configs(admin: AdminClient, names: Sequence[str]) -> dict[Named, frozenset[Any] | None]:
    """Who may not have a topic described may read its settings all the same: this is asked for by itself."""
    if not names:
        return {}
    asked = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    found: dict[Named, frozenset[Any] | None] = {}
    for resource, future in admin.describe_configs(asked, request_timeout=ASK_S).items():
        try:
            future.result(ASK_S)
            found["topic", resource.name] = frozenset({Op.DESCRIBE_CONFIGS})
        except KafkaException:
            found["topic", resource.name] = frozenset()
    return found


def _answer(future: Any) -> tuple[frozenset[Any] | None, int | None]:
    """Operations that are allowed, None where that cannot be told; and the error's code, if there is one."""
    try:
        return frozenset(future.result(ASK_S).authorized_operations or ()), None
    except KafkaException as error:
        code = error.args[0].code()
        denied = code in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED)
        return (frozenset() if denied else None), code


def rights(setup: Setup) -> Iterator[Finding]:
    """Of this client; whether the job is there shows here as well."""
    admin = AdminClient(setup.reached.admin())
    may, there = allowed_here(admin, setup.job)
    setup.shared["may"] = may
    if there:
        setup.absent.pop("topics", None)
    elif there is False:
        why = f"job {setup.job} is not on this broker yet: `antdt up {setup.job}` creates it"
        setup.absent["topics"] = why
        yield unknown(why)
        yield from _may_create(admin, setup.job)
        return
    else:
        setup.absent["topics"] = f"this client may not see the topics of job {setup.job}"
    missing = {role: lacking(needs, may) for role, needs in needs_of(setup.job).items()}
    yield from judged_rights(setup.job, setup.roles, missing)


def judged_rights(job: str, roles: Sequence[str], missing: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """missing: by role, what this client lacks of it. roles: that it must have; empty: any one of them will do."""
    fix = f"have somebody who may grant it by `antdt topics grant {job}`, or by kafka-acls.sh for this principal"
    for role in roles:
        if missing[role]:
            yield fault(f"as {role}, this client lacks {', '.join(missing[role])}", fix)
        else:
            yield ok(f"this client may do all that {role} does")
    if roles:
        return
    able = [role for role, lacks in missing.items() if not lacks]
    if able:
        rest = [role for role in missing if role not in able]
        more = f"; not what {', '.join(rest)} does (`--role {rest[0]}` says what is missing)" if rest else ""
        yield ok(f"this client may do all that {', '.join(able)} does{more}")
        return
    nearest = min(missing, key=lambda role: len(missing[role]))
    yield fault(
        f"this client can be no part of job {job}: nearest to {nearest}, it lacks {', '.join(missing[nearest])}", fix
    )


def _may_create(admin: AdminClient, job: str) -> Iterator[Finding]:
    """Whether this client could create the topics of the job, which `antdt up` does."""
    if _of_cluster(admin) & {Op.CREATE, Op.ALL}:
        yield ok("this client may create topics")
    else:
        yield warning(
            "this client has no right to create topics on the cluster; one on the job's own topics does not show here",
            f"grant it Create on topics antdt.{job}.*, or have somebody who may call `antdt topics create {job}`",
        )


def _of_cluster(admin: AdminClient) -> frozenset[Any]:
    """What this client may do with the cluster."""
    asked: Any = admin.describe_cluster(include_authorized_operations=True, request_timeout=ASK_S)
    return frozenset(asked.result(ASK_S).authorized_operations or ())


def principals(setup: Setup) -> Iterator[Finding]:
    """What the principals of the list lack, as far as this client may know."""
    anybody: Any = None
    anything = AclBindingFilter(
        ResourceType.ANY, anybody, ResourcePatternType.ANY, anybody, anybody, AclOperation.ANY, AclPermissionType.ANY
    )
    admin = AdminClient(setup.reached.admin())  # which must live until its answer is there
    if not _of_cluster(admin) & {Op.DESCRIBE, Op.ALL}:  # librdkafka would give it an empty list
        yield unknown("this client may not read ACLs (Describe on the cluster): only its own rights were looked at")
        return
    try:
        found = admin.describe_acls(anything, request_timeout=ASK_S).result(ASK_S)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.SECURITY_DISABLED:
            raise
        yield ok("the brokers have no authorizer: everybody may do everything")
        return
    yield from judged_principals(setup.job, found)


def judged_principals(job: str, granted: Sequence[AclBinding]) -> Iterator[Finding]:
    """granted: every ACL of the broker."""
    lines = acls_of(job)
    fix = f"`antdt topics grant {job}` grants all of them; granting twice changes nothing"
    by_role: dict[str, list[str]] = {}
    for line, wanted in lines.items():
        role = line.split()[0]
        if not all(any(covers(one, acl) for one in granted) for acl in wanted):
            by_role.setdefault(role, []).append(line.partition(" ")[2])
    roles = {line.split()[0] for line in lines}
    here = [one for one in granted if one.name.startswith(f"antdt.{job}.")]
    ours = {one.principal.removeprefix("User:") for one in here} & roles
    if not ours:
        yield ok(
            f"no ACL of job {job} names a principal of the list (ledger, services, …): yours have other names, or none"
        )
        return
    for role, missing in sorted(by_role.items()):
        what = f"principal {role} lacks {'; '.join(missing)}"
        yield fault(what, fix) if role in ours and role in ("ledger", "services", "worker") else warning(what, fix)
    if not by_role:
        yield ok(f"the principals {', '.join(sorted(roles))} have what the list says")


def covers(one: AclBinding, wanted: AclBinding) -> bool:
    """Whether an ACL that is there gives what another one would."""
    if one.permission_type is not AclPermissionType.ALLOW or one.restype is not wanted.restype:
        return False
    if one.principal not in (wanted.principal, "User:*"):
        return False
    if one.resource_pattern_type is ResourcePatternType.PREFIXED:
        named = wanted.name.startswith(one.name)
    else:
        literal = wanted.resource_pattern_type is ResourcePatternType.LITERAL
        named = one.name == "*" or (one.name == wanted.name and literal)
    with_it = WITH.get(wanted.operation, frozenset())
    return named and one.operation in ({wanted.operation, AclOperation.ALL} | with_it)


CHECKS = (
    Check("rights", "what this client may do with the job's topics and groups", rights, ("broker", "job"), 15.0),
    Check("principals", "the ACLs of ledger, services, worker, auditor, operator", principals, ("broker", "job")),
)
