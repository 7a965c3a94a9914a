"""How long a job stands when a broker of a Kafka cluster dies: `python -m bench.cluster --json FILE`.

Three brokers on this machine, each of them a controller as well; three copies of every topic, two of which must have a
record before it is acknowledged. The leader of the shard log is killed (kill -9). Timed, by the monotonic clock of this
process, is when another broker leads it, which is Kafka's own business (the session of the dead one must expire:
`broker.session.timeout.ms`, 9 s by default), and when a step is committed under that one. The dead one is then started
again and catches up, before the next one dies. At last everything is stopped, and the audit must find nothing repeated,
altered or in quarantine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep

from antdt_schemas.connection import Connection
from antdt_schemas.data_folder import HOST
from antdt_schemas.topics import SHARD_LOG
from antdt_streams.broker import BrokerOptions, EmbeddedBroker
from antdt_streams.broker.embedded import _free_ports
from antdt_streams.chaos import judge
from antdt_streams.chaos.world import World
from confluent_kafka.admin import AdminClient

from bench.common import machine, spread, write
from bench.recovery import TRAINING, WITHIN_S, Recovery

BROKERS = (1, 2, 3)
WORKERS = 2  # the brokers want the cores, too
JOB = "cluster"
COPIES = {
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
}


class Member(EmbeddedBroker):
    """One broker of the cluster, which is reached through any of them."""

    servers = ""

    @property
    def connection(self) -> Connection:
        """How to reach the cluster."""
        return Connection(self.servers)


def members(folder: Path, session_ms: int) -> dict[int, Member]:
    """Three brokers, ready to be started, by their node id."""
    ports = _free_ports(*[0] * (2 * len(BROKERS)))
    pairs = dict(zip(BROKERS, zip(ports[::2], ports[1::2], strict=True), strict=True))
    servers = ",".join(f"{HOST}:{port}" for port, _ in pairs.values())
    voters = ",".join(f"{node}@{HOST}:{port}" for node, (_, port) in pairs.items())
    shared = COPIES | {"controller.quorum.voters": voters, "broker.session.timeout.ms": str(session_ms)}
    cluster, out = uuid.uuid4().hex[:22], {}
    for node, (port, controller) in pairs.items():
        home = folder / f"kafka-{node}"
        (home / "data").mkdir(parents=True)
        (home / "ports.json").write_text(json.dumps({"broker": port, "controller": controller}))
        # What formatting writes, with one cluster's id for all of them.
        (home / "data" / "meta.properties").write_text(f"version=1\ncluster.id={cluster}\nnode.id={node}\n")
        out[node] = Member(home, BrokerOptions(properties=shared | {"node.id": str(node)}))
        out[node].servers = servers
    return out


def until(true: Callable[[], bool]) -> None:
    """Wait for the brokers."""
    latest = monotonic() + WITHIN_S
    while not true():
        assert monotonic() < latest, f"not within {WITHIN_S:g} s"
        sleep(0.05)  # between two questions


class Cluster:
    """The brokers that run, and a job on them."""

    def __init__(self, brokers: dict[int, Member], world: World, admin: AdminClient) -> None:
        self.brokers, self.world, self.admin = brokers, world, admin
        self.recovery = Recovery(world, WORKERS)

    def leader(self) -> tuple[int, int]:
        """Who leads the shard log, and how many brokers have all of it."""
        topic = SHARD_LOG.name(JOB)
        found = self.admin.list_topics(topic, timeout=10).topics[topic].partitions[0]
        return found.leader, len(found.isrs)

    def strike(self) -> tuple[float, float]:
        """Kill the leader of the shard log. Seconds until there was another one, and until the job went on.

        The dead one is back before this ends.
        """
        until(lambda: self.leader()[1] == len(BROKERS))
        self.recovery.calm()
        dead, progress = self.leader()[0], self.recovery.progress
        at = monotonic()
        self.brokers[dead].kill()
        until(lambda: self.leader()[0] not in (dead, -1))
        elected, seen = monotonic(), progress.commits
        committed = self.recovery.until(lambda: progress.commits > seen)
        self.brokers[dead].start()
        return elected - at, committed - at

    def close(self) -> None:
        """Stop the job, in the middle of its training, and audit what it has committed until then."""
        self.recovery.stop()
        self.world.close()
        report, _ = judge.judge_log(judge.entries_of(self.world.broker.connection, JOB))
        assert not any(report[what] for what in ("broken", "repeated", "quarantined", "wrong_lineage")), report


@contextmanager
def running(folder: Path, session_ms: int) -> Iterator[Cluster]:
    """A cluster with a job that trains."""
    brokers = members(folder, session_ms)
    with ExitStack() as stack:
        for broker in brokers.values():
            stack.callback(broker.stop)
        with ThreadPoolExecutor() as pool:  # none of them is ready without another one
            list(pool.map(Member.start, brokers.values()))
        admin = AdminClient(brokers[1].connection.admin())
        until(lambda: len(admin.list_topics(timeout=10).brokers) == len(BROKERS))
        world = World(brokers[1], JOB, folder, replace(TRAINING, workers=WORKERS, standby=True))
        stack.callback(world.close)
        world.open()
        cluster = Cluster(brokers, world, admin)
        stack.callback(cluster.recovery.stop)
        yield cluster
        cluster.close()


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--session-ms", type=int, default=9_000, help="Kafka's broker.session.timeout.ms")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="antdt-cluster-") as folder,
        running(Path(folder), options.session_ms) as cluster,
    ):
        times = zip(*[cluster.strike() for _ in range(options.times)], strict=True)
    found = {what: spread(seconds, 2) for what, seconds in zip(("elected", "committed"), times, strict=True)}
    for what, s in found.items():
        print(f"leader of the log killed, {what:<9} after median {s['median']:.2f} s, {s['min']:.2f} to {s['max']:.2f}")
    write(options.json, {**found, "session_ms": options.session_ms, "machine": machine()})


if __name__ == "__main__":
    main()
