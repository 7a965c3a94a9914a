"""antdt topics print: what other tools are told is what the registry and the one list of rights say."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise

import pytest
import yaml
from antdt_schemas.errors import UsageError
from antdt_schemas.topics import SHARD_LOG, TOPICS
from antdt_streams.cli.main import main
from antdt_streams.kafka.declared import FORMATS, Declared, strimzi_resources
from antdt_streams.kafka.grants import acls_of
from click.testing import CliRunner

JOB = "my-job"
# (principal, "topic" or "group", name, prefixed, operation), each as Kafka knows it.
RIGHTS = {
    (
        acl.principal, acl.restype.name.lower(), acl.name, acl.resource_pattern_type.name == "PREFIXED",
        acl.operation.name.replace("_", "").lower(),
    )
    for acls in acls_of(JOB).values() for acl in acls
}  # fmt: skip
SETTINGS = {
    topic.name(JOB): (topic.partitions, 3, {k: str(v) for k, v in topic.settings(3).items()}) for topic in TOPICS
}

# Of the provider's resource kafka_acl; those of kafka_topic are in the test.
ACL_ATTRIBUTES = {
    "resource_name", "resource_type", "resource_pattern_type_filter",
    "acl_principal", "acl_host", "acl_operation", "acl_permission_type",
}  # fmt: skip


def test_strimzi() -> None:
    told = FORMATS["strimzi"](Declared(JOB))
    resources = list(yaml.safe_load_all(told))
    assert resources == strimzi_resources(Declared(JOB)), "the text says what was meant"
    topics = {
        one["metadata"]["name"]: (
            one["spec"]["partitions"], one["spec"]["replicas"], {k: str(v) for k, v in one["spec"]["config"].items()}
        )
        for one in resources if one["kind"] == "KafkaTopic"
    }  # fmt: skip
    assert topics == SETTINGS
    assert next(iter(topics)) == SHARD_LOG.name(JOB), "whoever creates it owns the name"
    users = [one for one in resources if one["kind"] == "KafkaUser"]
    rights = {
        (
            f"User:{one['metadata']['name'].removeprefix('antdt-my-job-')}", acl["resource"]["type"],
            acl["resource"]["name"], acl["resource"]["patternType"] == "prefix", operation.lower(),
        )
        for one in users for acl in one["spec"]["authorization"]["acls"] for operation in acl["operations"]
    }  # fmt: skip
    assert rights == RIGHTS
    assert all(len(one["metadata"]["name"]) <= 253 and "_" not in one["metadata"]["name"] for one in resources)


def test_kafkas_own_scripts() -> None:
    lines = [
        shlex.split(line)
        for line in FORMATS["kafka-topics.sh"](Declared(JOB)).splitlines()
        if line.startswith("kafka-")
    ]
    topics, rights = {}, set()
    for tool, _, *words in lines:
        pairs = list(pairwise(words))
        options = dict(pairs)
        if tool == "kafka-topics.sh":
            config = dict(value.split("=", 1) for name, value in pairs if name == "--config")
            numbers = int(options["--partitions"]), int(options["--replication-factor"])
            topics[options["--topic"]] = (*numbers, config)
        else:
            kind = "topic" if "--topic" in options else "group"
            prefixed = options["--resource-pattern-type"] == "prefixed"
            where = options["--allow-principal"], kind, options[f"--{kind}"], prefixed
            rights |= {(*where, value.lower()) for name, value in pairs if name == "--operation"}
    assert (topics, rights) == (SETTINGS, RIGHTS)


def test_terraform() -> None:
    text = FORMATS["terraform"](Declared(JOB))
    blocks = re.findall(r'^resource "(\w+)" "(\S+)" \{\n(.*?)^\}', text, re.M | re.S)
    assert len({(kind, name) for kind, name, _ in blocks}) == len(blocks), "each has a name of its own"
    assert all(re.fullmatch(r"[a-z_][-a-z0-9_]*", name) for _, name, _ in blocks)
    topics, rights = {}, set()
    for kind, _, body in blocks:
        said = dict(re.findall(r'^  (\w+) += "?(.*?)"?$', body, re.M))
        if kind == "kafka_topic":
            assert said.keys() == {"name", "partitions", "replication_factor", "config"}
            config = dict(re.findall(r'^    "(\S+)" = "(.*)"$', body, re.M))
            topics[said["name"]] = int(said["partitions"]), int(said["replication_factor"]), config
            assert ("prevent_destroy = true" in body) is said["name"].endswith(("shard-log", "decisions"))
        else:
            assert said.keys() == ACL_ATTRIBUTES
            assert (said["acl_host"], said["acl_permission_type"]) == ("*", "Allow")
            prefixed = said["resource_pattern_type_filter"] == "Prefixed"
            where = said["acl_principal"], said["resource_type"].lower(), said["resource_name"], prefixed
            rights.add((*where, said["acl_operation"].lower()))
    assert (topics, rights) == (SETTINGS, RIGHTS)


def test_one_copy_and_a_cluster_of_another_name() -> None:
    (topic, *_, user) = strimzi_resources(Declared(JOB, 1, "east", "tls"))
    assert (topic["spec"]["replicas"], topic["spec"]["config"]["min.insync.replicas"]) == (1, 1)
    assert topic["metadata"]["labels"] == {"strimzi.io/cluster": "east"}
    assert user["spec"]["authentication"] == {"type": "tls"}


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one copy"):
        Declared(JOB, 0)
    with pytest.raises(UsageError, match="no name of a Kafka resource"):
        Declared(JOB, cluster="My Cluster")
    done = CliRunner().invoke(main, ["topics", "print", "my job"])
    assert (done.exit_code, "is not usable" in done.output) == (2, True)


@pytest.mark.parametrize("name", FORMATS)
def test_the_command_asks_no_broker(name: str) -> None:
    done = CliRunner().invoke(
        main, ["topics", "print", JOB, "--format", name], env={"ANTDT_KAFKA_BOOTSTRAP_SERVERS": ""}
    )
    assert (done.exit_code, done.output) == (0, FORMATS[name](Declared(JOB)))
