"""All that one server holds of the model: dense pieces, rows of tables, optimizer state, version, lineage and plan.

Invariant: `version` and `lineage` are those of what the numbers are; only `apply` and `load` change any of them.

Must not know workers, sockets or who is the primary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import torch
from antdt_schemas.errors import Mismatch, NotFinite
from antdt_schemas.lineage import ROOT

from antdt.strategies.once import Once
from antdt.strategies.ps import parts, wire
from antdt.strategies.ps.dense import COMPUTED, Dense
from antdt.strategies.ps.layout import Layout
from antdt.strategies.ps.tables import Rows
from antdt.strategies.together import optimizers_of

STATED_MAX = 2**17  # characters in a message


class Gradient(NamedTuple):
    """One contribution's, as it was pushed: of each block its piece; of each table ids and gradients."""

    weight: float
    scale: float
    epoch: int
    blocks: Sequence[wire.Segment]
    rows: Sequence[tuple[torch.Tensor, torch.Tensor]]


class ServerState:
    """One server's. optimizer: the script's, which is never stepped: its classes and settings are taken. once: whose
    schedulers step once a version.
    """

    def __init__(
        self, layout: Layout, model: torch.nn.Module, optimizer: Any, part: int, servers: int, once: Once | None = None
    ) -> None:
        self.layout, self.part, self.servers = layout, part, servers
        self._model, self._optimizer = model, optimizer
        self.once = once if once is not None else Once()
        self._theirs = optimizers_of(optimizer)
        for one in self._theirs:
            one._opt_called = True  # a scheduler would warn that the script's optimizer never steps
        self._first = copy.deepcopy((self.once.state_dict(), self._groups()))
        self.reset()

    def reset(self) -> None:
        """The state of version 0, of the script's model: nobody trains that one on a server."""
        once, groups = copy.deepcopy(self._first)
        self._load_script(once, groups)
        self.version, self.lineage, self.plan, self.factor = 0, ROOT, 0, 1.0
        self.dense = Dense(self.layout, self._model, self._optimizer, self.part, self.servers)
        self.tables = self._empty_tables()

    def _empty_tables(self) -> list[Rows]:
        out = []
        for table in self.layout.tables:
            theirs = self._theirs[table.optimizer]
            out.append(Rows(table, type(theirs).__name__, theirs.param_groups[table.group], self.part, self.servers))
        return out

    def apply(self, gradients: Sequence[Gradient], version: int, lineage: bytes, plan: int, factor: float) -> None:
        """The next version: one step by the sum of these gradients over the sum of their weights."""
        assert version == self.version + 1, f"version {version} follows {self.version}"
        self.once.begins(max((one.epoch for one in gradients), default=-1))
        total = sum(one.weight for one in gradients)
        if total > 0:
            some = [one for one in gradients if one.weight > 0]
            self.dense.step([(one.scale / total, one.blocks) for one in some], factor)
            for at, table in enumerate(self.tables):
                table.step([(one.scale / total, *one.rows[at]) for one in some], factor)
        self.once.passed(unscaled=False)
        self.version, self.lineage, self.plan, self.factor = version, lineage, plan, factor

    # -- files

    def snapshot(self, buffer: parts.Buffer) -> memoryview:
        """The part of a checkpoint, copied to this buffer.

        Raises NotFinite.
        """
        if not self.dense.is_finite():
            raise NotFinite(
                f"Parameters of server {self.part} are not finite after version {self.version}.",
                "Nothing was saved with them: lower the learning rate, and go on from the newest checkpoint.",
            )
        about = {
            **parts.about_layout(self.layout),
            "part": self.part,
            "servers": self.servers,
            "version": self.version,
            "lineage": self.lineage.hex(),
        }
        script = {
            "once": self.once.state_dict(),
            "groups": self._groups(),
            "others": self.dense.others(),
            "plan": self.plan,
            "factor": self.factor,
        }
        tensors = dict(self.dense.tensors())
        for at, table in enumerate(self.tables):
            tensors[f"ids.{at}"], tensors[f"rows.{at}"] = table.saved
        return buffer.fill(about, script, tensors.items())

    def load(self, data: bytes) -> None:
        """The state of a part. What is there is void until this returns.

        Raises Mismatch if it is the part of another server, or of another script.
        """
        part = parts.read(data)
        for name, ours in (("part", self.part), ("servers", self.servers), ("layout", self.layout.digest)):
            if part.about[name] != ours:
                raise Mismatch(
                    f"The {name} of a checkpoint's part",
                    ours,
                    part.about[name],
                    "A job keeps its number of servers, its model and its optimizer.",
                )
        if why := self.once.misfit(part.script["once"]):
            raise Mismatch("The script of the checkpoint", "the one it was saved by", "another", why)
        self._load_script(part.script["once"], part.script["groups"])
        self.dense.load(part.tensors, part.script["others"])
        self.tables = self._empty_tables()
        for at, table in enumerate(self.tables):
            table.load(part.tensors[f"ids.{at}"], part.tensors[f"rows.{at}"])
        self.version, self.lineage = int(part.about["version"]), bytes.fromhex(part.about["lineage"])
        self.plan, self.factor = int(part.script["plan"]), float(part.script["factor"])

    def stated(self) -> tuple[str, ...]:
        """Settings by which this server steps its part, one a line: equal on all servers."""
        out = []
        for at, (one, groups) in enumerate(zip(self._theirs, self._groups(), strict=True)):
            for number, group in enumerate(groups):
                where = f"{type(one).__name__}{f' {at}' if at else ''}, parameter group {number}"
                out += [f"{where}: {name}={_shown(value)}" for name, value in group.items() if name not in COMPUTED]
        for scheduler in self.once.schedulers:
            kept = {name: value for name, value in scheduler.state_dict().items() if not name.startswith("_")}
            out += [f"{type(scheduler).__name__}: {name}={_shown(value)}" for name, value in kept.items()]
        if sum(map(len, out)) > STATED_MAX:
            out = [f"all of it, of digest {blake2b(''.join(sorted(out)).encode(), digest_size=16).hexdigest()}"]
        return tuple(sorted(out))

    def first_digest(self) -> str:
        """Of all weights that the script has made, of which this server begins with its part; in hexadecimal. Empty
        for a state of a file.
        """
        if self.version:
            return ""
        found, named = blake2b(digest_size=16), dict(self._model.named_parameters())
        for block in self.layout.blocks:
            for name in block.names:
                found.update(wire.bytes_of(named[name].detach().cpu().contiguous().reshape(-1)))
        return found.hexdigest()

    def _groups(self) -> list[list[dict[str, Any]]]:
        """Settings of the script's optimizers, which schedulers change."""
        return [
            [{name: value for name, value in group.items() if name != "params"} for group in one.param_groups]
            for one in self._theirs
        ]

    def _load_script(self, once: dict[str, Any], groups: list[list[dict[str, Any]]]) -> None:
        self.once.load_state_dict(once)
        for one, theirs in zip(self._theirs, groups, strict=True):
            for group, saved in zip(one.param_groups, theirs, strict=True):
                group.update(saved)


def _shown(value: Any) -> str:
    """A setting, if it is one that can be compared."""
    if isinstance(value, torch.Tensor):
        return repr(value.tolist())
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    plain = value is None or isinstance(value, bool | int | float | str)
    return repr(value) if plain else type(value).__name__
