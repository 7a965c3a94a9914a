"""Rows of tables that a worker has looked up in a contribution, the gradients that came of them, and rows that are here
before they are looked up.

Rules
    Rows that are held are those of the version that the dense parameters are of: with another version they go.
    What is not held is asked for. So what is guessed of the next batch decides who waits, and never what is computed.

Owns what each `antdt.Embedding` of a model has handed out. Must not know where rows come from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from antdt.strategies.ps.embedding import Embedding
from antdt.strategies.ps.fields import Field, field_of, ids_in, leaves_of

log = logging.getLogger("antdt")

Gradients = dict[str, tuple[torch.Tensor, torch.Tensor]]
Following = Callable[[], Iterable[Any]]
TRIES_MAX = 10  # contributions in which the numbers of a table were found nowhere: it computes them


class LookedUp:
    """Of one model. ask: gives rows (n, width) of a table by name, for ascending unique ids (n,). `held`, `asked`: how
    many rows were here when they were looked up, and how many had to be asked for.
    """

    def __init__(
        self, model: torch.nn.Module, tables: Sequence[Any], ask: Callable[[str, torch.Tensor], torch.Tensor]
    ) -> None:
        modules = dict(model.named_modules())
        self._tables: dict[str, Embedding] = {table.name: modules[table.name] for table in tables}
        self._names = {id(module): name for name, module in self._tables.items()}
        self._ask = ask
        self._used: list[tuple[str, torch.Tensor, torch.Tensor]] = []
        self.held = self.asked = 0
        self._here: Mapping[str, torch.Tensor] = {}
        self._rows: Mapping[str, torch.Tensor] = {}
        self._leaves: list[torch.Tensor] = []
        self._following: Following = list
        self._trained: list[tuple[str, list[torch.Tensor], torch.Tensor]] = []
        self._unsure: set[str] = set()
        self._fields: dict[str, tuple[Field, ...]] = {}
        self._tries = dict.fromkeys(self._tables, 0)

    def connect(self) -> None:
        """Tables ask here from now on."""
        for module in self._tables.values():
            if module.is_remote:
                module.connect(self)

    def disconnect(self) -> None:
        """Nobody answers any more."""
        for module in self._tables.values():
            module.connect(None)
        if self.held or self.asked:
            said = "of the rows that were looked up, %d had come with the answer to a push, %d were asked for"
            log.info(said, self.held, self.asked)

    def look_up(self, table: Embedding, unique: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """See embedding.Rows."""
        name = self._names[id(table)]
        rows, missing = self._found(name, unique)
        self.held, self.asked = self.held + len(unique) - missing, self.asked + missing
        if torch.is_grad_enabled():
            rows.requires_grad_()
            self._used.append((name, unique, rows))
            self._trained.append((name, self._leaves, ids))
            if missing and (name in self._here or name not in self._fields):
                self._unsure.add(name)
        return rows

    def _found(self, name: str, ids: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Rows in a tensor of their own, and how many of them were asked for."""
        here = self._here.get(name)
        if here is None or not len(ids):
            return self._ask(name, ids), len(ids)
        rows = self._rows[name]
        if torch.equal(here, ids):
            return rows.detach(), 0
        places = torch.searchsorted(here, ids).clamp_(max=len(here) - 1)
        missing = torch.nonzero(here[places] != ids).reshape(-1)
        out = rows.index_select(0, places)
        if len(missing):
            out.index_copy_(0, missing, self._ask(name, ids.index_select(0, missing)))
        return out, len(missing)

    # -- rows that are here before

    def hold(self, ids: Mapping[str, torch.Tensor], rows: Mapping[str, torch.Tensor]) -> None:
        """The model is of another version, of which these rows are; those of the last one are void. ids: ascending."""
        self._here, self._rows = {name: ids[name] for name in rows}, rows

    def see(self, batch: Any, following: Following) -> None:
        """What the script is given now; and what gives the batches that come next, as far as they are known."""
        if self._tables:
            self._leaves, self._following = leaves_of(batch), following

    def upcoming(self) -> dict[str, torch.Tensor]:
        """By table: ids, ascending and unique, that the next contribution will probably look up."""
        self._learn()
        found: dict[str, list[torch.Tensor]] = {name: [] for name in self._fields}
        for batch in self._following() if found else ():
            leaves = leaves_of(batch)
            for name, fields in self._fields.items():
                found[name] += [ids_in(leaves, field) for field in fields]
        joined = {name: torch.unique(torch.cat(parts)) for name, parts in found.items() if parts}
        rows = {name: self._tables[name].rows for name in joined}
        valid = {name: ids[(ids >= 0) & (ids < rows[name])] for name, ids in joined.items()}
        return {name: ids for name, ids in valid.items() if len(ids)}

    def _learn(self) -> None:
        """Which fields of a batch the tables were looked up with in this contribution, where that is not known, or was
        not the whole.
        """
        for name in self._unsure:
            if self._tries[name] >= TRIES_MAX:
                continue
            found = {field_of(leaves, ids) for of, leaves, ids in self._trained if of == name} - {None}
            self._tries[name] = 0 if found else self._tries[name] + 1
            self._fields.pop(name, None)
            if found:
                self._fields[name] = tuple(field for field in found if field is not None)
            elif self._tries[name] == TRIES_MAX:
                said = "rows of %s are asked for when they are looked up: its numbers are not those of the batches"
                log.info(said, name)
        self._unsure.clear()

    # -- gradients

    @property
    def touched(self) -> bool:
        """Some row got a gradient."""
        return any(rows.grad is not None for _, _, rows in self._used)

    def gradients(self) -> Gradients:
        """By table: ids, ascending and unique, and the sum of what each got."""
        found: Gradients = {}
        for name in self._tables:
            used = [(ids, rows.grad) for of, ids, rows in self._used if of == name and rows.grad is not None]
            if len(used) == 1:
                found[name] = used[0]
            elif used:
                ids, inverse = torch.unique(torch.cat([ids for ids, _ in used]), return_inverse=True)
                grads = torch.cat([grad for _, grad in used])
                found[name] = ids, torch.zeros(len(ids), grads.shape[1], device="cpu").index_add_(0, inverse, grads)
        return found

    def forget(self) -> None:
        """The contribution is over."""
        self._used.clear()
        self._trained.clear()
        self._unsure.clear()
