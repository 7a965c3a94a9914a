"""Samples held on lease: what there is to take, how much to ask for, and what goes back.

Owns the order of taking, and the measure of how far ahead to lease. Must not know what becomes of samples once they are
taken: a lease that is used up is dropped when the ledger does not list it any more.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from antdt_schemas import records
from antdt_schemas.records import Status
from antdt_schemas.strategies import EVEN, sharding_of

from antdt.worker.session.asking import ASKED_MAX, Due, Outbox, SessionOptions

STEPS_UNCOMMITTED = 3  # the one at hand, the one that it proves, and the one whose commit is on its way


@dataclass(slots=True)
class Held:
    """A lease: [next, end) was not taken yet; [front, next) is taken and not known to be committed."""

    lease: int
    token: int
    epoch: int
    front: int
    next: int
    end: int

    @property
    def length(self) -> int:
        """Samples that were not taken."""
        return self.end - self.next


class Leases:
    """Invariants: leases are of the current generation; the order of `held` is that of taking."""

    def __init__(self, spec: records.JobSpec, options: SessionOptions) -> None:
        self.spec, self.options = spec, options
        # How samples are dealt out ahead; and whether somebody has run out of them, as was heard last.
        self.sharding, self._short = sharding_of(spec.strategy), False
        self.held: deque[Held] = deque()
        self.untaken = 0
        self.empty = 0  # of what was taken last, positions without a sample
        # Until the first plan: what an even split gives. rate: samples taken per second, lately; 0 while unknown.
        self.batch_size, self.rate = max(1, spec.step_samples // max(1, spec.workers_min)), 0.0
        self._taken, self._taken_since_s = 0, -1.0
        self._recent: deque[int] = deque(maxlen=STEPS_UNCOMMITTED)
        self._samples_total = spec.samples * spec.epochs
        self._frontier, self._unleased = 0, self._samples_total
        self._by_lease: dict[int, Held] = {}
        self._newest_lease, self._asked = 0, set[int]()
        self._due, self._waiting, self.answered = Due(), False, False
        # What goes back, lease and token; and by the number of a request, which of it that named.
        self._released: dict[int, int] = {}
        self._releasing, self._offered = Due(), dict[int, tuple[int, ...]]()

    def take(self, samples: int, ranges_max: int) -> list[tuple[int, int, int, int, int]]:
        """Take at most `samples` from the front: (lease, token, epoch, start, length), at most `ranges_max` of them."""
        out: list[tuple[int, int, int, int, int]] = []
        before, self.empty = self.untaken, 0
        while samples > 0 and self.held and len(out) < ranges_max:
            first = self.held[0]
            count, stop = self._reach(first, samples)
            length = stop - first.next
            if not length:
                break
            out.append((first.lease, first.token, first.epoch, first.next, length))
            first.next = stop
            samples -= count
            self.untaken -= length
            self.empty += length - count
            if first.next == first.end:
                self.held.popleft()
        self._taken += before - self.untaken
        self._recent.append(before - self.untaken)
        return out

    @property
    def takeable(self) -> int:
        """Positions that may be taken now."""
        return self.untaken

    def _reach(self, held: Held, samples: int) -> tuple[int, int]:
        """How many of so many samples are in a lease that is taken from, and up to which position."""
        length = min(samples, held.length)
        return length, held.next + length

    def ahead(self, samples: int) -> list[tuple[int, int, int]]:
        """(epoch, start, length) of what would be taken next, in that order, of so many samples. Nothing is taken."""
        out: list[tuple[int, int, int]] = []
        for held in self.held:
            if samples <= 0:
                break
            length = min(samples, held.length)
            out.append((held.epoch, held.next, length))
            samples -= length
        return out

    def observe(self, total: int, expected: int = 0) -> None:
        """All members together had `total` samples in a step, and would have taken `expected`.

        Where somebody has run out of samples, nobody may sit on more than is needed until the next answer comes: whole
        leases go back, from the end. Only so may a worker hold many at all, whose speed nobody can foretell.
        """
        self._unleased = max(0, self._unleased - total)  # about so much was leased meanwhile, by all together
        self._short = total < expected
        if total >= expected or self.sharding == EVEN:  # nobody else may have what was dealt to this one
            return
        while len(self.held) > 1 and self.untaken - (last := self.held[-1]).length >= 2 * self._least():
            self.held.pop()
            del self._by_lease[last.lease]
            self.untaken -= last.length
            self._released[last.lease] = last.token

    def drop(self) -> None:
        """Leases end with their generation."""
        self.held.clear()
        self._by_lease.clear()
        self._released.clear()
        self._releasing, self._offered = Due(), {}
        self.untaken = 0

    def begin(self) -> None:
        """A generation begins: nothing is held, nothing was asked for."""
        self.drop()
        self._frontier, self._unleased = 0, self._samples_total
        self._due, self._waiting, self.answered, self._short = Due(), False, False, False
        self._newest_lease, self._asked = 0, set()

    # -- what comes

    def take_answer(self, reply: records.Reply) -> None:
        """What is held, if this answers a question of this generation.

        Also an answer to an older one: a ledger that is slower than our patience must not starve us.
        """
        if reply.number not in self._asked:
            return
        self._asked = {n for n in self._asked if n > reply.number}
        more = self._merge(reply.leases)
        # Where nothing came, asking again at once would only be noise.
        self._waiting, self.answered = reply.status is Status.WAIT or not more, True
        if reply.number == self._due.number:
            self._due.answered()

    def is_release(self, reply: records.Reply) -> bool:
        """Whether this says that leases went back, now or when an earlier request named them, too."""
        offered = self._offered.get(reply.number)
        if offered is None or reply.status is not Status.OK:
            return False
        self._offered = {number: leases for number, leases in self._offered.items() if number > reply.number}
        for lease in offered:
            self._released.pop(lease, None)
        if reply.number == self._releasing.number:
            self._releasing.answered()
        return True

    def _merge(self, flat: tuple[int, ...]) -> bool:
        """The whole list of what we hold uncommitted: new ones are appended, the others' fronts move.

        Returns whether there are new ones.
        """
        listed, before = set[int](), self._newest_lease
        for i in range(0, len(flat), 5):
            number, token, epoch, front, length = flat[i : i + 5]
            listed.add(number)
            known = self._by_lease.get(number)
            if known is None:
                if number <= self._newest_lease:
                    continue  # taken and committed long ago: this list is older than the last one
                self._newest_lease = number
                self._frontier = max(self._frontier, epoch * self.spec.samples + front + length)
                self._unleased = self._samples_total - self._frontier
                known = Held(number, token, epoch, front, front, front + length)
                self._by_lease[number] = known
                self.held.append(known)
                self.untaken += length
            known.front = max(known.front, front)
        newest = max(listed, default=self._newest_lease)
        for number in [n for n, h in self._by_lease.items() if n not in listed and n <= newest and h.next == h.end]:
            del self._by_lease[number]
        return self._newest_lease > before

    def again(self) -> None:
        """There is something to be had: the next question need not wait."""
        self._waiting = False

    # -- what goes

    def measure(self, now_s: float) -> None:
        """How fast samples are taken: a loop of short steps must hold more than a few of them."""
        since = now_s - self._taken_since_s
        if since >= self.options.rate_every_s:
            measured = self._taken / since
            self.rate = (self.rate + measured) / 2 if self.rate else measured
            self._taken, self._taken_since_s = 0, now_s

    def release(self, now_s: float, generation: int, outbox: Outbox) -> None:
        """Give back what was chosen for it, all of it in one request, until that is answered."""
        due = self._releasing
        if not self._released or (due.tries and now_s - due.at_s < due.pause_s(self.options)):
            return
        (lease, token), *more = self._released.items()
        body = records.Release(generation, lease, token, tuple(number for pair in more for number in pair))
        self._offered[outbox.post(body, due, now_s)] = tuple(self._released)
        if len(self._offered) > ASKED_MAX:
            del self._offered[min(self._offered)]

    def ask(self, now_s: float, generation: int, outbox: Outbox) -> None:
        """Ask for more where half of what should be held is left."""
        due = self._due
        if due.tries:
            pause_s = due.pause_s(self.options)
        else:  # the last question was answered
            pause_s = self.options.wait_retry_s if self._waiting else 0.0
        if now_s - due.at_s < pause_s:
            return
        target = self._target()
        if self.untaken * 2 > target:
            return
        # The ledger counts what is not committed. Fronts are as old as the last answer: what was taken lately is a
        # better guess, and one that is too low only while the ledger is far behind.
        taken = sum(h.next - h.front for h in self._by_lease.values())
        lately = max(sum(self._recent), int(self.rate * self.options.rate_every_s))
        taken = min(taken, lately) if self.untaken else taken
        self._asked.add(outbox.post(records.Lease(generation, taken + target), due, now_s))
        if len(self._asked) > ASKED_MAX:
            self._asked.discard(min(self._asked))

    @property
    def runs_out(self) -> bool:
        """Whether less is left than is used up until the next answer comes."""
        return self.untaken < self._least()

    def _least(self) -> int:
        """Samples until the next answer: a step, and more of them where they are short."""
        return max(self.batch_size, int(self.rate * self.options.answer_s))

    def _target(self) -> int:
        """Samples to hold: some steps' worth, and what is used up in `prefetch_s`.

        Towards the end of the data everybody holds less, half of what nobody holds in proportion to the batches: who
        holds many steps there makes the others wait, and the last steps small. Of a part that was dealt to it a worker
        holds as much as it may have, unless others have run out, and may take over what it does not hold.
        """
        o, spec = self.options, self.spec
        target = min(o.prefetch_samples_max, max(o.prefetch_steps * self.batch_size, int(o.prefetch_s * self.rate)))
        if self.sharding:
            return self._least() if self._waiting or self._short else max(self._least(), target)
        return max(self._least(), min(target, self._unleased * self.batch_size // (2 * spec.step_samples)))
