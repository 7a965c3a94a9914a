"""Which parameters lie on which server, as servers and workers work it out alike from the script's model and optimizer.

Dense parameters of one group of the optimizer and one dtype are one flat row of numbers, a block, of which each server
has an equal piece. A row of a table lies on the server that its id is mixed to.

Owns places and sizes. Must not hold a value of any parameter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch
from antdt_schemas.errors import UsageError

from antdt.strategies.together import optimizers_of

# Whose step changes each number by its own gradient and state alone, so that a piece of a parameter can be stepped.
ELEMENTWISE = ("SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "Adadelta", "Adamax", "NAdam", "RAdam", "Rprop", "ASGD")
TABLES = ("SGD", "Adam", "AdamW", "Adagrad", "SparseAdam")
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Block:
    """Dense parameters as one row of numbers. optimizer, group: whose; dtype: its name."""

    optimizer: int
    group: int
    dtype: str
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> list[int]:
        """Numbers in each parameter."""
        return [int(np.prod(shape, dtype=np.int64)) for shape in self.shapes]

    @property
    def size(self) -> int:
        """Numbers in all of them."""
        return sum(self.sizes)

    def piece(self, part: int, servers: int) -> slice:
        """What one server has of it."""
        return slice(self.size * part // servers, self.size * (part + 1) // servers)

    def split(self, flat: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Each parameter, a view of the block."""
        for name, shape, piece in zip(self.names, self.shapes, flat.split(self.sizes), strict=True):
            yield name, piece.view(shape)


class Table(NamedTuple):
    """A row-sparse table. rows: ids are below it. std, seed: of the first values."""

    name: str
    rows: int
    width: int
    std: float
    seed: int
    optimizer: int
    group: int


@dataclass(frozen=True, slots=True)
class Layout:
    """All blocks and tables. digest: 32 hexadecimal digits; equal where scripts have equal models and optimizers."""

    blocks: tuple[Block, ...]
    tables: tuple[Table, ...]
    digest: str

    def sizes(self, part: int, servers: int) -> list[int]:
        """Numbers that one server has of each block."""
        pieces = [block.piece(part, servers) for block in self.blocks]
        return [piece.stop - piece.start for piece in pieces]

    def width(self, table: str) -> int:
        """Of each row of that table."""
        return next(one.width for one in self.tables if one.name == table)


def layout_of(model: torch.nn.Module, optimizer: Any) -> Layout:
    """Of a script's model, and of its optimizer or optimizers.

    Raises UsageError for what servers cannot step in pieces.
    """
    owners = {
        id(param): (at, group)
        for at, one in enumerate(optimizers_of(optimizer))
        for group, settings in enumerate(one.param_groups)
        for param in settings["params"]
    }
    tables = tuple(_tables(model, owners))
    remote = {f"{table.name}.weight" if table.name else "weight" for table in tables}
    found: dict[tuple[int, int, str], list[tuple[str, tuple[int, ...]]]] = {}
    for name, param in model.named_parameters():
        if id(param) in owners and param.requires_grad and name not in remote:
            dtype = str(param.dtype).removeprefix("torch.")
            if dtype not in DTYPES:
                raise UsageError(f"Parameter {name} is {dtype}: a parameter server holds {', '.join(DTYPES)}.")
            found.setdefault((*owners[id(param)], dtype), []).append((name, tuple(param.shape)))
    blocks = tuple(
        Block(*key, tuple(name for name, _ in held), tuple(shape for _, shape in held))
        for key, held in sorted(found.items())
    )
    if not blocks and not tables:
        raise UsageError("Nothing in the model is trained: give the optimizer parameters with requires_grad=True.")
    _check_optimizers(optimizers_of(optimizer), blocks, tables)
    names = [type(one).__name__ for one in optimizers_of(optimizer)]
    said = [[(b.optimizer, b.group, b.dtype, b.names, b.shapes) for b in blocks], tables, names]
    return Layout(blocks, tables, blake2b(json.dumps(said).encode(), digest_size=16).hexdigest())


def _tables(model: torch.nn.Module, owners: dict[int, tuple[int, int]]) -> Iterator[Table]:
    """Modules whose rows are on servers: their own weight has none."""
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.nn.Parameter) and weight.dim() == 2 and len(weight) == 0:
            if id(weight) not in owners:
                raise UsageError(f"The table {name} is in no optimizer: give its weight to one.")
            if weight.dtype != torch.float32:
                raise UsageError(f"The table {name} is {weight.dtype}: tables are torch.float32.")
            rows, width, seed = int(module.rows), int(module.width), int(module.seed)
            yield Table(name, rows, width, float(module.std), seed, *owners[id(weight)])


def _check_optimizers(optimizers: tuple[Any, ...], blocks: tuple[Block, ...], tables: tuple[Table, ...]) -> None:
    for at, one in enumerate(optimizers):
        kind = type(one)
        known = kind.__module__.startswith("torch.optim")
        if any(block.optimizer == at for block in blocks) and not (known and kind.__name__ in ELEMENTWISE):
            raise UsageError(
                f"{kind.__qualname__} cannot run on parameter servers, which step pieces of a parameter: take "
                f"one of torch.optim's {', '.join(ELEMENTWISE)}, or train with AllReduce."
            )
        if any(table.optimizer == at for table in tables) and not (known and kind.__name__ in TABLES):
            raise UsageError(
                f"{kind.__qualname__} cannot step the rows of an antdt.Embedding: give the table one of torch.optim's "
                f"{', '.join(TABLES)}."
            )


# -- rows

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mixed(words: np.ndarray) -> np.ndarray:
    """Each word of 64 bits by itself, so that close ones come apart (the finalizer of splitmix64)."""
    words = words.astype(np.uint64, copy=True)
    words += _GOLDEN
    words ^= words >> np.uint64(30)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words


def servers_of(ids: torch.Tensor, servers: int) -> torch.Tensor:
    """The server of each row: of high bits, as each server finds its rows by the low ones."""
    high = mixed(ids.numpy()) >> np.uint64(33)
    return torch.from_numpy((high % np.uint64(servers)).astype(np.int64))
