"""The topics and rights of a job as other tools declare them: Strimzi's resources, Kafka's own scripts, Terraform.

Owns the words of those tools. What they say comes from the registry of topics and the one list of rights, as that which
`antdt topics create` and `grant` do themselves. Asks no broker.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

from antdt_schemas.errors import UsageError
from antdt_schemas.topics import DECISIONS, DURABLE_COPIES, SHARD_LOG, TOPICS, Topic

from antdt_streams.kafka.grants import rights_of

# Whoever creates the shard log owns the name of the job; what is lost with these two cannot be made again.
IN_ORDER = (SHARD_LOG, *(topic for topic in TOPICS if topic is not SHARD_LOG))
TRUTH = (SHARD_LOG, DECISIONS)
AUTHENTICATIONS = ("scram-sha-512", "tls", "tls-external")
LABEL = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Declared:
    """What is declared. replication: copies of each partition. cluster, authentication: of Strimzi's resources."""

    job: str
    replication: int = DURABLE_COPIES
    cluster: str = "my-cluster"
    authentication: str = "scram-sha-512"

    def __post_init__(self) -> None:
        if self.replication < 1:
            raise UsageError(f"--replication {self.replication}: keep at least one copy.")
        if not LABEL.fullmatch(self.cluster):
            raise UsageError(f"--cluster {self.cluster}: that is no name of a Kafka resource of Strimzi's.")


def strimzi(declared: Declared) -> str:
    """KafkaTopic and KafkaUser of each principal, one YAML document each.

    A user is one job's (antdt-JOB-worker): the operator of users replaces all rights that a user has.
    """
    return "---\n".join(_yaml(one) for one in strimzi_resources(declared))


def strimzi_resources(declared: Declared) -> list[dict[str, Any]]:
    """The same, as they are before they become text."""
    out = []
    for topic in IN_ORDER:
        settings = {key: _number(value) for key, value in topic.settings(declared.replication).items()}
        spec = {"partitions": topic.partitions, "replicas": declared.replication, "config": settings}
        out.append(_resource("KafkaTopic", topic.name(declared.job), declared.cluster, spec))
    for principal, rights in groupby(rights_of(declared.job).values(), attrgetter("principal")):
        acls = [
            {
                "resource": {
                    "type": right.kind,
                    "name": right.name,
                    "patternType": "prefix" if right.prefixed else "literal",
                },
                "operations": list(right.operations),
            }
            for right in rights
        ]
        spec = {
            "authentication": {"type": declared.authentication},
            "authorization": {"type": "simple", "acls": acls},
        }
        out.append(_resource("KafkaUser", f"antdt-{declared.job}-{principal}", declared.cluster, spec))
    return out


def _resource(kind: str, name: str, cluster: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "labels": {"strimzi.io/cluster": cluster}}
    return {"apiVersion": "kafka.strimzi.io/v1", "kind": kind, "metadata": metadata, "spec": spec}


def scripts(declared: Declared) -> str:
    """A shell script of kafka-topics.sh and kafka-acls.sh. Run again it changes nothing."""
    lines = [
        "#!/bin/sh",
        f"# Topics and rights of job {declared.job}. BOOTSTRAP_SERVERS: HOST:PORT[,HOST:PORT]. COMMAND_CONFIG: a",
        "# client.properties of somebody who may create topics and grant rights.",
        "set -eu",
        'set -- --bootstrap-server "${BOOTSTRAP_SERVERS:?name the brokers}"',
        'set -- "$@" --command-config "${COMMAND_CONFIG:-/dev/null}"',
    ]
    for topic in IN_ORDER:
        words = ["--create", "--if-not-exists", "--topic", topic.name(declared.job)]
        words += ["--partitions", str(topic.partitions), "--replication-factor", str(declared.replication)]
        for key, value in topic.settings(declared.replication).items():
            words += ["--config", f"{key}={value}"]
        lines.append(f'kafka-topics.sh "$@" {shlex.join(words)}')
    for right in rights_of(declared.job).values():
        words = ["--add", "--allow-principal", f"User:{right.principal}"]
        for operation in right.operations:
            words += ["--operation", operation]
        words += [f"--{right.kind}", right.name]
        words += ["--resource-pattern-type", "prefixed" if right.prefixed else "literal"]
        lines.append(f'kafka-acls.sh "$@" {shlex.join(words)}')
    return "\n".join(lines) + "\n"


def terraform(declared: Declared) -> str:
    """Resources of the provider Mongey/kafka. The topics that hold the truth cannot be destroyed by a plan."""
    return "\n".join(_terraform(declared))


def _terraform(declared: Declared) -> Iterator[str]:
    yield '# provider "kafka" { bootstrap_servers = [...] } is yours to write.\n'
    yield 'terraform {\n  required_providers {\n    kafka = {\n      source = "Mongey/kafka"\n    }\n  }\n}\n'
    for topic in IN_ORDER:
        body = [
            f"  name               = {json.dumps(topic.name(declared.job))}",
            f"  partitions         = {topic.partitions}",
            f"  replication_factor = {declared.replication}",
            "  config = {",
            *(f"    {json.dumps(key)} = {json.dumps(value)}" for key, value in _settings(topic, declared)),
            "  }",
        ]
        if topic in TRUTH:
            body += ["  lifecycle {", "    prevent_destroy = true", "  }"]
        yield _block("kafka_topic", _identifier(declared.job, topic.suffix), body)
    for right in rights_of(declared.job).values():
        for operation in right.operations:
            name = _identifier(declared.job, right.principal, right.kind, right.name.rpartition(".")[2], operation)
            yield _block(
                "kafka_acl",
                name,
                [
                    f"  resource_name                = {json.dumps(right.name)}",
                    f"  resource_type                = {json.dumps(right.kind.capitalize())}",
                    f"  resource_pattern_type_filter = {json.dumps('Prefixed' if right.prefixed else 'Literal')}",
                    f"  acl_principal                = {json.dumps(f'User:{right.principal}')}",
                    '  acl_host                     = "*"',
                    f"  acl_operation                = {json.dumps(operation)}",
                    '  acl_permission_type          = "Allow"',
                ],
            )


def _settings(topic: Topic, declared: Declared) -> list[tuple[str, str]]:
    return list(topic.settings(declared.replication).items())


def _block(kind: str, name: str, body: list[str]) -> str:
    return "\n".join([f"resource {json.dumps(kind)} {json.dumps(name)} {{", *body, "}", ""])


def _identifier(*parts: str) -> str:
    """Of letters, digits, `-` and `_`, not beginning with a digit."""
    return "_".join(["antdt", *(part.lower() for part in parts if part)])


FORMATS: Mapping[str, Callable[[Declared], str]] = {
    "strimzi": strimzi,
    "kafka-topics.sh": scripts,
    "terraform": terraform,
}


def _number(value: str) -> int | str:
    """Numbers stand without quotes in Strimzi's own examples; its operator compares them as text."""
    return int(value) if re.fullmatch(r"-?\d+", value) else value


def _yaml(value: Mapping[str, Any], indent: str = "") -> str:
    """Of mappings, lists of mappings or texts, texts and whole numbers. What JSON quotes, YAML reads."""
    lines = []
    for key, item in value.items():
        if isinstance(item, Mapping):
            lines.append(f"{indent}{_scalar(key)}:\n{_yaml(item, indent + '  ')}")
        elif isinstance(item, list):
            lines.append(f"{indent}{_scalar(key)}:\n{''.join(_item(one, indent) for one in item)}")
        else:
            lines.append(f"{indent}{_scalar(key)}: {_scalar(item)}\n")
    return "".join(lines)


def _item(item: Any, indent: str) -> str:
    if isinstance(item, Mapping):
        return f"{indent}- {_yaml(item, indent + '  ').removeprefix(indent + '  ')}"
    return f"{indent}- {_scalar(item)}\n"


def _scalar(value: Any) -> str:
    """Plain where nobody takes it for anything else: a name of letters, or a path of a group and version."""
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z][-A-Za-z0-9._/]*[A-Za-z0-9]", value)
    taken = isinstance(value, str) and value.lower() in ("true", "false", "yes", "no", "on", "off", "null")
    return value if plain and not taken else json.dumps(value)
