"""Of the brokers: names, ports, protocols, certificates and credentials of every listener; versions and settings.

A listener is first asked without a client of Kafka, which only sees its connections closed where something is wrong.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from antdt_schemas.connection import Connection
from antdt_schemas.listener import api_versions, connects, host_port, spoken
from antdt_schemas.reaching import Fault, mismatch, nameless, set_by
from antdt_schemas.topics import MESSAGE_BYTES, SHARD_LOG
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType  # type: ignore[attr-defined]

from antdt_streams.doctor.checks import Check, Finding, Setup, each, fault, ok, unknown, warning
from antdt_streams.doctor.tls import tls_fault
from antdt_streams.runtime.source import NAMED_SESSION_TIMEOUT_MS, SESSION_TIMEOUT_MS

REACH_S, ASK_S = 5.0, 5.0
PROBE_S, LISTENERS_S = 2.0, 12.0
# Numbers of requests, and the version of one that this needs: topics have had ids since Kafka 2.8.
FETCH, METADATA = 1, 3
METADATA_MIN = 10
OFFSETS = "__consumer_offsets"
DENIED = (KafkaError.CLUSTER_AUTHORIZATION_FAILED, KafkaError.TOPIC_AUTHORIZATION_FAILED)

# -- listeners


def protocol_of(connection: Connection) -> str:
    return connection.properties.get("security.protocol", "plaintext").upper()


def probed(server: str, connection: Connection) -> Fault | None:
    """What keeps a client with these settings from this listener, as far as that shows without a client of Kafka."""
    host, port = host_port(server)
    try:
        socket.getaddrinfo(host, port)
    except OSError as error:
        return nameless({server: str(error.strerror)}, connection.origins)
    why = connects(host, port, PROBE_S)
    if why:
        return f"Nobody takes connections at {server}: {why}.", "Start the broker there, correct the port, or open it."
    protocol, found = protocol_of(connection), spoken(server, PROBE_S)
    if found is not None and found.protocol != protocol:
        return mismatch(server, found, protocol, connection.origins)
    if "SSL" in protocol:
        try:
            return tls_fault(server, connection.properties, PROBE_S) or _mechanism(server, found, connection)
        except OSError as error:
            return (
                f"No TLS connection with {server}: {error}.",
                "Correct the port: nobody there speaks TLS as Kafka does.",
            )
    return _mechanism(server, found, connection) if found is not None else _strange(server, protocol)


def _mechanism(server: str, found: Any, connection: Connection) -> Fault | None:
    """SASL by a mechanism that the listener does not have."""
    if found is None or not found.mechanisms:
        return None
    mine = connection.properties.get("sasl.mechanism") or connection.properties.get("sasl.mechanisms") or "GSSAPI"
    if mine.upper() in found.mechanisms:
        return None
    came, offered = set_by(connection.origins, "sasl.mechanism"), " or ".join(found.mechanisms)
    return (
        f"The broker at {server} offers {offered}, and sasl.mechanism is {mine}{came}.",
        f"Set sasl.mechanism={offered}.",
    )


def _strange(server: str, protocol: str) -> Fault:
    """It takes connections, and answers no client that says nothing of itself."""
    anybody = {"enable.ssl.certificate.verification": "false"}
    try:
        wanted = tls_fault(server, anybody, PROBE_S)
    except OSError:
        wanted = None
    if wanted is not None:
        return (
            f"The broker at {server} speaks TLS and wants a certificate of its clients, and security.protocol is "
            f"{protocol}.",
            "Set security.protocol=SSL, and ssl.ca.location, ssl.certificate.location and ssl.key.location.",
        )
    return (
        f"What listens at {server} takes connections, and does not answer as a listener of Kafka for clients does.",
        "Correct the port: it is another service's, or that of Kafka's controllers.",
    )


def bootstrap(setup: Setup) -> Iterator[Finding]:
    servers = [server.strip() for server in setup.reached.bootstrap.split(",")]
    faults = dict(zip(servers, each(servers, partial(probed, connection=setup.reached), LISTENERS_S), strict=True))
    wrong = {server: found for server, found in faults.items() if found is not None}
    setup.absent.pop("listener", None)
    if len(wrong) == len(servers):
        setup.absent["listener"] = "no listener that is named can be talked to: see above"
    for what, fix in wrong.values():
        yield (fault if len(wrong) == len(servers) else warning)(what, fix)
    if len(wrong) < len(servers):
        yield ok(f"{', '.join(s for s in servers if s not in wrong)} by {protocol_of(setup.reached)}")


def broker(setup: Setup) -> Iterator[Finding]:
    """With a client of Kafka: credentials show here."""
    setup.reached.check_reachable(REACH_S)
    found = AdminClient(setup.reached.admin()).list_topics(timeout=ASK_S)
    setup.shared["brokers"] = {number: f"{one.host}:{one.port}" for number, one in found.brokers.items()}
    setup.shared["topics"] = frozenset(found.topics)
    setup.absent.pop("broker", None)
    count = len(found.brokers)
    yield ok(f"{count} broker{'s' if count != 1 else ''} of cluster {found.cluster_id}")


def advertised(setup: Setup) -> Iterator[Finding]:
    """Every address that the brokers tell their clients; any of them may lead a partition of a job."""
    brokers: Mapping[int, str] = setup.shared["brokers"]
    known = {host_port(server) for server in setup.reached.bootstrap.split(",")}
    others = {number: server for number, server in brokers.items() if host_port(server) not in known}
    found = each(list(others.values()), partial(probed, connection=setup.reached), LISTENERS_S)
    for (number, server), wrong in zip(others.items(), found, strict=True):
        if wrong is not None:
            yield fault(
                f"Broker {number} advertises {server}, which clients here cannot use: {wrong[0]}",
                f"{wrong[1]} Or set that broker's advertised.listeners to an address that its clients can reach.",
            )
    wrong_here = [server for server, one in zip(others.values(), found, strict=True) if one is not None]
    if len(wrong_here) < len(brokers):
        yield ok(", ".join(server for server in brokers.values() if server not in wrong_here))


# -- versions and settings


def versions(setup: Setup) -> Iterator[Finding]:
    servers, tls = list(setup.shared["brokers"].values()), "SSL" in protocol_of(setup.reached)
    found = each(servers, partial(api_versions, tls=tls, timeout_s=PROBE_S), LISTENERS_S)
    for server, takes in zip(servers, found, strict=True):
        yield judged_versions(server, takes or {})


def judged_versions(server: str, takes: Mapping[int, tuple[int, int]]) -> Finding:
    """takes: number of a request -> its oldest and newest version."""
    if METADATA not in takes:
        return unknown(f"{server} does not tell a client that says nothing of itself which versions it takes")
    newest = takes[METADATA][1]
    if newest < METADATA_MIN:
        return fault(
            f"{server} is older than Kafka 2.8 (Metadata up to version {newest}): its topics have no ids, by which a "
            "log is told from another one of its name",
            "Upgrade the brokers to Kafka 2.8 or newer.",
        )
    age = "4.0 or newer" if takes.get(FETCH, (0, 0))[0] >= 4 else "2.8 or newer"
    return ok(f"{server}: Kafka {age}, {len(takes)} kinds of requests")


def broker_settings(setup: Setup) -> list[Finding]:
    """Those of one broker, which are alike in a cluster."""
    number = next(iter(setup.shared["brokers"]))
    admin = AdminClient(setup.reached.admin())
    asked = ConfigResource(ResourceType.BROKER, str(number))
    try:
        entries = admin.describe_configs([asked], request_timeout=ASK_S)[asked].result(ASK_S)
    except KafkaException as error:
        if error.args[0].code() in DENIED:
            return [unknown("this client may not read the brokers' settings (DescribeConfigs on the cluster)")]
        raise
    found = {key: entry.value for key, entry in entries.items()}
    topics, brokers = setup.shared["topics"], len(setup.shared["brokers"])
    mechanism = setup.reached.properties.get("sasl.mechanism", "")
    begun = bool(setup.job) and SHARD_LOG.name(setup.job) in topics
    return list(judged_settings(found, brokers, has_offsets=OFFSETS in topics, has_job=begun, mechanism=mechanism))


def judged_settings(
    found: Mapping[str, str | None], brokers: int, *, has_offsets: bool, has_job: bool = False, mechanism: str = ""
) -> Iterator[Finding]:
    """found: settings of a broker. has_offsets: any group was ever formed there. has_job: its topics are there."""

    wrong = [*_sessions(found), *_copies(found, brokers, has_offsets=has_offsets, has_job=has_job)]
    size = _number(found, "message.max.bytes", MESSAGE_BYTES)
    if size < MESSAGE_BYTES:
        said = f"message.max.bytes is {size}, and the topics of a job ask for {MESSAGE_BYTES}: where nobody sets that, "
        fix = (
            f"set message.max.bytes={MESSAGE_BYTES} on the brokers, or let this client set max.message.bytes of topics"
        )
        wrong.append(warning(f"{said}records are split to fit", fix))
    if mechanism.upper() == "OAUTHBEARER" and not _number(found, "connections.max.reauth.ms", 0):
        said = "connections.max.reauth.ms is 0: a session goes on with a token that has expired, until it is cut off"
        wrong.append(warning(said, "set connections.max.reauth.ms on the broker to less than a token lives"))
    yield from wrong
    if not wrong:
        yield ok(f"sessions, copies of {OFFSETS}, and message.max.bytes={size} are what a job needs")


def _number(found: Mapping[str, str | None], key: str, default: int) -> int:
    return int(found.get(key) or default)


def _sessions(found: Mapping[str, str | None]) -> Iterator[Finding]:
    """Of the groups of Monitor and Controller; `antdt up` names its instances, which have long ones."""
    shortest = _number(found, "group.min.session.timeout.ms", 6_000)
    longest = _number(found, "group.max.session.timeout.ms", 1_800_000)
    named, unnamed = NAMED_SESSION_TIMEOUT_MS, SESSION_TIMEOUT_MS
    if not shortest <= named <= longest:
        yield fault(
            f"sessions of groups must last {shortest} to {longest} ms, and those of Monitor and Controller {named}",
            f"set group.min.session.timeout.ms={unnamed} and group.max.session.timeout.ms={max(longest, 60_000)}",
        )
    elif shortest > unnamed:
        yield warning(
            f"group.min.session.timeout.ms is {shortest}: `antdt monitor` and `controller` without --instance, whose "
            f"sessions last {unnamed}, are refused",
            f"name them by --instance, or set group.min.session.timeout.ms={unnamed}",
        )


def _copies(found: Mapping[str, str | None], brokers: int, *, has_offsets: bool, has_job: bool) -> Iterator[Finding]:
    """More of them than there are brokers, of topics that are still to be made."""
    copies, are = _number(found, "offsets.topic.replication.factor", 3), "is 1 broker"
    if brokers != 1:
        are = f"are {brokers} brokers"
    if copies > brokers and not has_offsets:
        yield fault(
            f"{OFFSETS} is to have {copies} copies (offsets.topic.replication.factor), and there {are}: no group can "
            "be formed, so neither Monitor nor Controller begins",
            f"set offsets.topic.replication.factor={brokers}, or start the other brokers",
        )
    copies = _number(found, "default.replication.factor", 1)
    if copies > brokers and not has_job:
        yield fault(
            f"new topics are to have {copies} copies (default.replication.factor), and there {are}: no job is made",
            f"`antdt up JOB --replication {brokers}`, or start the other brokers",
        )


CHECKS = (
    Check(
        "bootstrap", "name, port, protocol, TLS and SASL of each server that is named", bootstrap, ("connection",), 15.0
    ),
    Check(
        "broker", "whether a Kafka client with these credentials is answered", broker, ("connection", "listener"), 15.0
    ),
    Check("listeners", "the same of every address that brokers advertise", advertised, ("broker",), 15.0),
    Check("versions", "what the brokers' protocol is able to", versions, ("broker",), 15.0),
    Check("broker settings", "sessions, copies, sizes", broker_settings, ("broker",)),
)
