"""What a worker knows of the samples that made it fail, and tells the ledger before it ends.

Owns which exceptions speak against samples and against which. Must not know what is counted: that is the ledger's.
"""

from __future__ import annotations

import atexit
import dis
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from types import TracebackType
from typing import Any

from antdt_schemas import records
from antdt_schemas.errors import AntdtError
from antdt_schemas.ranges import Range

from antdt.connect.alone import Alone
from antdt.connect.client import Client
from antdt.data.loading.pool import DataProcessDied, SampleFailed, Samples
from antdt.data.sources import IterableSource, MapSource, position_key
from antdt.driving import holds
from antdt.host import whereabouts

log = logging.getLogger("antdt")

NARROWING_S = 5.0
UNHEARD_S = 1.0  # an exception that ends the process has done so by then, or its handlers are slow
RANGES_TOLD_MAX = 64
# They say something of the script's arguments, or of the world outside: not of samples.
NOT_OF_SAMPLES = (AntdtError, NotImplementedError, ImportError)


class Witness:
    """Of one Agent. `waits`: somebody left the loop with a batch at hand, and it is not known why yet."""

    def __init__(self, client: Client | Alone, source: MapSource | IterableSource, held: holds.Holds) -> None:
        self._client, self._source, self._holds = client, source, held
        self._left: list[Range] = []
        self._hook: Callable[..., Any] | None = None

    @property
    def waits(self) -> bool:
        """Whether there may be a last word."""
        return bool(self._left)

    def listen(self) -> None:
        """From now on an exception that ends the process is heard of: one in the loop's body is not seen here."""
        if self._hook is None:
            self._hook, sys.excepthook = sys.excepthook, self._unhandled

    def over(self, said: Callable[[], str]) -> bool:
        """The loop is over. Whether there may be a last word; if not, what is raised from now on is none of it.

        said: where the worker and its model are. An exception that left the loop and does not end the process is warned
        of: the script goes on as if all were trained.
        """
        if self._left:
            atexit.register(self._warn, said)
            timer = threading.Timer(UNHEARD_S, self._warn, (said,))
            timer.daemon = True
            timer.start()
        elif self._hook is not None and sys.excepthook == self._unhandled:
            sys.excepthook, self._hook = self._hook, None
        return self.waits

    def _warn(self, said: Callable[[], str]) -> None:
        left, self._left = self._left, []
        atexit.unregister(self._warn)  # it would keep the model for as long as the process lives
        if left:
            worker = self._client.session.worker
            log.warning("%s left the loop by an exception that has not ended the script, %s", worker, said())

    def left_with(self, ranges: Sequence[Range]) -> None:
        """Somebody leaves the loop with this batch at hand."""
        self._left = list(ranges)

    def saw(self, error: Exception, ranges: Sequence[Range], *, loading: bool = False) -> None:
        """This was raised while these samples were loaded, or in their step: it speaks against some or all of them."""
        if isinstance(error, DataProcessDied) or not (
            isinstance(error, NOT_OF_SAMPLES) or holds.is_of_the_machine(error)
        ):
            self._tell(self._guilty(ranges, error) if loading else _triples(ranges), error)

    def _unhandled(self, kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
        # Later than that it is something else that ends the process: an evaluation behind the loop, say.
        if self._left and not self._client.stopped and isinstance(error, Exception):
            if holds.is_out_of_memory(error):
                self._holds.shrink()
            self.saw(error, self._left)
        self._left = []
        assert self._hook is not None
        self._hook(kind, error, at)

    def _guilty(self, ranges: Sequence[Range], error: Exception) -> list[Samples]:
        """As few samples as can be found in a few seconds: the process is about to end."""
        if isinstance(error, SampleFailed | DataProcessDied):
            return [error.samples] if error.samples is not None else []
        one = whereabouts.mine().loading
        if one is not None:
            return [(*one, 1)]
        found = narrowed(self._source, ranges) if isinstance(self._source, MapSource) else None
        return [found] if found is not None else _triples(ranges)

    def _tell(self, guilty: Sequence[Samples], error: Exception) -> None:
        """In one request: half of what was at hand would speak against the wrong half."""
        if not guilty:
            return
        page, (first, *others) = whereabouts.mine(), guilty[:RANGES_TOLD_MAX]
        key, more = position_key(self._source, *first[:2]), tuple(number for one in others for number in one)
        where = self._client.session.generation, *first
        self._client.say(records.Failed(*where, key, _words(error), page.numbers[whereabouts.STEP], more))
        page.numbers[whereabouts.BLAMED] = 1


def by_exception() -> bool:
    """Whether it is an exception that ends the loop over the generator which calls this as it is closed.

    Nobody tells a generator why. But the loop's frame, the first one that is no generator which is closed as well (as
    that of a progress bar), stands where it drops the iterator on purpose (`break`, `return`), or where something was
    raised. Without a frame, the interpreter ends.
    """
    frame = inspect.currentframe()
    frame = frame.f_back if frame is not None else None
    while frame is not None and frame.f_code.co_flags & inspect.CO_GENERATOR:
        frame = frame.f_back
    if frame is None or frame.f_globals.get("__name__") == "antdt.agent":
        return False
    return dis.opname[frame.f_code.co_code[frame.f_lasti]] != "POP_TOP"


def narrowed(source: MapSource, ranges: Sequence[Range]) -> Samples | None:
    """The sample that fails by itself, when it is loaded or collated alone; None where none does."""
    until, fetch_many = monotonic() + NARROWING_S, getattr(source.dataset, "__getitems__", None)
    for r in ranges:
        for position in range(r.start, r.start + r.length):
            if monotonic() > until:
                return None
            index = int(source.indices(r.epoch, position, 1)[0])
            try:
                source.collate(fetch_many([index]) if fetch_many else [source.dataset[index]])
            except Exception:  # noqa: BLE001  whatever it is
                return r.epoch, position, 1
    return None


def _triples(ranges: Sequence[Range]) -> list[Samples]:
    return [(r.epoch, r.start, r.length) for r in ranges]


def _words(error: Exception) -> str:
    """One line. The last one of a traceback that a data process has brought are the data set's own words."""
    if isinstance(error, AntdtError):
        return str(error).removesuffix(error.hint).strip()
    if isinstance(error, SampleFailed):
        return str(error).strip().rpartition("\n")[2]
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
