"""Messages between workers and servers: a header in JSON, then numbers in frames of at most FRAME_MAX bytes.

Nothing that arrives is executed or trusted: kinds, types, counts and sizes are checked before anything is used. A
message names its job and generation, so what a former generation left in a socket is told from what belongs here.

Owns what messages are as bytes. Must not know sockets, nor what a message is answered with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np
import torch
from antdt_schemas.errors import Undecodable

from antdt.strategies.ps.core.facts import Contribution, Key, Order

FRAME_MAX = 4 * 2**20
HEADER_MAX = 2**20
SEGMENTS_MAX = 4_096

Segment = list[memoryview]  # the frames of one row of numbers, in order

_WORDS = {1: np.uint8, 2: np.int16, 4: np.float32, 8: np.int64}  # what a number of so many bytes is read as first


class Hello(NamedTuple):
    """A server to the primary: what it holds at the start of a generation. lineage, layout: in hexadecimal. stated:
    settings of its script's optimizers and schedulers. first: the digest of the script's own weights, where it begins
    with them. sign: what it has written into the folder of checkpoints, empty for nothing.
    """

    part: int
    version: int
    lineage: str
    layout: str
    stated: tuple[str, ...] = ()
    first: str = ""
    sign: str = ""


class Staged(NamedTuple):
    """A server to the primary: this one is staged there."""

    key: Key


class Saved(NamedTuple):
    """A server to the primary: its part is a durable file. digest: in hexadecimal."""

    name: str
    version: int
    lineage: str
    file: str
    digest: str


class WantCheckpoint(NamedTuple):
    """A server to the primary: it has to leave soon."""

    part: int


class Ordered(NamedTuple):
    """The primary to a server. lineage: in hexadecimal; the rest as in Order."""

    number: int
    version: int
    lineage: str
    include: tuple[Key, ...]
    answer: tuple[Key, ...]
    late: tuple[Key, ...]
    drop: tuple[str, ...]
    plan: int
    factor: float
    save: str


class Pull(NamedTuple):
    """A worker asks for parameters. wants: of each table, how many rows. Then come their ids."""

    key: Key
    layout: str
    wants: tuple[int, ...]


class Push(NamedTuple):
    """A worker's gradient. rows, wants: of each table, how many rows it brings, and how many it asks for. Then come
    the dense blocks; ids and gradients of each table that has any; ids that are asked for.
    """

    facts: Contribution
    layout: str
    rows: tuple[int, ...]
    wants: tuple[int, ...]


class AskRows(NamedTuple):
    """A worker asks for rows of one table, with their ids."""

    incarnation: str
    number: int
    table: int
    rows: int


class Idle(NamedTuple):
    """A worker has no samples for now; gone: and never will."""

    incarnation: str
    gone: bool


class Params(NamedTuple):
    """A server's part of the parameters. outcome: pulled, included, late. lineage: in hexadecimal. idle: at the
    primary, whether some worker has no samples. Then come dense blocks and rows.
    """

    n: int
    attempt: int
    outcome: str
    version: int
    staleness: int
    lineage: str
    rows: tuple[int, ...]
    idle: bool


class Rows(NamedTuple):
    """The rows that were asked for under this number."""

    number: int
    version: int


class Refused(NamedTuple):
    """The server does not take what this worker sends, for good. lost: as the ledger has given the worker up."""

    why: str
    lost: bool


KINDS = (Hello, Staged, Saved, WantCheckpoint, Ordered, Pull, Push, AskRows, Idle, Params, Rows, Refused)
_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}


class Message(NamedTuple):
    """As it came. body: one of KINDS."""

    generation: int
    body: Any
    segments: list[Segment]


def pack(job: str, generation: int, body: Any, tensors: Sequence[torch.Tensor] = ()) -> list[Any]:
    """Frames of a message. The tensors must be contiguous and on the CPU; they are not copied, so they must not change
    before the message has left.
    """
    sizes, frames = list[int](), list[Any]()
    for tensor in tensors:
        data = bytes_of(tensor)
        sizes.append(len(data))
        frames.extend(data[at : at + FRAME_MAX] for at in range(0, len(data), FRAME_MAX))
    header = json.dumps([_NUMBERS[type(body)], job, generation, body, sizes], separators=(",", ":")).encode()
    assert len(header) <= HEADER_MAX, f"a header of {len(header)} bytes"
    return [header, *frames]


def unpack(job: str, frames: Sequence[memoryview]) -> Message:
    """The inverse. Segments refer to the frames.

    Raises Undecodable for what is no message of this job.
    """
    try:
        if not frames or len(frames[0]) > HEADER_MAX:
            raise ValueError("its header is too long, or there is none")
        number, whose, generation, fields, sizes = json.loads(bytes(frames[0]))
        if whose != job:
            raise ValueError(f"it is of job {whose!r}")
        body = _reading(KINDS[_reading(int)(number)])(fields)
        generation = _reading(int)(generation)
        segments = _segments(_numbers(sizes), frames[1:])
    except (ValueError, TypeError, IndexError, RecursionError) as error:
        raise Undecodable(f"A message to a server or a worker of job {job!r} cannot be read: {error}.") from error
    return Message(generation, body, segments)


def _segments(sizes: tuple[int, ...], frames: Sequence[memoryview]) -> list[Segment]:
    if len(sizes) > SEGMENTS_MAX or min(sizes, default=0) < 0:
        raise ValueError(f"{len(sizes)} rows of numbers, some of no size")
    out, at = [], 0
    for size in sizes:
        count = -(-size // FRAME_MAX)
        segment = list(frames[at : at + count])
        expected = [FRAME_MAX] * (count - 1) + [size - FRAME_MAX * (count - 1)] * (count > 0)
        if [len(frame) for frame in segment] != expected:
            raise ValueError(f"frames of {[len(frame) for frame in segment]} bytes instead of {expected}")
        out.append(segment)
        at += count
    if at != len(frames):
        raise ValueError(f"{len(frames) - at} frames too many")
    return out


# -- numbers


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Of a contiguous tensor on the CPU, without a copy."""
    assert tensor.is_contiguous(), "not contiguous"
    if not tensor.numel():
        return memoryview(b"")
    plain = tensor.detach() if tensor.requires_grad else tensor
    numbers = plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain  # which numpy does not know
    return memoryview(numbers.numpy()).cast("B")


def tensor_of(frame: memoryview, dtype: torch.dtype) -> torch.Tensor:
    """The numbers of one frame, which the tensor refers to. Small frames may lie at any address: they are copied."""
    if len(frame) % dtype.itemsize:
        raise ValueError(f"{len(frame)} bytes are no row of {dtype}")
    if not len(frame):
        return torch.empty(0, dtype=dtype, device="cpu")
    data = np.frombuffer(frame, _WORDS[dtype.itemsize])
    if not data.flags.aligned or not data.flags.writeable:
        data = data.copy()
    flat = torch.from_numpy(data)
    return flat if flat.dtype == dtype else flat.view(dtype)


def joined(segment: Segment, dtype: torch.dtype) -> torch.Tensor:
    """The numbers of a segment as one tensor; copied where they come in several frames."""
    parts = [tensor_of(frame, dtype) for frame in segment]
    if not parts:
        return torch.empty(0, dtype=dtype, device="cpu")
    return torch.cat(parts) if len(parts) != 1 else parts[0]


def copy_into(target: torch.Tensor, segment: Segment) -> None:
    """The numbers of a segment, one frame behind the other. Raises ValueError if they are not as many."""
    at = 0
    for frame in segment:
        part = tensor_of(frame, target.dtype)
        target[at : at + len(part)].copy_(part)
        at += len(part)
    if at != len(target):
        raise ValueError(f"{at} numbers instead of {len(target)}")


# -- orders


def ordered(order: Order) -> Ordered:
    """As it travels."""
    return Ordered(*order._replace(lineage=order.lineage.hex()))  # type: ignore[arg-type]


def order_of(message: Ordered) -> Order:
    """The inverse."""
    fields = message._asdict()
    return Order(**{**fields, "lineage": bytes.fromhex(message.lineage)})


# -- types

Reading = Callable[[Any], Any]


@cache
def _reading(hint: Any) -> Reading:
    """What makes of a value from JSON what the hint says, or raises ValueError: looked up once for each type."""
    if hint is float:
        return _number
    if hint in (int, str, bool):
        return partial(_plain, hint)
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        return _numbers if inner is int else partial(_row, _reading(inner))
    return partial(_fields, hint, tuple(map(_reading, get_type_hints(hint).values())))


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _plain(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{value!r} is no {kind.__name__}")
    return value


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise ValueError(f"{value!r} is no row")
    return value


def _numbers(value: Any) -> tuple[int, ...]:
    if not set(map(type, _list(value))) <= {int}:
        raise ValueError("a row of other things than whole numbers")
    return tuple(value)


def _row(read: Reading, value: Any) -> tuple[Any, ...]:
    return tuple(map(read, _list(value)))


def _fields(kind: Any, reads: tuple[Reading, ...], value: Any) -> Any:
    if len(_list(value)) != len(reads):
        raise ValueError(f"{len(value)} fields instead of {len(reads)}")
    return kind(*[read(field) for read, field in zip(reads, value, strict=True)])
