"""Whether a broker can be reached with these settings; and if not, which of them is wrong.

Order of an answer
  1. metadata, and one of the addresses in them takes a connection: reached
  2. refused credentials, a certificate that does not hold, another protocol, a name that is none: the user's to mend
  3. metadata, but none of the addresses that the brokers advertise can be reached: likewise, each is named
  4. nobody is there: start again
What may pass by itself (a broker that starts has no users yet, for one) is asked again until the time is over.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from time import monotonic
from typing import Any, TypeVar

from antdt_schemas.errors import Unavailable, UsageError
from antdt_schemas.listener import Spoken, connects, host_port, spoken

SLICE_S = 0.5
PAUSE_S = 0.05
# A broker that starts may know neither its users nor its certificates yet; accounts are locked by many tries.
CERTAIN_S = 1.5
ASK_S = 2.0
TEMPORARY, SILENT = "Temporary failure", "it does not answer"
BOOTSTRAP_NAME = re.compile(r"/bootstrap: Failed to resolve '(.*?)': (.*)")
ADVERTISED = re.compile(r"(\S+:\d+)/\d+: ")  # a broker that metadata named: ADDRESS/ID, where others have "bootstrap"
T = TypeVar("T")
Fault = tuple[str, str]  # what is wrong, and what mends it


class Reaching:
    """One try of one client to reach its brokers, within `timeout_s`."""

    def __init__(self, bootstrap: str, origins: Mapping[str, str], timeout_s: float) -> None:
        self.bootstrap, self.origins, self.timeout_s = bootstrap, origins, timeout_s
        self.servers = [server.strip() for server in bootstrap.split(",")]
        self.said: list[Any] = []
        self.away: dict[str, str] = {}  # advertised addresses, and why they cannot be reached

    def check(self, client: Any, protocol: str) -> None:
        """Ask for metadata until an address in them takes a connection. `client` tells its errors to `said.append`.

        Raises:
            Unavailable: nobody answers.
            UsageError: somebody does, and these settings are not for them.
        """
        from confluent_kafka import KafkaException

        began_s = monotonic()
        until_s = began_s + self.timeout_s
        while monotonic() < until_s:
            try:
                found = client.list_topics(timeout=max(PAUSE_S, min(SLICE_S, until_s - monotonic())))
            except KafkaException:
                client.poll(0)  # without this nobody is told what went wrong
                if monotonic() - began_s > CERTAIN_S and (self._refusal() or self._unresolved()):
                    break
            else:
                if self._reaches(((broker.host, broker.port) for broker in found.brokers.values()), until_s):
                    return
            client.poll(PAUSE_S)
        self._raise(protocol)

    def _reaches(self, advertised: Iterable[tuple[str, int]], until_s: float) -> bool:
        """Whether one of the addresses that the brokers advertise can be reached: one of several may be restarting."""
        known = {host_port(server) for server in self.servers}
        addresses = list(advertised)
        if not addresses or known.intersection(addresses):
            return True
        for host, port in addresses:
            left_s = max(PAUSE_S, until_s - monotonic())
            why = within(left_s, partial(connects, host, port, left_s), SILENT)
            if not why:
                return True
            self.away[f"{host}:{port}"] = why
        return False

    def _learnt(self) -> list[tuple[str, int]]:
        """The advertised addresses that librdkafka failed to connect to. An answer that came after its slice of time
        was over tells nobody but librdkafka, which leaves the bootstrap address for those in it.
        """
        found = (ADVERTISED.match(error.str()) for error in self.said)
        return sorted({host_port(match[1]) for match in found if match})

    def _raise(self, protocol: str) -> None:
        if not self.away:
            self._reaches(self._learnt(), monotonic() + ASK_S)
        refusal = self._refusal() or self._unresolved() or self._asked(protocol)
        if refusal is not None:
            raise UsageError(*refusal)
        raise Unavailable(
            f"No Kafka broker answers at {self.bootstrap} within {self.timeout_s:g} s.{self._why()}",
            "Start one with `antdt up …` or name yours with --bootstrap-servers.",
        )

    def _refusal(self) -> Fault | None:
        """What a broker said that only other settings can change, if one did."""
        from confluent_kafka import KafkaError

        for error in self.said:
            text = bare(error.str())
            if "in current SASL state" in text or "PLAINTEXT broker listener" in text or "Failed to acquire" in text:
                continue  # a listener of another protocol; a token that somebody else did not give
            if error.code() == KafkaError._AUTHENTICATION:
                came = set_by(self.origins, "sasl.")
                return f"The Kafka broker at {self.bootstrap} refuses these credentials{came}: {text}.", credentials(
                    text
                )
            if error.code() == KafkaError._SSL:
                came = set_by(self.origins, "ssl.")
                what = f"No TLS connection with the Kafka broker at {self.bootstrap}{came}: {text}."
                return what, "`antdt doctor` says which certificate it is."
        return None

    def _asked(self, protocol: str) -> Fault | None:
        """What the servers say without a client of Kafka: another protocol, or addresses that lead nowhere."""
        until_s = monotonic() + max(ASK_S, self.timeout_s / 2)  # whoever is slow to answer a client is so here
        for server in self.servers:
            left_s = until_s - monotonic()
            found = within(left_s, partial(spoken, server, left_s / 2), None) if left_s > PAUSE_S else None
            if found is None:
                continue
            if found.protocol != protocol:
                return mismatch(server, found, protocol, self.origins)
            if self.away:
                return unreachable(server, self.away)
        return None

    def _unresolved(self) -> Fault | None:
        """Every server has a name that is none."""
        names = self._names()
        if len(names) < len(self.servers) or any(TEMPORARY in why for why in names.values()):
            return None
        return nameless(names, self.origins)

    def _names(self) -> dict[str, str]:
        found = (BOOTSTRAP_NAME.search(error.str()) for error in self.said)
        return {match[1]: bare(match[2]) for match in found if match}

    def _why(self) -> str:
        """What was said that names an address or a token, if anything did."""
        unresolved = [f"{server} cannot be resolved: {why}" for server, why in self._names().items()]
        tokens = [bare(error.str()) for error in self.said if "Failed to acquire" in error.str()]
        return "".join(f" {text}." for text in (*unresolved, *tokens[-1:]))


def mismatch(server: str, found: Spoken, protocol: str, origins: Mapping[str, str]) -> Fault:
    """A listener speaks another protocol than the settings say."""
    how = f" with sasl.mechanism {' or '.join(found.mechanisms)}" if found.mechanisms else ""
    came = set_by(origins, "security.protocol")
    what = f"The Kafka broker at {server} speaks {found.protocol}{how}, and security.protocol is {protocol}{came}."
    return what, f"Set security.protocol={found.protocol} in client.properties."


def unreachable(server: str, away: Mapping[str, str]) -> Fault:
    """What a broker advertises leads nowhere. away: addresses, and why not."""
    named = ", ".join(f"{address} ({why})" for address, why in away.items())
    what = f"The Kafka broker at {server} answers, but advertises {named}, which cannot be reached from here."
    return what, "Set the broker's advertised.listeners to an address that its clients can reach."


def nameless(names: Mapping[str, str], origins: Mapping[str, str]) -> Fault:
    """Names that are none, and why not."""
    came = origins.get("bootstrap.servers", "code")
    what = ", ".join(f"{server} ({why})" for server, why in names.items())
    return f"No Kafka broker can be found: {what}. The name came from {came}.", "Write HOST:PORT as it is known here."


def credentials(text: str) -> str:
    """What mends credentials that a broker refuses with this text."""
    if "mechanism" in text:
        return "Set sasl.mechanism to one that the broker offers."
    return "Correct sasl.username and sasl.password, or have the broker's administrator set them."


def set_by(origins: Mapping[str, str], prefix: str) -> str:
    """Which files and variables the settings of this kind came from."""
    found = sorted({origin for key, origin in origins.items() if key.startswith(prefix)})
    return f" (set by {', '.join(found)})" if found else ""


def bare(text: str) -> str:
    """What librdkafka says, without the address before it and the state of its connection behind it."""
    text = re.sub(r"^\S+/(bootstrap|\d+): ", "", text)
    return re.sub(r" \(after \d+ms in state \w+.*\)$", "", text).rstrip(".")


def within(seconds: float, ask: Callable[[], T], otherwise: T) -> T:
    """What `ask` finds in time; resolving a name has no bound of its own."""
    box: list[T] = []
    thread = threading.Thread(target=lambda: box.append(ask()), daemon=True)
    thread.start()
    thread.join(seconds)
    return box[0] if box else otherwise
