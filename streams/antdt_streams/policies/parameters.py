"""A policy's parameters: typed, validated by the policy's own class, changed by name as they are typed.

Parameters are a frozen dataclass of bool, int, float and str, each with a default; its `__post_init__` refuses what
makes no sense. A policy without any has nothing to change.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from antdt_schemas.errors import UsageError

from antdt_streams.policies.policy import Policy

WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def of(policy: Policy) -> Any:
    """The parameters of a policy; None: it has none."""
    return getattr(policy, "parameters", None)


def check(policy: Policy) -> None:
    """Raises UsageError for parameters that nobody could change by name."""
    parameters = of(policy)
    if parameters is None:
        return
    if not dataclasses.is_dataclass(parameters) or isinstance(parameters, type):
        raise UsageError(f"The parameters of policy {policy.name} are no dataclass: make them a frozen one.")
    for field in dataclasses.fields(parameters):
        if not isinstance(getattr(parameters, field.name), bool | int | float | str):
            raise UsageError(f"Parameter {field.name} of policy {policy.name}: take a bool, int, float or str.")


def as_dict(policy: Policy) -> dict[str, Any]:
    """Name -> value, in the order of the class; empty for a policy without parameters."""
    parameters = of(policy)
    return {} if parameters is None else {f.name: getattr(parameters, f.name) for f in dataclasses.fields(parameters)}


def stamp(policy: Policy) -> str:
    """All of them as one line of JSON; empty for a policy without parameters."""
    found = as_dict(policy)
    return json.dumps(found, sort_keys=True, separators=(",", ":"), allow_nan=False) if found else ""


def changed(policy: Policy, changes: Mapping[str, str]) -> Policy:
    """The policy with these parameters, each as it is typed; an empty text is the default.

    Raises:
        UsageError: it has no such parameter, or does not take that value.
    """
    if not changes:
        return policy
    parameters = of(policy)
    if parameters is None:
        raise UsageError(f"Policy {policy.name} has no parameters.")
    fields = {field.name: field for field in dataclasses.fields(parameters)}
    values: dict[str, Any] = {}
    for name, text in changes.items():
        if name not in fields:
            raise UsageError(f"Policy {policy.name} has no parameter {name!r}: take one of {', '.join(fields)}.")
        if not text:
            values[name] = _default(policy, fields[name])
        else:
            values[name] = _typed(name, text, type(getattr(parameters, name)))
    try:
        made = dataclasses.replace(parameters, **values)
    except UsageError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(f"Policy {policy.name} refuses {_said(changes)}: {error}") from error
    again: Policy = type(policy)(made)  # type: ignore[call-arg]
    return again


def _default(policy: Policy, field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    raise UsageError(f"Parameter {field.name} of policy {policy.name} has no default: give it a value.")


def _typed(name: str, text: str, kind: type) -> Any:
    try:
        if kind is bool:
            return WORDS[text.lower()]
        value = kind(text)
    except (KeyError, ValueError) as error:
        kinds = {bool: "true or false", int: "a whole number", float: "a number"}
        raise UsageError(f"{name}={text}: take {kinds.get(kind, 'text')}.") from error
    if kind is float and not math.isfinite(value):
        raise UsageError(f"{name}={text}: take a finite number.")
    return value


def _said(changes: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={text}" for name, text in changes.items())
