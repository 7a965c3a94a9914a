"""What may be ordered from the page, where that is allowed: by whoever has the token, from this page, under a name.

Each order is sent as the command line sends it, and recorded with the name that was given. Owns who may, and the form
of an order; what it does is that of `kafka.operating` and `views.orders`.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import Refused, UsageError

from antdt_streams.kafka import operating
from antdt_streams.kafka.ask import author
from antdt_streams.views import orders

TOKEN_HEADER = "X-Antdt-Token"
WHO = re.compile(r"[A-Za-z0-9][-A-Za-z0-9._@+ ]{0,62}")
REASON_MAX = 500
NAME_MAX = 63
CHANGES_MAX = 16
BUSY_S_MAX = 7 * 86400.0


class Forbidden(Refused):
    """An order that is not allowed."""


def new_token() -> str:
    return secrets.token_urlsafe(24)


@dataclass(frozen=True)
class Actions:
    """token: what an order has to bring; None: nothing can be ordered here."""

    token: str | None = field(default=None, repr=False)

    @property
    def allowed(self) -> bool:
        return self.token is not None

    def check(self, headers: Mapping[str, str], host: str) -> None:
        """host: under which this page was asked for. Raises Forbidden, with what is missing."""
        if self.token is None:
            raise Forbidden("This page only shows: whoever started it did not say --allow-actions.")
        origin = headers.get("Origin", "")
        if origin not in (f"http://{host}", f"https://{host}"):
            raise Forbidden(f"An order must come from this page, http://{host}, not from {origin or 'nowhere'}.")
        given = headers.get(TOKEN_HEADER, "")
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            raise Forbidden("The token is not the one that was printed when the page was started.")


@dataclass(frozen=True, slots=True)
class Order:
    """One order to one job, with what was filled in."""

    connection: Connection
    job: str
    secret: bytes | None
    given: Mapping[str, Any]

    @property
    def who(self) -> str:
        """Raises UsageError where nobody is named."""
        who = self.given.get("who")
        if not isinstance(who, str) or not WHO.fullmatch(who):
            raise UsageError("Say who you are: 1 to 63 letters, digits, spaces and . _ @ + -, beginning with a letter.")
        return who

    @property
    def reason(self) -> str:
        reason = self.given.get("reason")
        if not isinstance(reason, str) or not reason.strip() or len(reason) > REASON_MAX:
            raise UsageError(f"Say why, in at most {REASON_MAX} characters: whoever reads the log later wants to know.")
        return " ".join(reason.split())

    def number(self, name: str, default: int) -> int:
        value = self.given.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise UsageError(f"{name} is to be a whole number, not {value!r}.")
        return value

    def name(self, of: str) -> str:
        value = self.given.get(of)
        if not isinstance(value, str) or not 0 < len(value) <= NAME_MAX:
            raise UsageError(f"{of} is to be a name, of 1 to {NAME_MAX} characters.")
        return value

    def changes(self, least: int) -> dict[str, str]:
        """Parameters of a policy, as they are typed."""
        changes = self.given.get("changes", {})
        if not isinstance(changes, dict) or not least <= len(changes) <= CHANGES_MAX or not all(changes):
            told = f"{least} to {CHANGES_MAX} parameters of the policy"
            raise UsageError(f"changes are {told}: a name and a value for each.")
        return {key: str(value) for key, value in changes.items()}


def _rollback(o: Order) -> str:
    return operating.rollback(o.connection, o.job, o.secret, o.number("step", -1), o.reason, o.who)


def _readmit(o: Order) -> str:
    return operating.readmit(o.connection, o.job, o.secret, o.who)


def _restart(o: Order) -> str:
    return orders.restart(o.connection, o.job, o.name("worker"), o.reason, o.who)[1]


def _policy(o: Order) -> str:
    return operating.set_policy(o.connection, o.job, o.changes(1), o.reason, who=o.who)


def _promote(o: Order) -> str:
    policy = o.name("policy")
    if ":" in policy:
        raise UsageError("The page promotes no policy of a file: `antdt policy promote` does, on the machine of it.")
    return orders.promote(o.connection, o.job, policy, o.changes(0), o.reason, o.who)


def _cluster(o: Order) -> str:
    busy = o.given.get("cluster") == "busy"
    for_s = o.number("for_s", 0)
    if o.given.get("cluster") not in ("busy", "free") or not 0 <= for_s <= BUSY_S_MAX:
        raise UsageError("cluster is busy or free, and for_s the seconds that it stays busy, 0 until told otherwise.")
    word = records.Cluster.BUSY if busy else records.Cluster.FREE
    said = records.Steering(author(o.who), cluster=word, busy_s=float(for_s) if busy else 0.0, reason=o.reason)
    return operating.tell(o.connection, o.job, said)


ORDERS: Mapping[str, Callable[[Order], str]] = {
    "rollback": _rollback,
    "readmit": _readmit,
    "restart": _restart,
    "policy": _policy,
    "promote": _promote,
    "cluster": _cluster,
}


def carry_out(name: str, order: Order) -> str:
    """One sentence about what comes of it.

    Raises:
        UsageError: there is no such order, or something is missing in it.
        Refused, Unavailable: the ledger or the Controller does not do it, or does not answer.
    """
    if name not in ORDERS:
        raise UsageError(f"There is no order {name!r}: there is {', '.join(ORDERS)}.")
    return ORDERS[name](order)
