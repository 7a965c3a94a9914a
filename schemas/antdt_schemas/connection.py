"""How a process reaches Kafka: one place for addresses, client properties, their origin and their defaults.

Owns the reader of Java-style `client.properties`, the precedence of sources (defaults < file < environment < flag) and
the translation of Java's names to librdkafka's. Knows no topic and no job.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from antdt_schemas.errors import UsageError
from antdt_schemas.framing import FRAMING, URL, USER_INFO, Wire, wire_of
from antdt_schemas.properties import parse_properties, to_librdkafka
from antdt_schemas.reaching import Reaching
from antdt_schemas.settings_ours import OURS
from antdt_schemas.topics import HEADERS_BYTES, RECORD_BYTES_MAX

DEFAULT_BOOTSTRAP = "127.0.0.1:9092"
ENV_PREFIX = "ANTDT_KAFKA_"
ENV_FILE = "ANTDT_KAFKA_CONFIG"
ENV_BOOTSTRAP = "ANTDT_KAFKA_BOOTSTRAP_SERVERS"
ENV_FRAMING = "ANTDT_KAFKA_WIRE_FRAMING"
USERS_FILE = "antdt/client.properties"  # in ~/.config
BOOTSTRAP, ALIAS = "bootstrap.servers", "metadata.broker.list"

SECRET = re.compile(r"password|secret|jaas|token(?!\.endpoint)|key\.pem|keystore\.key|credential", re.IGNORECASE)
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9_]*://)?(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/,]+)(:(\d{1,5}))?")

COMMON: dict[str, Any] = {
    # librdkafka writes to stderr whenever a broker is away; who waits for it says so itself, once.
    "log_level": 0,
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 500,
    "socket.keepalive.enable": True,
    # A connection that is half open carries nothing and says nothing: with the default, the job stands for a minute.
    "socket.timeout.ms": 10_000,
    # A topic that somebody has deleted is gone: producers would bring it back, as another one, with other settings.
    "allow.auto.create.topics": False,
}
KEY_BYTES = HEADERS_BYTES // 2  # librdkafka counts a record's key, and not all of its headers
PRODUCER: dict[str, Any] = {"enable.idempotence": True, "acks": "all"}
CONSUMER: dict[str, Any] = {
    # librdkafka wants a group even where partitions are assigned by hand and nothing is committed.
    "group.id": "antdt.none",
    "enable.auto.commit": False,
    # What retention has removed is an error with a range, never a silent jump.
    "auto.offset.reset": "error",
    # Everybody reads the same records. Those of a transaction that was aborted are among them: they are in the rolling
    # hash of whoever has read them; and one that somebody has left open must not hold us up.
    "isolation.level": "read_uncommitted",
    # How long the broker may hold a fetch when there is nothing new. What comes is delivered at once whatever this is;
    # only what is assigned anew waits for it. At 5 ms a consumer that waits costs the broker 5 % of a core.
    "fetch.wait.max.ms": 100,
    "queued.max.messages.kbytes": 16 * 1024,
}

log = logging.getLogger("antdt.connection")
_said: set[str] = set()  # what this process was warned of


def names_a_broker(environ: Mapping[str, str]) -> bool:
    """Whether the environment says where Kafka is; if not, the one of this machine is meant."""
    return bool(environ.get(ENV_BOOTSTRAP) or environ.get(ENV_FILE))


def users_file(environ: Mapping[str, str]) -> Path | None:
    """The properties that a user keeps for every job, where nothing else says where Kafka is; None: there are none."""
    config = environ.get("XDG_CONFIG_HOME") or (f"{environ['HOME']}/.config" if environ.get("HOME") else "")
    file = Path(config) / USERS_FILE
    return file if config and file.is_file() else None


@dataclass(frozen=True)
class Connection:
    """Bootstrap servers and client properties, in librdkafka's names. Secrets never show in its repr.

    `origins` says where each property came from, for people who wonder; `ignored`, a line for each that was, and why.
    `client_id` is what brokers know its clients by, in quotas, metrics and logs, unless the properties have one: a
    user's quotas are bound to it. `wire`: how records are framed, see `framing`; whoever begins a process puts that
    into use.
    """

    bootstrap: str
    properties: Mapping[str, str] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    client_id: str = "antdt"
    wire: Wire = field(default_factory=Wire)
    ignored: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        check_bootstrap(self.bootstrap)

    @classmethod
    def of(cls, bootstrap: str | None, properties_file: Path | None, environ: Mapping[str, str]) -> Connection:
        """The connection that flags, environment and file ask for, in this order of precedence.

        bootstrap: value of a flag, `host:port[,host:port]`.
        properties_file: Java-style `client.properties`, or a mounted folder with one file for each key; without it
            the environment's ANTDT_KAFKA_CONFIG; where that says nothing of a broker either, the user's own
            ~/.config/antdt/client.properties.
        environ: read for ANTDT_KAFKA_CONFIG and for single keys, ANTDT_KAFKA_SASL_USERNAME for `sasl.username`.

        Raises:
            UsageError: a file that cannot be read, or a setting that this client cannot honour. What is ours to set, or
                known to Java only, is ignored; a warning says so, once in a process.
        """
        found: dict[str, tuple[str, str]] = {BOOTSTRAP: (DEFAULT_BOOTSTRAP, "default")}
        file = properties_file or (Path(environ[ENV_FILE]) if environ.get(ENV_FILE) else None)
        if file is None and not (bootstrap or names_a_broker(environ)):
            file = users_file(environ)
        if file is not None:
            found.update({key: (value, str(file)) for key, value in read_properties(file).items()})
        if ALIAS in found:
            found[BOOTSTRAP] = found.pop(ALIAS)
        for name, value in environ.items():
            if name.startswith(ENV_PREFIX) and name != ENV_FILE and value:
                found[name.removeprefix(ENV_PREFIX).lower().replace("_", ".")] = (value, name)
        if bootstrap:
            found[BOOTSTRAP] = (bootstrap, "flag")
        servers, origin = found.pop(BOOTSTRAP)
        wire = Wire()
        if FRAMING in found:  # without a word of it, what other tools say of a registry is theirs
            wire = wire_of(found)
            found = {key: one for key, one in found.items() if key not in (FRAMING, URL, USER_INFO)}
        properties: dict[str, str] = {}
        origins = {BOOTSTRAP: origin}
        known, ignored = to_librdkafka(found)
        for key, (value, source) in known.items():
            properties[key], origins[key] = value, source
        for line in ignored:
            if line not in _said:
                _said.add(line)
                log.warning("%s", line)
        return cls(servers.strip(), properties, origins, wire=wire, ignored=tuple(ignored))

    def named(self, job: str, service: str, instance: str = "") -> Connection:
        """The same for one of a job's processes: its clients are `antdt.JOB.SERVICE.INSTANCE`."""
        return replace(self, client_id=".".join(part for part in ("antdt", job, service, instance) if part))

    def producer(self, record_bytes_max: int = RECORD_BYTES_MAX, **over: Any) -> dict[str, Any]:
        """Configuration of a Producer; underscores in the names of `over` stand for dots, and `over` wins.

        record_bytes_max: what the topics take, where that was looked up. A batch is a message to the broker, so a few
        small records must not become a larger one.
        """
        return self._config({**PRODUCER, "message.max.bytes": record_bytes_max + KEY_BYTES}, over)

    def consumer(self, **over: Any) -> dict[str, Any]:
        """Configuration of a Consumer; underscores in the names of `over` stand for dots, and `over` wins."""
        return self._config(CONSUMER, over)

    def admin(self, **over: Any) -> dict[str, Any]:
        """Configuration of an AdminClient; underscores in the names of `over` stand for dots, and `over` wins."""
        return self._config({}, over)

    def _config(self, defaults: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
        named = {key if key.endswith("_cb") else key.replace("_", "."): value for key, value in over.items()}
        theirs = {key: value for key, value in self.properties.items() if key not in OURS}
        return {"client.id": self.client_id, **COMMON, **defaults, **theirs, **named, BOOTSTRAP: self.bootstrap}

    def __repr__(self) -> str:
        rest = {key: masked(key, value) for key, value in self.properties.items()}
        return f"Connection({self.bootstrap!r}, {rest!r})"

    def check_reachable(self, timeout_s: float = 5.0) -> None:
        """Ask the brokers for their metadata, and whether an address in them can be reached, within `timeout_s`.

        Raises:
            Unavailable: nobody answers.
            UsageError: somebody does, and refuses these settings; or librdkafka does not know one of them.
        """
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        reaching = Reaching(self.bootstrap, self.origins, timeout_s)
        try:
            client = AdminClient(self.admin(error_cb=reaching.said.append))
        except (KafkaException, TypeError, ValueError) as error:
            inner = error.args[0] if error.args else error
            said = str(inner.str()) if hasattr(inner, "str") else str(inner)
            named = [key for key in self.properties if re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", str(error))]
            culprit = "".join(f" It came from {self.origins.get(key, 'code')}." for key in named)
            what = f"The Kafka client refuses its settings: {said.rstrip('.')}.{culprit}"
            raise UsageError(what, "Correct that setting, or take it away.") from error
        reaching.check(client, self.properties.get("security.protocol", "plaintext").upper())


def check_bootstrap(servers: str) -> None:
    """`host:port[,host:port]`, or UsageError."""
    for server in servers.split(","):
        match = ADDRESS.fullmatch(server.strip())
        if match is None or (match[4] is not None and not 0 < int(match[4]) < 65536):
            raise UsageError(f"{server.strip()!r} is no address of a Kafka broker: write HOST:PORT[,HOST:PORT].")


def read_properties(path: Path) -> dict[str, str]:
    """The properties in a Java-style file, or in a folder with one file for each key (a mounted Kubernetes secret)."""
    try:
        if path.is_dir():
            # Kubernetes keeps the real files in `..data`; whatever begins with a dot is no key.
            files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
            return {p.name: _decoded(p.read_bytes()).rstrip("\r\n") for p in files}
        return parse_properties(_decoded(path.read_bytes()))
    except OSError as error:
        what = f"Kafka client properties cannot be read: {path}: {error.strerror}."
        raise UsageError(what, "Name a file, or a folder of files, that this user can read.") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def masked(key: str, value: str) -> str:
    """The value, or stars where the key names a secret."""
    return "********" if SECRET.search(key) else value


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")  # what Java reads these files as
