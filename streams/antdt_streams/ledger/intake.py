"""Which requests share an entry of the log: those that are there, and with mere signs of life whatever comes soon.

An entry is mostly its own bytes. A sign of life is answered with what is news to its worker, and whatever makes news is
an entry, which takes the sign along; so nobody hears of anything later. Must not know what requests ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from antdt_schemas import codec, records
from antdt_schemas.errors import AntdtError

from antdt_streams.ledger.core.leader import Incoming
from antdt_streams.ledger.options import LedgerOptions
from antdt_streams.ledger.ports import RequestsPort

T = TypeVar("T")
SIGNS_MAX = 64  # more of them are worth an entry


def take(
    requests: RequestsPort, clock: Callable[[], float], options: LedgerOptions, gathering: T
) -> Generator[T, None, list[Incoming]]:
    """Requests, in order; none, where none came within idle_s. Stops, with `gathering`, where it holds some back.

    Raises OutOfRange or Recreated as the port does: those that it held back are asked of the topic again.
    """
    most, idle_s = options.requests_per_cycle_max, options.idle_s
    taken = more = requests.take(idle_s, most)
    until_s = clock() + options.signs_s if taken else 0.0
    while len(taken) <= SIGNS_MAX and all(map(_is_sign_of_life, more)):
        left_s = until_s - clock()
        if not taken or left_s <= 0:
            break
        yield gathering
        more = requests.take(min(idle_s, left_s), most - len(taken))
        taken += more
    return taken


def _is_sign_of_life(incoming: Incoming) -> bool:
    """Whether it says no more than that its worker is there."""
    try:
        return isinstance(codec.decode(incoming.payload, records.Request).body, records.Heartbeat)
    except AntdtError:
        return False
