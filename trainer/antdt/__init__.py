"""antdt: distributed training that stays fast when workers are slow, and can prove what it trained on.

Owns the public names of the trainer: all that a training script needs is in this module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from antdt_schemas.errors import (
        AntdtError,
        ExitCode,
        ForeignState,
        JobTaken,
        LogTampered,
        LogTruncated,
        Mismatch,
        NotFinite,
        Occupied,
        Refused,
        Superseded,
        Unavailable,
        Undecodable,
        UnknownJob,
        UnknownSchema,
        UsageError,
    )

    from antdt.adapters import accelerate, hf, lightning, torchtitan
    from antdt.adapters.loader import Loader
    from antdt.agent import Agent
    from antdt.connect.settings import Settings
    from antdt.connect.topics import RecordsLost
    from antdt.data.loading import LoadingOptions, SampleFailed
    from antdt.data.records import Record
    from antdt.data.topics import Topic
    from antdt.job import AgentOptions
    from antdt.strategies.allreduce import AllReduce, GenerationOptions, ReplicasDiffer
    from antdt.strategies.local import LocalSGD
    from antdt.strategies.ps import ParameterServer
    from antdt.strategies.ps.embedding import Embedding
    from antdt.strategies.together import Group
    from antdt.watching import watch
    from antdt.weights import load_model
    from antdt.worker.session import SessionOptions

# Where each name lives. torch is imported with the Agent, its options and what they are made of only: the launcher
# beside the workers does without it, and so does whoever only looks at errors.
_WHERE = {
    "Agent": "antdt.agent",
    "AgentOptions": "antdt.job",
    "AllReduce": "antdt.strategies.allreduce",
    "Embedding": "antdt.strategies.ps.embedding",
    "GenerationOptions": "antdt.strategies.allreduce",
    "Group": "antdt.strategies.together",
    "Loader": "antdt.adapters.loader",
    "LoadingOptions": "antdt.data.loading",
    "LocalSGD": "antdt.strategies.local",
    "ParameterServer": "antdt.strategies.ps",
    "Record": "antdt.data.records",
    "RecordsLost": "antdt.connect.topics",
    "ReplicasDiffer": "antdt.strategies.allreduce",
    "SampleFailed": "antdt.data.loading",
    "SessionOptions": "antdt.worker.session",
    "Settings": "antdt.connect.settings",
    "Topic": "antdt.data.topics",
    "load_model": "antdt.weights",
    "watch": "antdt.watching",
}
# Modules of frameworks, imported when they are named.
_ADAPTERS = ("accelerate", "hf", "lightning", "torchtitan")

__all__ = [
    "Agent",
    "AgentOptions",
    "AllReduce",
    "AntdtError",
    "Embedding",
    "ExitCode",
    "ForeignState",
    "GenerationOptions",
    "Group",
    "JobTaken",
    "Loader",
    "LoadingOptions",
    "LocalSGD",
    "LogTampered",
    "LogTruncated",
    "Mismatch",
    "NotFinite",
    "Occupied",
    "ParameterServer",
    "Record",
    "RecordsLost",
    "Refused",
    "ReplicasDiffer",
    "SampleFailed",
    "SessionOptions",
    "Settings",
    "Superseded",
    "Topic",
    "Unavailable",
    "Undecodable",
    "UnknownJob",
    "UnknownSchema",
    "UsageError",
    "accelerate",
    "hf",
    "lightning",
    "load_model",
    "torchtitan",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name in _ADAPTERS:
        return import_module(f"antdt.adapters.{name}")
    if name in __all__:
        return getattr(import_module(_WHERE.get(name, "antdt_schemas.errors")), name)
    raise AttributeError(f"module 'antdt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
