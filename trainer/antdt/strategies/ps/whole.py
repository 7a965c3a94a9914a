"""A whole model of the parts that servers have saved. Must not know where these lie."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from antdt.strategies.ps.embedding import Embedding
from antdt.strategies.ps.parts import assemble
from antdt.strategies.ps.tables import first_values

log = logging.getLogger("antdt")


def hold(model: torch.nn.Module, tables: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Tables of this model are here from now on, if they are not too large: ids (n,) and rows (n, width) that were ever
    trained, by name.
    """
    for name, module in model.named_modules():
        if not isinstance(module, Embedding) or name not in tables:
            continue
        size_bytes = module.rows * module.width * 4
        if size_bytes > module.whole_bytes_max:
            said = "the table %s takes %d MB, more than whole_bytes_max: it is in the checkpoint only"
            log.warning(said, name, size_bytes >> 20)
            continue
        weight = first_values(module.seed, name, torch.arange(module.rows, device="cpu"), module.width, module.std)
        ids, rows = tables[name]
        module.hold(weight.index_copy_(0, ids, rows).to(module.weight.device))


def state_of(parts: Sequence[bytes], model: torch.nn.Module | None) -> dict[str, Any]:
    """A state dict. model: whose tables it is for, which then take them as they are."""
    dense, tables = assemble(parts)
    if model is None:
        for name, (ids, rows) in tables.items():
            dense[f"{name}.ids"], dense[f"{name}.rows"] = ids, rows
        return dense
    hold(model, tables)
    own = {f"{name}.weight" for name in tables}
    kept = {name: value for name, value in model.state_dict().items() if name in own or name not in dense}
    return {**kept, **dense}
