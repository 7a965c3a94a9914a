"""Client properties: the file format, precedence, Java's names, and what a user gets to read."""

from __future__ import annotations

from pathlib import Path

import pytest
from antdt_schemas.connection import DEFAULT_BOOTSTRAP, Connection, masked, read_properties
from antdt_schemas.errors import Unavailable, UsageError
from antdt_schemas.properties import parse_properties, to_librdkafka
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
    assert connection.shown() == [
        ("bootstrap.servers", "env:2", "ANTDT_KAFKA_BOOTSTRAP_SERVERS"),
        ("linger.ms", "8", "ANTDT_KAFKA_LINGER_MS"),
        ("security.protocol", "SSL", str(file)),
    ]


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
    return {key: value for key, (value, _) in to_librdkafka(dotted).items()}


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
    assert {key: value for key, (value, _) in to_librdkafka(found).items()} == same
    assert names(ssl_endpoint_identification_algorithm="") == {"ssl.endpoint.identification.algorithm": "none"}


# -- what clients get


def test_configurations_merge_defaults_properties_and_code() -> None:
    connection = Connection("a:1", {"linger.ms": "9", "acks": "1"})
    assert connection.producer(acks="all", linger_ms=0)["acks"] == "all"
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
    assert "hush" not in str(connection.shown())
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
