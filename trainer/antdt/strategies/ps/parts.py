"""A server's part of a checkpoint as bytes: a safetensors file, whose metadata say of which layout and version it is.

Nothing in it is executed when it is read. Owns the form of a part. Must not know what is done with the numbers.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from antdt_schemas.errors import Mismatch
from safetensors.torch import load

from antdt.strategies.ps import wire
from antdt.strategies.ps.layout import DTYPES, Block, Layout

FORMAT = "antdt-ps-1"
ALIGNED = 64
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Part(NamedTuple):
    """As it was read. script: what of the script's own objects is saved with it."""

    about: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    script: dict[str, Any]


class Buffer:
    """Memory that parts are copied into, one after the other: to take new memory for each takes longer than to copy."""

    def __init__(self) -> None:
        self._room = bytearray()

    def fill(
        self, about: Mapping[str, Any], script: Mapping[str, Any], tensors: Iterable[tuple[str, torch.Tensor]]
    ) -> memoryview:
        """A whole part, until this is called again."""
        kept = io.BytesIO()
        torch.save(dict(script), kept)
        named = {**dict(tensors), "script": torch.frombuffer(kept.getbuffer(), dtype=torch.uint8)}
        header = self._header(about, named)
        size = len(header) + sum(value.numel() * value.element_size() for value in named.values())
        if len(self._room) < size:
            self._room = bytearray(size + size // 8)
        view = memoryview(self._room)
        view[: len(header)] = header
        at = len(header)
        for value in named.values():
            data = wire.bytes_of(value.contiguous().reshape(-1))
            view[at : at + len(data)] = data
            at += len(data)
        return view[:size]

    @staticmethod
    def _header(about: Mapping[str, Any], named: Mapping[str, torch.Tensor]) -> bytes:
        at, described = 0, dict[str, Any]()
        for name, value in named.items():
            size = value.numel() * value.element_size()
            described[name] = {"dtype": NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [at, at + size]}
            at += size
        described["__metadata__"] = {"format": "pt", "antdt": json.dumps({"form": FORMAT, **about})}
        text = json.dumps(described).encode()
        text += b" " * (-(len(text) + 8) % ALIGNED)
        return struct.pack("<Q", len(text)) + text


def read(data: bytes) -> Part:
    """What a part holds.

    Raises Mismatch for anything else.
    """
    try:
        (length,) = struct.unpack_from("<Q", data)
        about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["antdt"])
        if about["form"] != FORMAT:
            raise ValueError(f"it is {about['form']!r}")
        tensors = load(data)
        script = torch.load(io.BytesIO(tensors.pop("script").numpy().tobytes()), weights_only=True)
    except Exception as error:
        hint = "It is no part of a checkpoint that a parameter server of this version has written."
        raise Mismatch("The form of a checkpoint's part", FORMAT, f"{type(error).__name__}: {error}", hint) from error
    return Part(about, tensors, script)


def about_layout(layout: Layout) -> dict[str, Any]:
    """What `assemble` needs of it, for the metadata."""
    blocks = [[b.optimizer, b.group, b.dtype, b.names, b.shapes] for b in layout.blocks]
    return {"layout": layout.digest, "blocks": blocks, "tables": [[t.name, t.width] for t in layout.tables]}


def assemble(
    parts: Sequence[bytes],
) -> tuple[dict[str, torch.Tensor], dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """The model of all parts of a checkpoint, in any order: dense parameters by name, and of each table ids in
    ascending order with the values of their rows.

    Raises Mismatch for parts of different checkpoints, and if one is missing.
    """
    found = sorted((read(data) for data in parts), key=lambda part: int(part.about["part"]))
    first = found[0].about
    for name in ("servers", "version", "lineage", "layout"):
        if any(part.about[name] != first[name] for part in found):
            raise Mismatch(f"The {name} of a checkpoint's parts", first[name], [part.about[name] for part in found])
    numbers = [part.about["part"] for part in found]
    if numbers != list(range(first["servers"])):
        raise Mismatch("The parts of a checkpoint", list(range(first["servers"])), numbers)
    dense: dict[str, torch.Tensor] = {}
    for at, (optimizer, group, dtype, names, shapes) in enumerate(first["blocks"]):
        block = Block(optimizer, group, dtype, tuple(names), tuple(map(tuple, shapes)))
        flat = torch.cat([part.tensors[f"dense.{at}"] for part in found])
        assert flat.dtype == DTYPES[dtype] and len(flat) == block.size, f"block {at} has {len(flat)} numbers"
        dense.update(block.split(flat))
    tables = {}
    for at, (name, width) in enumerate(first["tables"]):
        ids = torch.cat([part.tensors[f"ids.{at}"] for part in found])
        rows = torch.cat([part.tensors[f"rows.{at}"][:, :width] for part in found])
        ids, order = ids.sort()
        tables[name] = ids, rows.index_select(0, order)
    return dense, tables
