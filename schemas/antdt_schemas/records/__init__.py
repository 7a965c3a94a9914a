"""The records of the wire contract as typed classes, one field for each field of its `.avsc`.

Owns nothing but shapes; a test holds them equal to the schemas. What a field means is said there, once.
Steps, generations, leases and plans are dense numbers; times of day are broker milliseconds since 1970,
durations are seconds.
"""

from __future__ import annotations

from dataclasses import is_dataclass

from antdt_schemas.records.asking import *  # noqa: F403
from antdt_schemas.records.control import *  # noqa: F403
from antdt_schemas.records.fixed import *  # noqa: F403
from antdt_schemas.records.log import *  # noqa: F403
from antdt_schemas.records.quick import quicken

quicken(kind for kind in list(globals().values()) if isinstance(kind, type) and is_dataclass(kind))
