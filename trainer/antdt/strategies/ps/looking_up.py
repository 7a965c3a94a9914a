"""Rows of tables that a worker has looked up in a contribution, and the gradients that came of them.

Owns what each `antdt.Embedding` of a model has handed out. Must not know where rows come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from antdt.strategies.ps.embedding import Embedding

Gradients = dict[str, tuple[torch.Tensor, torch.Tensor]]


class LookedUp:
    """Of one model. ask: gives rows (n, width) of a table by name, for ascending unique ids (n,)."""

    def __init__(
        self, model: torch.nn.Module, tables: Sequence[Any], ask: Callable[[str, torch.Tensor], torch.Tensor]
    ) -> None:
        modules = dict(model.named_modules())
        self._tables: dict[str, Embedding] = {table.name: modules[table.name] for table in tables}
        self._names = {id(module): name for name, module in self._tables.items()}
        self._ask = ask
        self._used: list[tuple[str, torch.Tensor, torch.Tensor]] = []

    def connect(self) -> None:
        """Tables ask here from now on."""
        for module in self._tables.values():
            if module.is_remote:
                module.connect(self)

    def disconnect(self) -> None:
        """Nobody answers any more."""
        for module in self._tables.values():
            module.connect(None)

    def look_up(self, table: Embedding, ids: torch.Tensor) -> torch.Tensor:
        """See embedding.Rows."""
        name = self._names[id(table)]
        rows = self._ask(name, ids)
        if torch.is_grad_enabled():
            rows.requires_grad_()
            self._used.append((name, ids, rows))
        return rows

    @property
    def touched(self) -> bool:
        """Some row got a gradient."""
        return any(rows.grad is not None for _, _, rows in self._used)

    def gradients(self) -> Gradients:
        """By table: ids, ascending and unique, and the sum of what each got."""
        found: Gradients = {}
        for name in self._tables:
            used = [(ids, rows.grad) for of, ids, rows in self._used if of == name and rows.grad is not None]
            if used:
                ids, inverse = torch.unique(torch.cat([ids for ids, _ in used]), return_inverse=True)
                grads = torch.cat([grad for _, grad in used])
                found[name] = ids, torch.zeros(len(ids), grads.shape[1]).index_add_(0, inverse, grads)
        return found

    def forget(self) -> None:
        """The contribution is over."""
        self._used.clear()
