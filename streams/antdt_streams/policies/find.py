"""Finds a policy by name: a ready one, an installed one, or a class in a file of the user's.

Imports code, so it is not part of the pure core; what it returns must be pure.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from antdt_schemas.errors import UsageError

from antdt_streams.policies import parameters
from antdt_streams.policies.adjust_batch_size import AdjustBatchSize
from antdt_streams.policies.baselines import (
    AntColony,
    Asynchronous,
    AsynchronousEven,
    Backup,
    BackupDrop,
    Even,
    LoadBalancedBsp,
    NoMitigation,
)
from antdt_streams.policies.dd import Dedicated
from antdt_streams.policies.nd import NonDedicated
from antdt_streams.policies.policy import Policy

GROUP = "antdt.policies"
DEFAULT = NonDedicated.name
OURS: tuple[Any, ...] = (
    *(NonDedicated, Dedicated, AdjustBatchSize, NoMitigation),
    *(Even, LoadBalancedBsp, Backup, BackupDrop, Asynchronous, AsynchronousEven, AntColony),
)
READY: dict[str, Any] = {policy.name: policy for policy in OURS}
FORMER = {"antdt-nd": NonDedicated.name, "antdt-dd": Dedicated.name}


def find(name: str) -> Policy:
    """The policy of this name: a ready one, one of the entry-point group `antdt.policies`, or `FILE.py:CLASS`.

    Raises:
        UsageError: there is none, or it is no policy; the message says what there is.
    """
    file, colon, class_name = name.rpartition(":")
    if colon:
        return _checked(name, _from_file(Path(file), class_name))
    name = FORMER.get(name, name)
    if name in READY:
        return _checked(name, READY[name])
    from importlib.metadata import entry_points

    installed = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name in installed:
        return _checked(name, installed[name].load())
    there = ", ".join(sorted({*READY, *installed}))
    raise UsageError(f"No policy {name!r}: take one of {there}, or FILE.py:CLASS.")


def _from_file(path: Path, class_name: str) -> Any:
    if not path.is_file():
        raise UsageError(f"No policy in {path}: there is no such file.")
    spec = importlib.util.spec_from_file_location(f"antdt_policy_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"No policy in {path}: a policy's file ends in .py.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file does
        raise UsageError(f"No policy in {path}: it cannot be loaded: {type(error).__name__}: {error}.") from error
    if not hasattr(module, class_name):
        raise UsageError(f"No policy {class_name!r} in {path}.")
    return getattr(module, class_name)


def _checked(name: str, found: Any) -> Policy:
    try:
        policy = found() if isinstance(found, type) else found
    except Exception as error:
        raise UsageError(f"{name} cannot be made without arguments: {type(error).__name__}: {error}.") from error
    if not isinstance(policy, Policy):
        raise UsageError(f"{name} is no policy: it needs name, version and decide(view, memory).")
    parameters.check(policy)
    return policy
