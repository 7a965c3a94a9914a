"""Messages between workers and servers as bytes: what was packed is read again, what is no message is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from antdt.strategies.ps import wire
from antdt.strategies.ps.core.facts import Contribution, Key
from antdt.strategies.ps.dense import Outgoing
from antdt.strategies.ps.links import DONE
from antdt_schemas.errors import Undecodable

KEY = Key("w0.0", 3, 1)
PUSH = wire.Push(Contribution(KEY, 7, (1, 2, 0, 4, 5), 5, 5.0, 0.5), "ab", (3,), (0,))


def travelled(frames: list[Any], offset: int = 0) -> list[memoryview]:
    """As they arrive: in memory of their own, at any address."""
    return [memoryview(bytearray(offset) + bytearray(frame))[offset:] for frame in frames]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64])
@pytest.mark.parametrize("offset", [0, 1])
def test_numbers_of_any_type_arrive_at_any_address(dtype: torch.dtype, offset: int) -> None:
    sent = [torch.arange(7).to(dtype), torch.empty(0, dtype=dtype), torch.arange(6).to(dtype).view(2, 3)]
    message = wire.unpack("job", travelled(wire.pack("job", 4, PUSH, sent), offset))
    assert (message.generation, message.body) == (4, PUSH)
    for one, segment in zip(sent, message.segments, strict=True):
        assert torch.equal(wire.joined(segment, dtype), one.reshape(-1))


def test_long_rows_come_in_several_frames_and_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FRAME_MAX", 16)
    sent = torch.arange(9)
    frames = wire.pack("job", 0, PUSH, [sent, sent[:2]])
    assert [len(frame) for frame in frames[1:]] == [16, 16, 16, 16, 8, 16]
    first, second = wire.unpack("job", travelled(frames)).segments
    assert torch.equal(wire.joined(first, torch.int64), sent) and torch.equal(
        wire.joined(second, torch.int64), sent[:2]
    )
    with pytest.raises(Undecodable, match="instead of"):
        wire.unpack("job", travelled([*frames[:3], *frames[4:]]))
    with pytest.raises(Undecodable, match="frames too many"):
        wire.unpack("job", travelled([*frames, b"x"]))


WELL = json.loads(wire.pack("job", 4, PUSH)[0])


@pytest.mark.parametrize(
    ("at", "value"),
    [
        ((0,), 99),
        ((0,), True),
        ((2,), "4"),
        ((3, 0, 0, 1), 3.0),
        ((3, 0, 0), ["w0.0", 3]),
        ((3, 0, 2), [1, 2, 0, 4, True]),
        ((3, 0, 3), "5"),
        ((3, 0, 4), True),
        ((3, 1), None),
        ((3, 2), 3),
        ((4,), [-8]),
        ((4,), [8.0]),
    ],
)
def test_a_header_of_other_types_is_refused(at: tuple[int, ...], value: Any) -> None:
    header = json.loads(json.dumps(WELL))
    inner = header
    for step in at[:-1]:
        inner = inner[step]
    inner[at[-1]] = value
    with pytest.raises(Undecodable, match="cannot be read"):
        wire.unpack("job", travelled([json.dumps(header).encode()]))


def test_copies_for_workers_are_used_again_also_where_there_is_nothing_in_them() -> None:
    """A model of nothing but tables had a new one for each version, and all were looked at for each message."""
    for params in ([], [torch.zeros(3)]):
        outgoing = Outgoing()
        for _ in range(5):
            outgoing.outdated()
            assert len(outgoing.of(params)) == len(params)
            outgoing.sent(DONE)
        assert len(outgoing._copies) == 1
