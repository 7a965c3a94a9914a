"""What workers are told that take shards over from each other: the parameters of the policy `ant-colony`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields

from antdt_schemas.errors import Undecodable, UsageError

POLICY = "ant-colony"


@dataclass(frozen=True, slots=True)
class ColonyParameters:
    """evaporation: share of each trail that is gone when the loads of all are heard of again. reinforcement: what the
    trail to the most loaded worker gains then, and those to others in proportion to how long each still needs.
    shards_min: fewer are not worth a move.
    """

    evaporation: float = 0.2
    reinforcement: float = 1.0
    shards_min: int = 1

    def __post_init__(self) -> None:
        if not 0.0 < self.evaporation <= 1.0:
            raise UsageError("evaporation must lie above 0, and be at most 1.")
        if not 0.0 <= self.reinforcement < math.inf or self.shards_min < 1:
            raise UsageError("reinforcement must be a finite number of at least 0, shards_min at least 1.")


def parameters_of(stamp: str) -> ColonyParameters:
    """Those that a decision carries. Raises Undecodable: it carries none that make sense."""
    try:
        said = json.loads(stamp)
        return ColonyParameters(**{field.name: said[field.name] for field in fields(ColonyParameters)})
    except (ValueError, KeyError, TypeError) as error:
        raise Undecodable(f"The parameters of {POLICY} cannot be {stamp!r}: {error}") from error
