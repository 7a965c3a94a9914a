"""Taking over what others have not begun: which worker it is taken from, how much of it, and when.

No coordinator decides this. A worker that runs out of samples hears from the ledger what others were dealt and have not
begun, follows one of the trails that it keeps, one to each of them, and asks for shards by name; the ledger looks
whether these are still to be begun there, and no more. The rule is ours, after ant colonies (Dorigo, 1992).

Rules
    Each time the loads are heard of, every trail evaporates by a share, and gains in proportion to the time that its
    worker still needs at the speed which was measured between two readings. One that is not named any more is gone.
    The next move follows a trail by chance, in proportion to its strength: of several that are idle not all take from
    the same one.
    As much is taken as makes both end together, in whole shards from the end; less than shards_min is not worth it.
    One move is asked for at a time. Where somebody was faster, the loads are read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate

from antdt_schemas import records
from antdt_schemas.colony import ColonyParameters
from antdt_schemas.records import Status
from antdt_schemas.strategies import COLONY

from antdt.worker.session.asking import Due, Outbox, SessionOptions
from antdt.worker.session.leases import Leases

AT_ALL = 1e-9  # strength of a trail that has evaporated: whoever is named may be followed


@dataclass(slots=True)
class _Peer:
    """trail: how strong. rate: samples a second, None while unknown. done, at_s: as it was measured last."""

    trail: float = 0.0
    rate: float | None = None
    done: int = 0
    at_s: float = 0.0

    def measure(self, done: int, now_s: float, every_s: float) -> None:
        since_s = now_s - self.at_s
        if since_s >= every_s:
            measured = max(0, done - self.done) / since_s
            self.rate = measured if self.rate is None else (self.rate + measured) / 2
            self.done, self.at_s = done, now_s


class Moves:
    """What one worker knows of the others. parameters: as the newest decision of the policy says, or ours. rate: its
    own speed, samples a second, while it had some; 0 while unknown.
    """

    def __init__(self, incarnation: str, options: SessionOptions) -> None:
        self.options, self.parameters = options, ColonyParameters()
        self.rate = 0.0
        self._incarnation, self._choices = incarnation, 0
        self.begin()

    def begin(self) -> None:
        """A generation begins: what was undone is dealt anew, and nothing is known of it."""
        self._peers: dict[str, _Peer] = {}
        self._loads: tuple[records.Load, ...] = ()
        self._due, self._heard, self._now_s = Due(), False, 0.0

    @property
    def trails(self) -> dict[str, float]:
        """How strong each is, by incarnation."""
        return {name: peer.trail for name, peer in self._peers.items()}

    def on_reply(self, reply: records.Reply, leases: Leases) -> None:
        """Loads, or what has come of a move."""
        if reply.loads:
            self._observe(reply.loads, self._now_s)
        if self._due.tries and reply.number == self._due.number:
            self._due.answered()
            if reply.status is Status.OK:
                leases.again()

    def tick(self, now_s: float, generation: int, leases: Leases, outbox: Outbox) -> None:
        """Ask for something where what there is runs out."""
        if leases.sharding != COLONY:
            return
        self._now_s = now_s
        if leases.untaken and leases.rate:
            self.rate = leases.rate
        due = self._due
        if not self._heard or not leases.runs_out or (due.tries and now_s - due.at_s < due.pause_s(self.options)):
            return
        self._heard = False
        chosen = self._choose(leases.spec.shard_size)
        if chosen is not None:
            load, start = chosen
            length = load.start + load.length - start
            outbox.post(records.Move(generation, load.incarnation, load.epoch, start, length), due, now_s)

    def _observe(self, loads: Sequence[records.Load], now_s: float) -> None:
        """What is said of the others at this moment."""
        before, self._peers = self._peers, {}
        for load in loads:
            peer = before.get(load.incarnation) or _Peer(done=load.done, at_s=now_s)
            peer.measure(load.done, now_s, self.options.rate_every_s)
            self._peers[load.incarnation] = peer
        left_s = {load.incarnation: load.left / self._rate_of(load.incarnation) for load in loads}
        longest_s, p = max(left_s.values()), self.parameters
        for name, peer in self._peers.items():
            gain = p.reinforcement * left_s[name] / longest_s
            peer.trail = (1.0 - p.evaporation) * peer.trail + gain
        self._loads, self._heard = tuple(loads), True

    def _rate_of(self, name: str) -> float:
        """Of one that is not known yet, as fast as this worker is; of one that stands still, next to nothing."""
        rate = self._peers[name].rate
        return max(self.rate if rate is None else rate, AT_ALL)

    def _choose(self, shard_size: int) -> tuple[records.Load, int] | None:
        """From whom, and from which position on to the end of what is named of it; None: nothing is worth it."""
        worth = [(load, self._from(load, shard_size)) for load in self._loads]
        found = [(load, start) for load, start in worth if start is not None]
        if not found:
            return None
        weights = [self._peers[load.incarnation].trail + AT_ALL for load, _ in found]
        sums = list(accumulate(weights))
        at = self._chance() * sums[-1]
        return next(one for one, until in zip(found, sums, strict=True) if at < until)

    def _chance(self) -> float:
        """In [0, 1), another one each time, and by incarnation: the same worker would choose the same again."""
        self._choices += 1
        drawn = blake2b(f"{self._incarnation}/{self._choices}".encode(), digest_size=4).digest()
        return int.from_bytes(drawn, "big") / 2**32

    def _from(self, load: records.Load, size: int) -> int | None:
        other = self._rate_of(load.incarnation)
        own, end = self.rate or other, load.start + load.length
        share = round(load.left * own / (own + other))
        start = load.start if share >= load.length else max(load.start, -(-(end - share) // size) * size)
        shards = -(-end // size) - start // size if start < end else 0
        return start if shards >= self.parameters.shards_min else None
