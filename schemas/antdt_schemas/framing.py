"""Records in the framing of a schema registry, for consoles that read no other: 00, the schema's id, the Avro body.

By option, and at the edges only: what is written is framed last, what is read is turned back first. So codec, state and
hashes know one encoding. Who reads tells the two apart by the first byte (00 or C3); both may be in one topic. Logs and
snapshots are never framed: what proves itself must be readable with nothing but itself.

A registry is asked once for each schema, and for each id that is new; it is not asked while a job runs as it began.
Schemas are registered under their own names (`dev.antdt.Decision`), so that all jobs of a registry share their history.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from antdt_schemas import codec
from antdt_schemas.errors import Unavailable, UsageError
from antdt_schemas.topics import SHARD_LOG, SNAPSHOTS, TOPICS

SINGLE_OBJECT, REGISTRY = "single-object", "registry"
FRAMING, URL, USER_INFO = "wire.framing", "schema.registry.url", "schema.registry.basic.auth.user.info"
MAGIC, PREFIX_BYTES, ID_BYTES = b"\0", 5, 4
TIMEOUT_S, TRIES = 3.0, 3
UNKNOWN_MAX = 1000  # ids that are kept in mind as nobody's
KINDS = tuple(dict.fromkeys(kind for t in TOPICS if t not in (SHARD_LOG, SNAPSHOTS) for kind in t.kinds))
UNFRAMED = (f".{SHARD_LOG.suffix}", f".{SNAPSHOTS.suffix}")
MEDIA = "application/vnd.schemaregistry.v1+json"

Ask = Callable[[Any, float], bytes]  # a urllib.request.Request, seconds


@dataclass(frozen=True, slots=True)
class Wire:
    """How a process writes, and where the registry is. user_info: `user:password`, never shown."""

    framing: str = SINGLE_OBJECT
    url: str = ""
    user_info: str = ""

    def __repr__(self) -> str:
        return f"Wire({self.framing!r}, {self.url!r})"


def wire_of(found: Mapping[str, tuple[str, str]]) -> Wire:
    """What client properties (key -> value, origin) say of it.

    Raises:
        UsageError: a framing that there is not, or no registry for it.
    """
    values = {key: found[key][0].strip() for key in (FRAMING, URL, USER_INFO) if key in found}
    framing = values.get(FRAMING, SINGLE_OBJECT)
    if framing not in (SINGLE_OBJECT, REGISTRY):
        raise UsageError(f"{FRAMING}={framing} is not known: say {SINGLE_OBJECT} or {REGISTRY}.")
    url = values.get(URL, "").rstrip("/")
    if framing == REGISTRY and not url.startswith(("http://", "https://")):
        raise UsageError(f"{FRAMING}={REGISTRY} needs {URL}, an address that begins with http:// or https://.")
    return Wire(framing, url, values.get(USER_INFO, ""))


def _ask(request: Any, timeout_s: float) -> bytes:
    import urllib.request

    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        return bytes(answer.read(codec.MAX_BYTES))


class Framer:
    """Frames and unframes the records of one process. ask: how the registry is reached."""

    def __init__(self, wire: Wire, ask: Ask = _ask) -> None:
        self.wire, self._ask = wire, ask
        self._prefixes: dict[bytes, bytes] = {}  # header of a record -> its prefix
        self._headers: dict[bytes, bytes | None] = {}  # and back; None: no schema of ours

    def begin(self) -> None:
        """Register what may be written, if that is wanted.

        Raises:
            Unavailable: the registry does not answer.
            UsageError: it refuses.
        """
        if self.wire.framing != REGISTRY or self._prefixes:
            return
        prefixes = {}
        for kind in KINDS:
            name, header = kind.__name__, codec.registry().header[kind.__name__]
            path = f"/subjects/{codec.NAMESPACE}.{name}/versions"
            found = self._json(path, {"schema": codec.schema_text(name), "schemaType": "AVRO"})
            prefixes[header] = MAGIC + int(found["id"]).to_bytes(ID_BYTES, "big")
        self._headers |= {prefix: header for header, prefix in prefixes.items()}
        self._prefixes = prefixes

    def framed(self, topic: str, value: bytes) -> bytes:
        """What is written of a value. Raises what `begin` does."""
        if self.wire.framing != REGISTRY or topic.endswith(UNFRAMED):
            return value
        self.begin()
        prefix = self._prefixes.get(value[: codec.HEADER_SIZE])
        return value if prefix is None else prefix + value[codec.HEADER_SIZE :]

    def unframed(self, topic: str, value: bytes | None) -> bytes | None:
        """What was framed; the bytes as they are, if they are framed for no schema of ours.

        Raises:
            Unavailable: an id is new here, and the registry does not answer. It must not be taken for junk.
        """
        if not value or value[:1] != MAGIC or not self.wire.url or topic.endswith(UNFRAMED):
            return value
        prefix = value[:PREFIX_BYTES]
        if prefix not in self._headers:
            if len(self._headers) >= UNKNOWN_MAX:
                self._headers = {known: header for known, header in self._headers.items() if header is not None}
            self._headers[prefix] = self._header_of(int.from_bytes(prefix[1:], "big"))
        header = self._headers[prefix]
        return value if header is None else header + value[PREFIX_BYTES:]

    def _header_of(self, number: int) -> bytes | None:
        try:
            found = self._json(f"/schemas/ids/{number}", None)
        except UsageError:
            return None  # there is none
        try:
            return codec.MARKER + codec.schema_fingerprint(json.loads(found["schema"]))
        except Exception:  # noqa: BLE001  of whatever language it is, it is none of ours
            return None

    def _json(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        """Raises Unavailable where nobody answers, UsageError where the registry refuses."""
        import urllib.error
        import urllib.request

        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.wire.url + path, data, {"Content-Type": MEDIA, "Accept": MEDIA})
        if self.wire.user_info:
            request.add_header("Authorization", f"Basic {base64.b64encode(self.wire.user_info.encode()).decode()}")
        reason = ""
        for _ in range(TRIES):
            try:
                return dict(json.loads(self._ask(request, TIMEOUT_S)))
            except urllib.error.HTTPError as error:
                reason = f"status {error.code}"
                if error.code < 500:
                    said = error.read(300).decode(errors="replace")
                    raise UsageError(f"The schema registry {self.wire.url} refuses {path}: {reason} {said}") from error
            except (OSError, ValueError) as error:
                reason = str(getattr(error, "reason", error))
        hint = f"It is asked because of {FRAMING}={self.wire.framing}; without it, no registry is needed."
        raise Unavailable(f"The schema registry {self.wire.url} does not answer: {reason}.", hint)


# -- of this process

_framer = Framer(Wire())


def use(wire: Wire) -> None:
    """Everything that this process writes and reads from now on."""
    global _framer  # noqa: PLW0603  a process writes in one way
    if wire != _framer.wire:
        _framer = Framer(wire)


def begin() -> None:
    """See Framer."""
    _framer.begin()


def framed(topic: str, value: bytes) -> bytes:
    """See Framer."""
    return _framer.framed(topic, value)


def unframed(topic: str, value: bytes | None) -> bytes | None:
    """See Framer."""
    return _framer.unframed(topic, value)
