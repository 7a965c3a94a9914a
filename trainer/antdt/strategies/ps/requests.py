"""What a worker's message asks of a server, checked against what the server holds.

Must not know sockets, nor when a request is answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from antdt.strategies.ps import wire
from antdt.strategies.ps.core.facts import PULL, Contribution
from antdt.strategies.ps.state import Gradient, ServerState

Ids = tuple[torch.Tensor, ...]


class Request(NamedTuple):
    """pushed, wanted: ids of each table. blocks: of the dense gradient. rows: gradients of the pushed ids."""

    incarnation: str
    wanted: Ids = ()
    pushed: Ids = ()
    blocks: Sequence[wire.Segment] = ()
    rows: tuple[torch.Tensor, ...] = ()


def request_of(state: ServerState, message: wire.Message) -> Request:
    """Raises ValueError, with a sentence for whoever has sent it."""
    body, segments = message.body, message.segments
    if isinstance(body, wire.Idle):
        return Request(body.incarnation)
    if isinstance(body, wire.AskRows):
        if not 0 <= body.table < len(state.tables):
            raise ValueError(f"There is no table {body.table}.")
        _expect(len(segments), 1)
        counts = [body.rows if at == body.table else 0 for at in range(len(state.tables))]
        asked = [segments[0] if at == body.table else [] for at in range(len(state.tables))]
        return Request(body.incarnation, _ids(state, asked, counts))
    if body.layout != state.layout.digest:
        raise ValueError("This worker's model or optimizer is not that of the servers: all run the same script.")
    if isinstance(body, wire.Pull):
        if body.key.attempt != PULL:
            raise ValueError(f"A pull with attempt {body.key.attempt}.")
        _expect(len(segments), len(state.tables))
        return Request(body.key.incarnation, _ids(state, segments, body.wants))
    return _pushed(state, body, segments)


def _pushed(state: ServerState, body: wire.Push, segments: list[wire.Segment]) -> Request:
    facts, dense, tables = body.facts, len(state.layout.blocks), len(state.tables)
    if len(facts.ranges) % 5 or facts.key.attempt < 0 or not facts.weight >= 0 or not facts.scale >= 0:
        raise ValueError(f"A contribution of {len(facts.ranges)} numbers, attempt {facts.key.attempt}, {facts.weight}.")
    _expect(len(segments), dense + 3 * tables)
    blocks, ids, values = (
        segments[:dense],
        segments[dense : dense + 2 * tables : 2],
        segments[dense + 1 : dense + 2 * tables : 2],
    )
    if why := state.dense.check(blocks):
        raise ValueError(f"Not the gradient of this server's parameters: {why}.")
    pushed = _ids(state, ids, body.rows)
    rows = []
    for table, keys, segment in zip(state.layout.tables, pushed, values, strict=True):
        flat = wire.joined(segment, torch.float32)
        _expect(len(flat), len(keys) * table.width)
        rows.append(flat.view(len(keys), table.width))
    wanted = _ids(state, segments[dense + 2 * tables :], body.wants)
    return Request(facts.key.incarnation, wanted, pushed, blocks, tuple(rows))


def _ids(state: ServerState, segments: Sequence[wire.Segment], counts: Sequence[int]) -> Ids:
    _expect(len(counts), len(state.tables))
    out = []
    for table, segment, count in zip(state.tables, segments, counts, strict=True):
        ids = wire.joined(segment, torch.int64)
        _expect(len(ids), count)
        if why := table.refuse(ids):
            raise ValueError(f"{why[0].upper()}{why[1:]}.")
        out.append(ids)
    return tuple(out)


def _expect(found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(f"A message has {found} numbers or rows where {expected} belong.")


def gradient_of(facts: Contribution, request: Request) -> Gradient:
    """For the state to apply."""
    epoch = max(facts.ranges[2::5], default=-1)
    rows = tuple(zip(request.pushed, request.rows, strict=True))
    return Gradient(facts.weight, facts.scale, epoch, request.blocks, rows)


def rows_of(state: ServerState, ids: Ids) -> list[torch.Tensor]:
    """The values of these rows of each table."""
    return [table.values(keys) for table, keys in zip(state.tables, ids, strict=True)]
