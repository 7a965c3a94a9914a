"""Client properties: the file format, precedence, Java's names, and what a user gets to read."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from antdt.connect.settings import Settings
from antdt_schemas.connection import DEFAULT_BOOTSTRAP, Connection, masked, read_properties
from antdt_schemas.errors import Unavailable, UsageError
from antdt_schemas.listener import Spoken, host_port, spoken
from antdt_schemas.properties import parse_properties, to_librdkafka
from antdt_schemas.reaching import bare
from antdt_streams.local.place import Place
from antdt_streams.local.services import environment_of
from hypothesis import given
from hypothesis import strategies as st

PLAIN = 'org.apache.kafka.common.security.plain.PlainLoginModule required username="ann" password="a\\"b;c";'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=b", {"a": "b"}),
        ("a:b", {"a": "b"}),
        ("a b", {"a": "b"}),
        ("  a \t= \t b  ", {"a": "b  "}),
        ("a==b", {"a": "=b"}),
        ("a", {"a": ""}),
        ("=b", {"": "b"}),
        ("# c\n! d\n\n \t\na=b#c", {"a": "b#c"}),
        ("a=b\\\n    c\\\n    d", {"a": "bcd"}),
        ("a=b\\\\\nc=d", {"a": "b\\", "c": "d"}),
        ("a=b\\\r\n  c\rd=e", {"a": "bc", "d": "e"}),
        ("a=b\\\n\nc=d", {"a": "b", "c": "d"}),
        ("a=b\\\n#c", {"a": "b#c"}),
        ("\\\n# comment\na=b", {"a": "b"}),
        ("a=b\\", {"a": "b"}),
        ("# a comment does not go on \\\na=b", {"a": "b"}),
        ("a\\ b\\:\\=c=d", {"a b:=c": "d"}),
        ("a=\\u00e9\\t\\n\\x\\\\", {"a": "é\t\nx\\"}),
        ("a=\\ud83d\\ude00", {"a": "😀"}),
        ("a=1\na=2", {"a": "2"}),
        ("\fa\f=\fb", {"a": "b"}),
    ],
)
def test_parse_follows_java(text: str, expected: dict[str, str]) -> None:
    assert parse_properties(text) == expected


@pytest.mark.parametrize("text", ["a=\\u12", "a=\\uzzzz", "a=\\ud83d"])
def test_parse_refuses_broken_escapes(text: str) -> None:
    with pytest.raises(UsageError, match=r"\\u"):
        parse_properties(text)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(st.dictionaries(texts, texts, max_size=5), st.data())
def test_parse_reads_back_what_any_writer_may_write(properties: dict[str, str], data: st.DataObject) -> None:
    lines = []
    for key, value in properties.items():
        for_key = "".join(_written(char, data, always="=: \t\f#!") for char in key)
        for_value = "".join(_written(char, data, always=" \t\f" if at == 0 else "") for at, char in enumerate(value))
        if value[:1] in ("=", ":") and not for_value.startswith("\\"):
            for_value = "\\" + for_value
        # Without = or : a separator of blanks would swallow what follows; a key of nothing needs a real separator.
        separator = data.draw(st.sampled_from(["=", ":", " = ", "\t:\f"] + ([" ", "\t"] if key else [])))
        fold = data.draw(st.sampled_from(["", "\\\n  ", "\\\r\n\t"]))
        # A line may be folded after its separator: what then begins is not blank, or it is escaped.
        lines.append(
            data.draw(st.sampled_from(["", "# x\n", " ! y=z\n", "\n"])) + for_key + separator + fold + for_value
        )
    text = data.draw(st.sampled_from(["\n", "\r\n", "\r"])).join(lines)
    assert parse_properties(text) == properties


def _written(char: str, data: st.DataObject, always: str) -> str:
    named = {"\t": "\\t", "\n": "\\n", "\r": "\\r", "\f": "\\f"}
    if char in "\n\r\\" or char in always:
        return named.get(char, "\\" + char)
    if ord(char) > 126 and data.draw(st.booleans()):
        units = char.encode("utf-16-be")
        return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
    return char


@given(st.text(max_size=60).filter(lambda text: "\\u" not in text))
def test_parse_takes_any_text_without_such_escapes(text: str) -> None:
    parse_properties(text)


# -- sources


def test_precedence_is_default_file_environment_flag(tmp_path: Path) -> None:
    file = tmp_path / "client.properties"
    file.write_text("bootstrap.servers=file:1\nsecurity.protocol=SSL\nlinger.ms=7\n")
    environ = {"ANTDT_KAFKA_CONFIG": str(file)}
    assert Connection.of(None, None, {}).bootstrap == DEFAULT_BOOTSTRAP
    assert Connection.of(None, None, environ).bootstrap == "file:1"
    environ |= {"ANTDT_KAFKA_BOOTSTRAP_SERVERS": "env:2", "ANTDT_KAFKA_LINGER_MS": "8", "ANTDT_KAFKA_SASL_USERNAME": ""}
    connection = Connection.of(None, None, environ)
    assert connection.bootstrap == "env:2"
    assert dict(connection.properties) == {"security.protocol": "SSL", "linger.ms": "8"}
    assert Connection.of("flag:3", None, environ).bootstrap == "flag:3"
    assert connection.origins == {
        "bootstrap.servers": "ANTDT_KAFKA_BOOTSTRAP_SERVERS",
        "linger.ms": "ANTDT_KAFKA_LINGER_MS",
        "security.protocol": str(file),
    }


def test_a_named_file_replaces_the_one_of_the_environment(tmp_path: Path) -> None:
    named = tmp_path / "named.properties"
    named.write_text("bootstrap.servers = named:1")
    assert Connection.of(None, named, {"ANTDT_KAFKA_CONFIG": str(tmp_path / "absent")}).bootstrap == "named:1"


def test_a_mounted_secret_is_a_folder_of_keys(tmp_path: Path) -> None:
    hidden = tmp_path / "..2026_01_01"
    hidden.mkdir()
    for key, value in {
        "bootstrap.servers": "kafka:9093\n",
        "username": "ann",
        "ssl.truststore.crt": "PEM\nPEM\n",
    }.items():
        (hidden / key).write_text(value)
        (tmp_path / key).symlink_to(hidden / key)
    connection = Connection.of(None, tmp_path, {})
    assert connection.bootstrap == "kafka:9093"
    assert dict(connection.properties) == {"sasl.username": "ann", "ssl.ca.pem": "PEM\nPEM"}


def test_a_file_in_latin_1_is_read_as_java_does(tmp_path: Path) -> None:
    file = tmp_path / "p"
    file.write_bytes("a=caf\u00e9".encode("latin-1"))
    assert read_properties(file) == {"a": "café"}


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent.properties: No such file"):
        Connection.of(None, tmp_path / "absent.properties", {})
    broken = tmp_path / "broken.properties"
    broken.write_text("a=\\uxyz")
    with pytest.raises(UsageError, match=r"broken.properties: Malformed escape"):
        Connection.of(None, broken, {})


@pytest.mark.parametrize("servers", ["a:0", "a:99999", "a b:1", ":9092", "a:1,,b:1", "", "a:b", "http//a:1"])
def test_addresses_that_are_none(servers: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        Connection(servers)


@pytest.mark.parametrize("servers", ["a:1", "a", "a:1,b.c-d:65535", "[::1]:9092", "SASL_SSL://a:1", "10.0.0.1:1, b:2"])
def test_addresses(servers: str) -> None:
    assert Connection(servers).bootstrap == servers


# -- names


def names(**found: str) -> dict[str, str]:
    dotted = {key.replace("_", "."): (value, "x") for key, value in found.items()}
    return {key: value for key, (value, _) in to_librdkafka(dotted)[0].items()}


def test_jaas_becomes_user_and_password() -> None:
    assert names(sasl_jaas_config=PLAIN) == {"sasl.username": "ann", "sasl.password": 'a"b;c'}
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required username='bo' password=plain ;"
    assert names(sasl_jaas_config=scram) == {"sasl.username": "bo", "sasl.password": "plain"}


def test_jaas_for_oauth() -> None:
    line = 'org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required clientId="c" clientSecret="s";'
    assert names(sasl_jaas_config=line, sasl_oauthbearer_token_endpoint_url="https://x") == {
        "sasl.oauthbearer.client.id": "c",
        "sasl.oauthbearer.client.secret": "s",
        "sasl.oauthbearer.token.endpoint.url": "https://x",
        "sasl.oauthbearer.method": "oidc",
    }


KERBEROS = "com.sun.security.auth.module.Krb5LoginModule required;"


@pytest.mark.parametrize("line", ["", KERBEROS, PLAIN.partition(" password")[0]])
def test_jaas_that_cannot_be_taken_over(line: str) -> None:
    with pytest.raises(UsageError, match=r"sasl\.username"):
        names(sasl_jaas_config=line)


def test_stores() -> None:
    assert names(ssl_truststore_location="/ca.pem") == {"ssl.ca.location": "/ca.pem"}
    assert names(ssl_truststore_location="/ca", ssl_truststore_type="PEM", ssl_truststore_password="x") == {
        "ssl.ca.location": "/ca"
    }
    assert names(ssl_keystore_location="/me.pem") == {
        "ssl.certificate.location": "/me.pem",
        "ssl.key.location": "/me.pem",
    }
    assert names(ssl_keystore_location="/me.p12", ssl_keystore_password="x") == {
        "ssl.keystore.location": "/me.p12",
        "ssl.keystore.password": "x",
    }
    for wrong in ({"ssl_truststore_location": "/ca.jks"}, {"ssl_truststore_location": "/ca.p12"}):
        with pytest.raises(UsageError, match=r"set ssl\.ca\.location"):
            names(**wrong)
    with pytest.raises(UsageError, match="JKS store"):
        names(ssl_keystore_location="/me")


def test_what_passes_through_and_what_is_left_out() -> None:
    same = {"security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-512", "ssl.ca.location": "/ca", "foo": "1"}
    java = {"key.serializer": "x", "ssl.protocol": "TLSv1.3", "metrics.num.samples": "3", "interceptor.classes": ""}
    found = {key: (value, "x") for key, value in {**same, **java}.items()}
    known, ignored = to_librdkafka(found)
    assert {key: value for key, (value, _) in known.items()} == same
    assert ignored == [f"{', '.join(java)} (from x): ignored, only Java has them."]
    assert names(ssl_endpoint_identification_algorithm="") == {"ssl.endpoint.identification.algorithm": "none"}


# -- what clients get


def test_configurations_merge_defaults_properties_and_code() -> None:
    connection = Connection("a:1", {"linger.ms": "9", "acks": "1"})
    assert connection.producer()["acks"] == "all"
    assert connection.producer()["linger.ms"] == "9"
    assert connection.producer(linger_ms=0)["linger.ms"] == 0
    assert connection.consumer(group_id="g")["group.id"] == "g"
    assert connection.consumer()["enable.auto.commit"] is False
    assert connection.admin()["bootstrap.servers"] == "a:1"
    assert connection.admin()["log_level"] == 0
    for settings in (connection.producer(), connection.consumer(), connection.admin()):
        assert settings["allow.auto.create.topics"] is False, "what was deleted stays so"


def test_the_real_clients_take_these_configurations() -> None:
    from confluent_kafka import Consumer, Producer
    from confluent_kafka.admin import AdminClient

    connection = Connection("127.0.0.1:1", {"security.protocol": "PLAINTEXT"})
    Producer(connection.producer())
    AdminClient(connection.admin())
    Consumer(connection.consumer()).close()


def test_secrets_do_not_show() -> None:
    secrets = {"sasl.password": "hush", "ssl.key.pem": "hush", "ssl.key.password": "hush", "sasl.username": "ann"}
    connection = Connection("a:1", secrets)
    assert "hush" not in repr(connection)
    assert "ann" in repr(connection)
    assert masked("sasl.oauthbearer.client.secret", "hush") == "********"
    assert masked("sasl.oauthbearer.token.endpoint.url", "https://x") == "https://x"


def test_nobody_there_is_said_in_one_sentence() -> None:
    with pytest.raises(Unavailable) as caught:
        Connection("127.0.0.1:1").check_reachable(0.2)
    assert str(caught.value) == (
        "No Kafka broker answers at 127.0.0.1:1 within 0.2 s. "
        "Start one with `antdt up …` or name yours with --bootstrap-servers."
    )


def test_an_unknown_property_is_named_with_its_origin() -> None:
    connection = Connection.of("127.0.0.1:1", None, {"ANTDT_KAFKA_NO_SUCH_THING": "1"})
    with pytest.raises(UsageError, match=r'"no.such.thing".* It came from ANTDT_KAFKA_NO_SUCH_THING\.'):
        connection.check_reachable(0.2)


def test_brokers_know_a_jobs_processes_apart(tmp_path: Path) -> None:
    connection = Connection("a:1")
    assert connection.admin()["client.id"] == "antdt"
    assert connection.named("j", "monitor", "main").consumer()["client.id"] == "antdt.j.monitor.main"
    assert connection.named("", "cli").producer()["client.id"] == "antdt.cli"
    theirs = of(tmp_path, "client.id=team-7").named("j", "ledger")
    assert theirs.admin()["client.id"] == "team-7", "quotas are bound to it"
    worker = Settings.of({"ANTDT_JOB": "j", "ANTDT_WORKER": "w3"}).connection
    assert worker.producer()["client.id"] == "antdt.j.worker.w3"


def test_services_get_the_properties_that_a_flag_named(tmp_path: Path) -> None:
    place = Place(Connection("a:1"), True, tmp_path, None, Path("mine.properties"))
    assert environment_of(place.connection, place)["ANTDT_KAFKA_CONFIG"] == str(Path("mine.properties").absolute())
    assert "ANTDT_KAFKA_CONFIG" not in environment_of(place.connection, Place(place.connection, True, tmp_path, None))


# -- what a company's file may say, and what it may not


def of(tmp_path: Path, text: str) -> Connection:
    file = tmp_path / "company.properties"
    file.write_text(text)
    return Connection.of("a:1", file, {})


def test_what_is_ours_is_ignored_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = {
        "acks": "1", "enable.idempotence": "false", "retries": "0", "max.in.flight": "9", "delivery.timeout.ms": "1",
        "auto.offset.reset": "latest", "enable.auto.commit": "true", "group.id": "crawler", "session.timeout.ms": "1",
        "group.protocol": "consumer", "isolation.level": "read_committed", "allow.auto.create.topics": "true",
        "message.max.bytes": "1000", "fetch.max.bytes": "1000", "delivery.report.only.error": "true",
    }  # fmt: skip
    text = "".join(f"{key}={value}\n" for key, value in theirs.items())
    connection = of(tmp_path, text)
    assert not connection.properties
    made = {**connection.producer(), **connection.consumer()}
    assert made["acks"] == "all"
    assert made["enable.idempotence"] is True
    assert made["group.id"] == "antdt.none"
    assert not {key for key, value in theirs.items() if made.get(key) == value}
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(theirs)
    assert lines[0].startswith(f"acks (from {tmp_path}/company.properties) is ignored: what was acknowledged")
    of(tmp_path, text)
    assert len(caplog.records) == len(theirs), "said once in a process"


@pytest.mark.parametrize(
    ("java", "value", "ours", "expected"),
    [
        ("buffer.memory", "33554432", "queue.buffering.max.kbytes", "32768"),
        ("fetch.max.wait.ms", "500", "fetch.wait.max.ms", "500"),
        ("send.buffer.bytes", "-1", "socket.send.buffer.bytes", "0"),
        ("receive.buffer.bytes", "65536", "socket.receive.buffer.bytes", "65536"),
        ("request.timeout.ms", "30000", "socket.timeout.ms", "30000"),
        ("batch.size", "0", "batch.size", "1"),
        ("connections.max.idle.ms", "-1", "connections.max.idle.ms", "0"),
    ],
)
def test_javas_tuning_is_translated(java: str, value: str, ours: str, expected: str) -> None:
    assert names(**{java.replace(".", "_"): value}) == {ours: expected}


def test_librdkafkas_own_name_is_the_more_exact_one() -> None:
    for order in (1, -1):
        found = {"request.timeout.ms": ("30000", "x"), "socket.timeout.ms": ("2000", "x")}
        assert to_librdkafka(dict(list(found.items())[::order]))[0] == {"socket.timeout.ms": ("2000", "x")}


def test_tuning_that_is_no_number_and_values_that_lie_elsewhere_are_refused() -> None:
    with pytest.raises(UsageError, match=r"buffer\.memory=much \(from x\) is no number"):
        names(buffer_memory="much")
    with pytest.raises(UsageError, match=r"config\.providers \(from x\): only Java"):
        names(config_providers="vault")


JAVA = parse_properties((Path(__file__).parent / "java_client.properties").read_text())


@pytest.mark.parametrize("wanted", ["defaults", "small", "large"])
def test_no_setting_of_javas_clients_stops_ours(tmp_path: Path, wanted: str) -> None:
    """All that Java's producer, consumer and admin client know, with their defaults and with numbers far off."""
    from confluent_kafka import Consumer, Producer
    from confluent_kafka.admin import AdminClient

    number = {"defaults": None, "small": "0", "large": "2147483647"}[wanted]
    text = "".join(f"{k}={number if number and v.isdigit() and k[:4] != 'sasl' else v}\n" for k, v in JAVA.items() if v)
    connection = of(tmp_path, text)
    Producer(connection.producer())
    AdminClient(connection.admin())
    Consumer(connection.consumer()).close()


# -- who is there, and for whom


@contextmanager
def answering(answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """A server on this machine that sends `answer` of what came first, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):  # closed
                while True:
                    wire, _ = server.accept()
                    with wire:
                        wire.sendall(answer(wire.recv(1000)))

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def handshake(error: int, *mechanisms: bytes) -> bytes:
    body = struct.pack(">ihi", 1, error, len(mechanisms))
    body += b"".join(struct.pack(">h", len(name)) + name for name in mechanisms)
    return struct.pack(">i", len(body)) + body


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (handshake(34), Spoken(tls=False, mechanisms=())),
        (handshake(33, b"PLAIN", b"SCRAM-SHA-512"), Spoken(tls=False, mechanisms=("PLAIN", "SCRAM-SHA-512"))),
        (handshake(0), None),
        (b"", None),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", None),
        (handshake(33, b"PLAIN")[:-2], None),
    ],
)
def test_what_a_listener_speaks(answer: bytes, expected: Spoken | None) -> None:
    with answering(lambda _: answer) as server:
        assert spoken(server, 2) == expected


def test_a_listener_with_credentials_is_told_from_one_that_is_about_to_stop() -> None:
    """Both close what a client without credentials opens; only one says why, when it is asked."""
    asks = answering(lambda asked: handshake(33, b"PLAIN") if asked[4:6] == b"\0\x11" else b"")
    with asks as server, pytest.raises(UsageError, match="speaks SASL_PLAINTEXT with sasl"):
        Connection(server).check_reachable(0.3)
    with answering(lambda _: b"") as server, pytest.raises(Unavailable, match="No Kafka broker answers"):
        Connection(server).check_reachable(0.3)


def test_a_name_that_is_none_is_named_with_its_origin() -> None:
    connection = Connection.of(None, None, {"ANTDT_KAFKA_BOOTSTRAP_SERVERS": "no-such-host.invalid:9092"})
    with pytest.raises((UsageError, Unavailable), match=r"no-such-host\.invalid:9092.*"):
        connection.check_reachable(1)


def test_what_librdkafka_says_loses_its_frame() -> None:
    said = (
        "sasl_ssl://b:1/bootstrap: SASL authentication error: no. (after 301ms in state AUTH_REQ, 3 identical error(s))"
    )
    assert bare(said) == "SASL authentication error: no"
    assert host_port("SSL://[::1]:1") == ("::1", 1)
    assert host_port("kafka") == ("kafka", 9092)
