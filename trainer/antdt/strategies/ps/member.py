"""A worker of parameter servers: it pulls a version, goes forward and backward, and pushes what came of it.

Rules
    The parameters are those of the version that was pulled last, of all servers alike; nothing else ever changes them.
    What is pushed is the gradient of the sum over this worker's samples, and what its losses were divided by: servers
    divide once, by what all contributions of a version weigh, so the mean is over all of them.
    With bsp contributions add up to a step, so what depends on which samples a worker has together is refused, as with
    AllReduce. With asp and ssp each is a step of its own, and has what one process makes of that batch; but for one
    that is cut into micro-batches.
    A gradient that is not finite is pushed as nothing: its samples count, and learn nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, ClassVar, cast

import torch
from antdt_schemas import records
from antdt_schemas.batches import Cursor
from antdt_schemas.errors import NotFinite, Unavailable, UsageError
from antdt_schemas.lineage import ROOT
from antdt_schemas.strategies import DROP

from antdt.host import whereabouts
from antdt.host.whereabouts import At
from antdt.strategies.allreduce import randomness
from antdt.strategies.allreduce.buckets import LocalGradients, partition
from antdt.strategies.base import GenerationClosed, Here, Outcome, Part, Restores, Strategy, Timings
from antdt.strategies.habits import guard
from antdt.strategies.habits.denominators import Denominators
from antdt.strategies.habits.provenance.carried import tensors_in
from antdt.strategies.habits.provenance.watcher import Watcher
from antdt.strategies.habits.untouched import Untouched
from antdt.strategies.habits.weights import Weights
from antdt.strategies.once import Once
from antdt.strategies.ps import links
from antdt.strategies.ps.client import Exchange, Included, Late, Pulled
from antdt.strategies.ps.contribution import Contribution, Factor
from antdt.strategies.ps.held import HeldByServers
from antdt.strategies.ps.layout import layout_of
from antdt.strategies.ps.looking_up import LookedUp
from antdt.strategies.ps.options import BSP, ParameterServer
from antdt.strategies.ps.parts import assemble
from antdt.strategies.ps.refusals import CARRIES, refuse, refuse_hooks, unchanged
from antdt.strategies.ps.whole import hold
from antdt.strategies.together import optimizers_of

SKIPS_MAX = 100  # contributions in a row whose gradient is not finite
RANGES_MAX = 64


def member_of(model: torch.nn.Module, optimizer: Any, options: ParameterServer, here: Here) -> Strategy:
    """What this process is: a worker, or a server."""
    if here.serves:
        from antdt.strategies.ps.serving import Serving

        # It is asked for what a life and its files need, never for a step.
        return cast(Strategy, Serving(model, optimizer, options, here))
    return ServedMember(model, optimizer, options, here)


class ServedMember(HeldByServers):
    """A `Strategy`. others_idle: some worker has no samples, as the primary said last.

    Invariant: between `align` and `abort` the parameters are those of version `step_number`, whose
    lineage is `lineage`.
    """

    ranges_max: ClassVar[int] = RANGES_MAX
    incarnation = ""

    def __init__(self, model: torch.nn.Module, optimizer: Any, options: ParameterServer, here: Here) -> None:
        guard.refuse(model, optimizer)
        self.model, self.optimizer, self.options, self._here = model, optimizer, options, here
        self.layout = layout_of(model, optimizer)
        self.step_number, self.lineage, self.plan, self.cursor = 0, ROOT, 0, Cursor()
        self.pending: Sequence[Any] = ()
        self.void = False
        self.first_bucket_at: float | None = None
        self.pending_max, self.form_patience_s = options.pending_max, options.unreachable_s
        self.rates, self.once = Factor(), Once()
        self._guard = guard.Guard(model, optimizers_of(optimizer))
        named = dict(model.named_parameters())
        self._blocks = [[named[name] for name in block.names] for block in self.layout.blocks]
        self._trained = [param for block in self._blocks for param in block if param.requires_grad]
        watcher = Watcher(model.buffers, known=lambda: chain(tensors_in(model), tensors_in(optimizer)))
        self._weights, self._denominators = Weights(), Denominators(watcher, CARRIES)
        self._untouched = Untouched(lambda: unchanged(model))
        self._gradients: LocalGradients | None = None
        self._exchange: Exchange | None = None
        self._patience = links.Patience(options.unreachable_s)
        self._part: Part | None = None
        self._gone: GenerationClosed | None = None
        self._skips, self.others_idle = 0, False
        self._looked_up = LookedUp(model, self.layout.tables, self._rows)

    def accompany(self, once: Once) -> None:
        """Before the first step. Raises UsageError for what servers cannot do."""
        refuse(self.model, self.optimizer, once)
        once.check_schedulers(self._guard.optimizers)
        self.once = self._guard.once = once

    # -- generations

    @property
    def address(self) -> tuple[str, int]:
        """Nobody meets here."""
        return self._here.advertise, 0

    @property
    def is_open(self) -> bool:
        """Whether a contribution was begun: it is given up by leaving."""
        return self._part is not None

    @property
    def size_bytes(self) -> int:
        """Of the parameters that are here."""
        return sum(param.numel() * param.element_size() for param in self.model.parameters())

    @property
    def stands(self) -> bool:
        """Whether there are servers to ask."""
        return self._exchange is not None

    def form(self, grant: records.Grant, rank: int, closed: Callable[[], bool]) -> None:
        """Connect to all servers. Raises GenerationClosed, Unavailable."""
        refuse_hooks(self.optimizer, self.once)
        who = self._here.job, self.incarnation, self._patience
        drops = self.options.late == DROP
        self._exchange = Exchange(self.layout, *who, own_host=self._here.advertise, drops=drops)
        self._exchange.connect(grant.generation, [(m.host, m.port) for m in grant.members], closed=closed)

    def align(self, grant: records.Grant, rank: int, files: Restores) -> None:
        """Pull all parameters. Raises GenerationClosed, Unavailable."""
        if self._gradients is None:
            self._gradients = LocalGradients(partition(self._trained, 1 << 62, 1 << 62))
        self._guard.open()
        self._looked_up.connect()
        self._forget()
        with self._waits_for_servers() as exchange:
            self._take(exchange.pull())
        self.void = False

    def diverge(self, *salt: object) -> None:
        """From here on this worker draws numbers of its own."""
        devices = {param.device for param in self.model.parameters() if param.is_cuda}
        randomness.diverge(salt, sorted(devices, key=str))

    def abort(self) -> None:
        """Leaves the servers; the parameters are those of the last version that was pulled."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close()
        self._forget()

    def close(self) -> None:
        """From any thread: whatever waits for servers gives up."""
        exchange = self._exchange
        if exchange is not None:
            exchange.abort()

    def end(self) -> None:
        """The model is the script's own again."""
        self.abort()
        self._guard.close()
        if self._gradients is not None:
            self._gradients.disconnect()
        self._looked_up.disconnect()

    def outlive(self) -> None:
        """The job has ended, and its servers with it."""

    def idle(self, *, leaving: bool) -> None:
        """Nobody need wait for this worker."""
        exchange = self._asking()
        exchange.bye() if leaving else exchange.idle()
        self._is_idle = True

    # -- one contribution

    _is_idle = False
    _plan_told = 0

    def look_ahead(self, batch: Any, following: Callable[[], Sequence[Any]]) -> None:
        """See base.LooksAhead: rows of the next batch come with the answer to what is pushed of this one."""
        self._looked_up.see(batch, following)

    @property
    def watcher(self) -> Watcher:
        """See base.Watches."""
        return self._denominators.watcher

    def watch(self, batch: Any, samples: int) -> None:
        """See base.Watches. In a batch that is all of a step only what comes from others before it can be wrong."""
        self.watcher.begin(batch, samples)

    def unwatch(self, *, whole: bool) -> None:
        """See base.Watches."""
        self.watcher.end()

    def _is_all(self, samples: int) -> bool:
        """Whether so many are a step; with bsp others have a part of it, too."""
        part = self._part
        return self.options.mode != BSP and part is not None and samples >= part.samples

    def announce(self, part: Part) -> None:
        """It is begun, perhaps anew."""
        self._forget()
        if self._is_idle:  # versions went by without this worker
            with self._waits_for_servers() as exchange:
                self._take(exchange.pull())
            self._is_idle = False
        self._part = part

    def see(self, plan: int) -> None:
        """A plan counts from the next contribution on."""

    def backward(
        self,
        loss: torch.Tensor,
        samples: int,
        last: bool = True,
        *,
        weight: float | None = None,
        summed: bool = False,
        through: bool = True,
        retain_graph: bool = False,
    ) -> None:
        """Accumulates the gradients of a loss of this micro-batch. See AllReduceReplica.

        Raises UsageError.
        """
        gradients, weights = self._gradients, self._weights
        assert self._part is not None and gradients is not None, "announce first"
        self._check_servers()
        self._untouched.check()
        if summed:
            raise UsageError(
                "ParameterServer divides by what all contributions weigh: pass the mean, and weight= where it was not "
                "divided by the number of samples, instead of reduction='sum'."
            )
        weight = self._denominators.weigh(weights, loss, samples, weight, alone=self._is_all(samples))
        if any(param.requires_grad and not known for param, known in self._frozen_now()):
            raise UsageError("Parameters were unfrozen, which servers do not train: unfreeze before the Agent is made.")
        gradients.expect(last)
        if weight:
            (loss if weight == 1.0 else loss * weight).backward(retain_graph=retain_graph)
        gradients.done(last)
        if through:
            self.through(samples, last)
        if last and not (gradients.touched or self._looked_up.touched or weights.counts_nothing):
            raise UsageError(
                "The loss depends on no trainable parameter of the Agent's model (on a copy of it, or another model?): "
                "give the Agent the very model that the loss is computed with."
            )
        if last:
            self.first_bucket_at = gradients.first_at or time.perf_counter()

    def through(self, samples: int, last: bool) -> None:
        """No other loss of this micro-batch follows."""
        self._weights.through(samples)

    def finish(self, on_plan: Callable[[int], None]) -> Outcome:
        """Pushes it, and pulls what comes of it: applied, where it is included; not, where it was late and is to be
        computed anew.

        Raises GenerationClosed, Unavailable, NotFinite.
        """
        self._check_servers()
        part, exchange, begun = self._part, self._asking(), time.perf_counter()
        assert part is not None and self._weights.samples == part.samples, (part, self._weights.samples)
        if part.plan_seen != self._plan_told:
            self._plan_told = part.plan_seen
            on_plan(part.plan_seen)
        self._guard.check_parameters()
        flat, rows, finite = self._collected(exchange)
        weight = self._weights.total if finite else 0.0
        scale = part.samples / part.reference if self.options.mode != BSP else 1.0
        ranges = tuple(number for one in part.ranges for number in one)
        wanted = self._looked_up.upcoming()
        answer = exchange.push(ranges, part.samples, weight, scale, flat, rows, wanted)
        late = isinstance(answer, Late)
        self._forget()
        self._take(answer, {name: ids for name, (ids, _) in rows.items()} if late else wanted)
        if not late:
            self._count(finite)
        row = Contribution(part.samples, part.plan_seen, part.reference)
        timings = Timings(time.perf_counter() - begun, 0.0, 0.0)
        skipped, why = ((self._here.worker,), "its gradient is not finite") if not (finite or late) else (None, "")
        return Outcome(part.samples, [row], not late, False, timings, skipped, why)

    def _collected(self, exchange: Exchange) -> tuple[list[torch.Tensor], Mapping[str, Any], bool]:
        """Gradients, one flat tensor for each block, and of rows; whether all are finite: else they are nothing."""
        flat, rows = exchange.gradients, self._looked_up.gradients()
        for block, params in zip(flat, self._blocks, strict=True):
            for view, param in zip(block.split([p.numel() for p in params]), params, strict=True):
                view.zero_() if param.grad is None else view.copy_(param.grad.reshape(-1))
        finite = all(map(_is_finite, flat)) and all(_is_finite(values) for _, values in rows.values())
        if not finite:
            for block in flat:
                block.zero_()
            rows = {}
        return flat, rows, finite

    def _count(self, finite: bool) -> None:
        self._skips = 0 if finite else self._skips + 1
        if self._skips >= SKIPS_MAX:
            raise NotFinite(
                f"The gradients of {SKIPS_MAX} contributions in a row were not finite: lower the learning rate, or "
                "look at the data of these steps."
            )

    def _take(self, answer: Pulled | Included | Late, ids: Mapping[str, torch.Tensor] | None = None) -> None:
        """The model is that of this version from here on. ids: of the rows of the answer."""
        self._looked_up.hold(ids or {}, answer.rows)
        with torch.no_grad():
            for flat, block in zip(answer.dense, self._blocks, strict=True):
                for values, param in zip(flat.split([p.numel() for p in block]), block, strict=True):
                    param.copy_(values.view_as(param))
        self.step_number, self.lineage, self.others_idle = answer.version, answer.lineage, answer.idle
        self._untouched.begin()

    def _rows(self, table: str, ids: torch.Tensor) -> torch.Tensor:
        """In the middle of the script's own code."""
        try:
            with self._waits_for_servers() as exchange:
                return exchange.rows(table, ids)
        except GenerationClosed as closed:
            if self._part is None:
                said = f"The servers have gone while the script looked up rows of {table} between two batches: {closed}"
                raise Unavailable(said, "This worker is to be started again; it loses no samples by that.") from closed
            self._gone = closed  # what the script's body comes to is given up in agent.step
            return torch.zeros(len(ids), self.layout.width(table), device="cpu")

    @contextmanager
    def _waits_for_servers(self) -> Iterator[Exchange]:
        """Whatever it is at: who waits for a server that hangs does not hang itself."""
        page = whereabouts.mine()
        phase, standing = page.phase, page.standing()
        page.enter(At.REDUCING)
        try:
            yield self._asking()
        finally:
            page.enter(phase, standing.detail, standing.allowed_s)

    def _frozen_now(self) -> list[tuple[torch.nn.Parameter, bool]]:
        known = {id(param) for param in self._trained}
        return [(param, id(param) in known) for param in self.model.parameters() if param.numel()]

    def _check_servers(self) -> None:
        """Raises GenerationClosed where rows were looked up that nobody gave."""
        if self._gone is not None:
            raise self._gone

    def _forget(self) -> None:
        """Nothing is begun, no gradient is there."""
        self._gone = None
        if self._gradients is not None:
            self._gradients.reset()
        self._looked_up.forget()
        self._weights.clear()
        self._part, self.first_bucket_at = None, None

    def _asking(self) -> Exchange:
        if self._exchange is None:
            raise GenerationClosed("There are no servers to ask.")
        return self._exchange

    # -- the final model

    def assemble(self, parts: Sequence[bytes], step: int, lineage: bytes) -> None:
        """The model is put together of these parts of all servers."""
        dense, tables = assemble(list(parts))
        named = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, values in dense.items():
                named[name].copy_(values)
        hold(self.model, tables)
        self.step_number, self.lineage, self.void = step, lineage, False


def _is_finite(values: torch.Tensor) -> bool:
    return math.isfinite(float(values.sum())) or bool(torch.isfinite(values).all())
