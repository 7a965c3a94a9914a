"""Which servers are not reached by who needs them: said by name and address, and for how long it may be so.

Rules
    A connection that has broken stays a trouble as long as its generation: what was sent may be lost.
    One that is not made is a trouble until it is.
    The patience goes on over generations: each of them makes new connections, and those that end before it is over
    would keep whoever cannot reach a server at it for ever.

Must not know what is sent.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from antdt_schemas.address import unreached
from antdt_schemas.errors import Unavailable

from antdt.strategies.ps.links import Patience, Watch

log = logging.getLogger("antdt")


class Peer(NamedTuple):
    """A server as somebody needs it, with the connection to it, if it is not the other one who makes that."""

    name: str
    host: str
    port: int
    watch: Watch | None

    @property
    def where(self) -> str:
        """For people."""
        return f"{self.name} at {self.host}:{self.port}"


class Reached:
    """Of one generation. who: a worker or server, which is reached at `own_host`."""

    def __init__(self, who: str, own_host: str, peers: Sequence[Peer], patience: Patience) -> None:
        self._who, self._peers, self._patience = who, tuple(peers), patience
        self._hosts = [own_host, *(peer.host for peer in peers)]
        self._refuse = set[str]()  # servers for which nothing could be queued
        self._said = set[str]()

    def refuses(self, name: str) -> None:
        """What was to be sent to this server could not even be queued."""
        self._refuse.add(name)

    def look(self) -> None:
        """Raises Unavailable where a server is out of reach for too long, in a generation that goes on."""
        wrong = [said for peer in self._peers if (said := self._wrong(peer))]
        for said in wrong:
            if said not in self._said:
                self._said.add(said)
                what = "the next generation" if said.endswith("broken") else "it"
                log.warning("%s: %s; %s is waited for, %g s at most", self._who, said, what, self._patience.seconds)
        if wrong:
            self._patience.begins()
        elif all(peer.watch is None or peer.watch.was_made for peer in self._peers):
            self._patience.ends()
        if wrong and self._patience.is_over:
            what = f"{self._who}: {', and '.join(wrong)}, for {self._patience.for_s:.0f} s"
            raise Unavailable(f"{what}. It starts again as another incarnation.", unreached(self._hosts))

    def _wrong(self, peer: Peer) -> str:
        watch = peer.watch
        if peer.name in self._refuse or (watch is not None and watch.look()):
            return f"the connection to server {peer.where} is broken"
        late = watch is not None and watch.is_late
        return f"no connection to server {peer.where} could be made" if late else ""

    def blamed(self, names: Sequence[str]) -> str:
        """Of servers that do not answer those that are out of reach; where there are none, all of them, as servers
        answer when all have what was sent.
        """
        missing = [peer for peer in self._peers if peer.name in names]
        return ", ".join(peer.where for peer in [p for p in self._peers if self._wrong(p)] or missing)
