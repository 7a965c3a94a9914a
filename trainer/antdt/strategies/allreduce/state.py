"""A model's whole state: what it consists of, as a file and back, and whether it fits.

Must not know how steps are made, nor how a state travels (`handover`).
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple, Protocol

import torch
from antdt_schemas.batches import Cursor
from antdt_schemas.errors import UsageError

from antdt.strategies.allreduce.composition import Composition
from antdt.strategies.allreduce.rendezvous import Generation
from antdt.strategies.once import Once
from antdt.strategies.together import name_of, optimizers_of

CHUNK_SIZE_BYTES = 64 * 2**20
PLAIN = (int, float, bool, str, bytes, type(None))  # nobody need try whether these can be read again


class Progress(NamedTuple):
    """How far a model is. pending: applied, not yet seen committed. skips: the last so many steps were skipped.

    learning_rate_factor: of the plan that is in force. cursor: the next position, where steps have a fixed size.
    """

    step: int
    lineage: bytes
    plan: int
    pending: tuple[Composition, ...]
    skips: int = 0
    learning_rate_factor: float = 1.0
    cursor: Cursor = Cursor()


class Saved(NamedTuple):
    """A state as it was dumped. random: of each rank, or empty. labels: whatever its keeper wants to find in it.
    optimizer_name: its class; empty where that was not written down yet. once: what happens once a step, as
    `Once.state_dict` gives it; empty where that was not written down yet. frozen: names of parameters that are not
    trained; None where that was not written down yet.
    """

    model: dict[str, Any]
    optimizer: dict[str, Any]
    progress: Progress
    random: tuple[bytes, ...]
    labels: dict[str, str]
    optimizer_name: str = ""
    once: Mapping[str, Any] = MappingProxyType({})
    frozen: frozenset[str] | None = None


class Head(NamedTuple):
    """What a member says of its state before anybody takes over another's. Gathered as int64, HEAD_WIDTH wide.

    state: its fingerprint, or 0. trained: fingerprint of which parameters are trained. talks: whether the script uses
    collectives of its own. undivided: whether it needs steps in one piece.
    """

    step: int
    lineage: bytes
    plan: int
    void: bool
    state: int = 0
    trained: int = 0
    talks: bool = False
    undivided: bool = False

    def pack(self) -> torch.Tensor:
        """(HEAD_WIDTH,) int64."""
        flags = int(self.void), self.state, self.trained, int(self.talks) + 2 * self.undivided
        return torch.tensor([self.step, *struct.unpack(">2q", self.lineage), self.plan, *flags], device="cpu")

    @classmethod
    def unpack(cls, columns: list[int]) -> Head:
        """The inverse of `pack`."""
        step, high, low, plan, void, state, trained, script = columns
        talks, undivided = bool(script & 1), bool(script & 2)
        return cls(step, struct.pack(">2q", high, low), plan, bool(void), state, trained, talks, undivided)


HEAD_WIDTH = 8


class Writer(Protocol):
    """What a state is written to: from the front to the end, in pieces of any size."""

    def write(self, data: Any, /) -> int: ...
    def flush(self) -> None: ...


class Held(NamedTuple):
    """What a state is taken from, and loaded into."""

    model: torch.nn.Module
    optimizer: Any
    once: Once


def whole_of(held: Held, progress: Progress, random: Sequence[bytes], labels: Mapping[str, str]) -> dict[str, Any]:
    """Everything the next step depends on, as `torch.load(weights_only=True)` gives it back. Its tensors are those that
    the model and the optimizer hold: it is to be written or sent before anything changes them.

    Raises UsageError for what could not be read again.
    """
    meta = {
        "step": progress.step,
        "lineage": progress.lineage.hex(),
        "plan": progress.plan,
        "pending": [
            (made.step, list(made.ranges), made.plan, None if made.skipped is None else list(made.skipped))
            for made in progress.pending
        ],
        "skips": progress.skips,
        "learning_rate_factor": progress.learning_rate_factor,
        "cursor": list(progress.cursor),
    }
    whole = {
        "model": held.model.state_dict(),
        "optimizer": _readable(held.optimizer.state_dict()),
        "optimizer_name": name_of(held.optimizer),
        "once": _readable(held.once.state_dict()),
        "frozen": [name for name, param in held.model.named_parameters() if not param.requires_grad],
        "progress": meta,
        "random": [torch.frombuffer(bytearray(one), dtype=torch.uint8) for one in random],
        "labels": dict(labels),
    }
    for part in ("model", "optimizer", "once"):
        _refuse_unreadable(whole[part], part)
    return whole


def _refuse_unreadable(value: Any, name: str) -> None:
    """It would make a file that nobody can load, found when it was needed."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            _refuse_unreadable(key, f"the key {key!r} of {name}")
            _refuse_unreadable(one, f"{name}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, one in enumerate(value):
            _refuse_unreadable(one, f"{name}[{index}]")
    elif type(value) not in PLAIN and not isinstance(value, torch.Tensor) and not _is_readable(value):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise UsageError(
            f"{name} is a {kind}, which makes a checkpoint that torch.load(weights_only=True) refuses: set it as "
            "a number of Python's own (float(…), int(…)) or a tensor, or name its class with "
            "torch.serialization.add_safe_globals."
        )


def _is_readable(value: Any) -> bool:
    out = io.BytesIO()
    torch.save(value, out)
    out.seek(0)
    try:
        torch.load(out, weights_only=True)
    except pickle.UnpicklingError:
        return False
    return True


def _readable(value: Any) -> Any:
    """With plain numbers where a schedule has put numpy's, which cannot be read back without running code."""
    if type(value) is dict:
        return {name: _readable(one) for name, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_readable(one) for one in value)
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0 else value


def read(source: BinaryIO | Path) -> Any:
    """What `torch.save` has written there. Runs no code out of it. Of a path, numbers stay in the file until they are
    looked at: nothing may keep them.
    """
    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=isinstance(source, Path))
    except pickle.UnpicklingError as error:
        raise UsageError(
            "The state of model or optimizer holds objects that torch.load(weights_only=True) refuses: name their "
            f"classes with torch.serialization.add_safe_globals. {error}"
        ) from error


def parse(data: bytes | BinaryIO) -> Saved:
    """Reads all of it before anything is overwritten: each number is in memory once, where that is a file."""
    return saved_of(read(io.BytesIO(data) if isinstance(data, bytes) else data))


def saved_of(found: Mapping[str, Any]) -> Saved:
    """The inverse of `whole_of`."""
    meta = found["progress"]
    pending = tuple(_composition(*made) for made in meta["pending"])
    lineage, newer = bytes.fromhex(meta["lineage"]), (meta.get("skips", 0), meta.get("learning_rate_factor", 1.0))
    progress = Progress(meta["step"], lineage, meta["plan"], pending, *newer, Cursor(*meta.get("cursor", ())))
    random = tuple(bytes(one.numpy()) for one in found["random"])
    name, frozen = found.get("optimizer_name", ""), found.get("frozen")
    frozen = None if frozen is None else frozenset(frozen)
    return Saved(
        found["model"], found["optimizer"], progress, random, found["labels"], name, found.get("once", {}), frozen
    )


def misfit(saved: Saved, held: Held) -> str:
    """Why this state cannot be loaded into them, in a sentence; empty where it can."""
    return (
        _other_model(saved.model, held.model.state_dict())
        or _other_optimizer(saved, held.optimizer)
        or held.once.misfit(saved.once)
    )


def _other_model(saved: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    missing, unknown = [n for n in here if n not in saved], [n for n in saved if n not in here]
    if missing or unknown:
        said = [f"has {_listed(unknown)}, which this one has not"] if unknown else []
        said += [f"has no {_listed(missing)}"] if missing else []
        return f"The model in it is another one: it {', and '.join(said)}."
    for name, value in saved.items():
        both = value, here[name]
        if all(isinstance(one, torch.Tensor) for one in both):
            theirs, ours = (f"{tuple(one.shape)} of {str(one.dtype).removeprefix('torch.')}" for one in both)
            if theirs != ours:
                return f"The model in it is another one: its {name} is {theirs}, this one's {ours}."
    return ""


def _other_optimizer(saved: Saved, optimizer: Any) -> str:
    name = name_of(optimizer)
    if saved.optimizer_name not in ("", name):
        return f"The optimizer in it is {saved.optimizer_name}, this one is {name}."
    theirs = saved.optimizer.get("optimizers", [saved.optimizer])
    pairs = zip(theirs, optimizers_of(optimizer), strict=True)
    return next(filter(None, (_other_groups(their, one) for their, one in pairs)), "")


def _other_groups(saved: Mapping[str, Any], optimizer: Any) -> str:
    theirs, ours = saved.get("param_groups"), getattr(optimizer, "param_groups", None)
    if not isinstance(theirs, list) or not isinstance(ours, list):
        return ""
    sizes = [[len(group["params"]) for group in groups] for groups in (theirs, ours)]
    if sizes[0] != sizes[1]:
        return f"The optimizer in it has groups of {sizes[0]} parameters, this one of {sizes[1]}."
    for number, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        # A scheduler adds keys of its own; what an optimizer needs and does not find is of another kind.
        lacking = [key for key in getattr(optimizer, "defaults", ()) if key in our and key not in their]
        if lacking:
            name = type(optimizer).__qualname__
            return f"The optimizer in it is of another kind than {name}: its group {number} has no {_listed(lacking)}."
    return ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _composition(step: int, ranges: list[int], plan: int, skipped: list[str] | None = None) -> Composition:
    """Files of before skipped steps have no fourth."""
    return Composition(step, tuple(ranges), plan, None if skipped is None else tuple(skipped))


def load(saved: Saved, held: Held) -> None:
    """Overwrites all of it: its state is void from the first byte to the last."""
    held.model.load_state_dict(saved.model)
    held.optimizer.load_state_dict(saved.optimizer)
    held.once.load_state_dict(saved.once)
    if saved.frozen is not None:
        for name, param in held.model.named_parameters():
            param.requires_grad_(name not in saved.frozen)


def gather_heads(generation: Generation, head: Head) -> list[Head]:
    """Everybody's, in rank order."""
    if generation.world == 1:
        return [head]
    rows = torch.empty(generation.world, HEAD_WIDTH, dtype=torch.int64, device="cpu")
    generation.wait(generation.gather(rows, head.pack()))
    return [Head.unpack(row) for row in rows.tolist()]


def gather_bytes(generation: Generation, mine: bytes) -> list[bytes]:
    """Everybody's, in rank order; they may differ in size."""
    if generation.world == 1:
        return [mine]
    sizes = torch.empty(generation.world, 1, dtype=torch.int64, device="cpu")
    generation.wait(generation.gather(sizes, torch.tensor([len(mine)], device="cpu")))
    rows = torch.zeros(generation.world, int(sizes.max()), dtype=torch.uint8, device="cpu")
    row = torch.zeros(rows.shape[1], dtype=torch.uint8, device="cpu")
    if mine:
        row[: len(mine)] = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
    generation.wait(generation.gather(rows, row))
    generation.settled()
    return [bytes(one[:size].numpy()) for one, size in zip(rows, sizes.flatten().tolist(), strict=True)]


def broadcast(generation: Generation, source_rank: int, data: bytes | None) -> bytes:
    """The source's bytes, whole, on every member; the others pass None. In pieces, to bound one operation."""
    assert (data is not None) == (generation.rank == source_rank)
    size = torch.tensor([len(data or b"")], device="cpu")
    generation.wait(generation.broadcast(size, source_rank))
    flat = torch.empty(int(size), dtype=torch.uint8, device="cpu")
    if data is not None:
        flat.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    for piece in flat.split(CHUNK_SIZE_BYTES):
        generation.wait(generation.broadcast(piece, source_rank))
    return bytes(flat.numpy())
