"""Which settings of a Kafka client are this project's own, which only Java has, and which have another name here.

A company's `client.properties` says how to reach and tune a cluster. What this project's exactness rests on is not its
business: such settings are ignored, with a line that says so. Aliases are listed as librdkafka has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable

DURABLE = "what was acknowledged is on every replica in sync, once and in order"
BOUNDED = "how long a record is tried is decided where it is written"
POSITIONS = "positions lie in the shard log and beside the state, and what was removed is an error, never a jump"
GROUPS = "the groups of a job, and how soon a dead member is replaced, are its own"
WHOLE = "every record, end and acknowledgement is accounted for"
SIZES = "how large records may be is what the topics say"
TOPICS = "topics come from `antdt up` and `antdt topics create`, with the settings that they need"
PLACES = "which partition a record belongs to is part of the protocol"
WIRES = "the clients' own callbacks and logs are used here"

OURS: dict[str, str] = {
    key: why
    for why, keys in {
        DURABLE: "acks request.required.acks enable.idempotence enable.gapless.guarantee retries "
        "message.send.max.retries max.in.flight max.in.flight.requests.per.connection transactional.id "
        "transaction.timeout.ms transaction.two.phase.commit.enable queuing.strategy",
        BOUNDED: "delivery.timeout.ms message.timeout.ms",
        POSITIONS: "auto.offset.reset enable.auto.commit auto.commit.enable auto.commit.interval.ms "
        "enable.auto.offset.store offset.store.method offset.store.path offset.store.sync.interval.ms",
        GROUPS: "group.id group.instance.id group.protocol group.protocol.type group.remote.assignor "
        "partition.assignment.strategy session.timeout.ms heartbeat.interval.ms max.poll.interval.ms "
        "coordinator.query.interval.ms share.acknowledgement.mode share.acquire.mode",
        WHOLE: "isolation.level enable.partition.eof delivery.report.only.error produce.offset.report",
        SIZES: "max.request.size message.max.bytes fetch.max.bytes max.partition.fetch.bytes fetch.message.max.bytes "
        "receive.message.max.bytes fetch.min.bytes",
        TOPICS: "allow.auto.create.topics topic.blacklist",
        PLACES: "partitioner partitioner.class partitioner.ignore.keys partitioner.rack.aware "
        "partitioner.adaptive.partitioning.enable partitioner.availability.timeout.ms msg_order_cmp",
        WIRES: "enabled_events opaque log.queue",
    }.items()
    for key in keys.split()
}

# Every setting of Java's producer, consumer and admin client (Kafka 4.4, and what 3.x had besides) that librdkafka does
# not have, and what files hold that are shared with other tools.
JAVA_ONLY = re.compile(
    r"(key|value)\.(de)?serializer(\..*)?|interceptor\.classes|metric(s|\.reporters)\b.*|auto\.include\.jmx\.reporter"
    r"|ssl\.(protocol|enabled\.protocols|provider|keymanager\.algorithm|trustmanager\.algorithm"
    r"|secure\.random\.implementation|engine\.factory\.class|truststore\.(type|password)|keystore\.type)"
    r"|sasl\.(client|login)\.callback\.handler\.class|sasl\.login\..*|sasl\.kerberos\.ticket\..*|security\.providers"
    r"|sasl\.oauthbearer\.(allow\.unverified\..*|assertion\.template\.file|clock\.skew\.seconds|expected\..*"
    r"|header\.urlencode|jwks\..*|jwt\..*|scope\.claim\.name|sub\.claim\.name)"
    r"|client\.dns\.lookup|default\.api\.timeout\.ms|bootstrap\.(controllers|resolve\.timeout\.ms)"
    r"|buffer\.memory\.allocation\.strategy|compression\.(gzip|lz4|zstd)\.level|exclude\.internal\.topics"
    r"|max\.block\.ms|max\.poll\.records|metadata\.(cluster\.check\.enable|max\.idle\.ms)"
    r"|socket\.connection\.setup\.timeout\.max\.ms|internal\..*"
    r"|schema\.registry\..*|basic\.auth\..*|confluent\..*|type|provider"
)


def _between(low: int, high: int) -> Callable[[int], int]:
    return lambda value: min(max(value, low), high)


def _kbytes(value: int) -> int:
    return min(max(value // 1024, 1), 2_147_483_647)


# Java's name -> librdkafka's, and how the value is brought into the range that librdkafka takes.
TUNING: dict[str, tuple[str, Callable[[int], int]]] = {
    "buffer.memory": ("queue.buffering.max.kbytes", _kbytes),
    "fetch.max.wait.ms": ("fetch.wait.max.ms", _between(0, 1_000)),
    "receive.buffer.bytes": ("socket.receive.buffer.bytes", _between(0, 100_000_000)),
    "send.buffer.bytes": ("socket.send.buffer.bytes", _between(0, 100_000_000)),
    # Java's time for any answer; here that is the socket's, and a name of its own is only for acknowledgements.
    "request.timeout.ms": ("socket.timeout.ms", _between(2_000, 300_000)),
    # These librdkafka has under the same name, but not with every value that Java takes (-1, 0).
    "batch.size": ("batch.size", _between(1, 2_147_483_647)),
    "connections.max.idle.ms": ("connections.max.idle.ms", _between(0, 2_147_483_647)),
    "linger.ms": ("linger.ms", _between(0, 60_000)),
    "metadata.max.age.ms": ("metadata.max.age.ms", _between(1, 86_400_000)),
    "reconnect.backoff.ms": ("reconnect.backoff.ms", _between(0, 3_600_000)),
    "reconnect.backoff.max.ms": ("reconnect.backoff.max.ms", _between(0, 3_600_000)),
    "retry.backoff.ms": ("retry.backoff.ms", _between(1, 300_000)),
    "retry.backoff.max.ms": ("retry.backoff.max.ms", _between(1, 300_000)),
    "socket.connection.setup.timeout.ms": ("socket.connection.setup.timeout.ms", _between(1_000, 2_147_483_647)),
}
