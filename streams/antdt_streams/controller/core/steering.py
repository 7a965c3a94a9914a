"""What operators and schedulers have told a Controller: its policy's parameters, and whether the cluster is busy.

Owns what of it is in force. A change that the policy refuses changes nothing; the answer says why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from antdt_schemas.errors import UsageError
from antdt_schemas.records import Cluster, Steering

from antdt_streams.policies import parameters
from antdt_streams.policies.policy import Policy


@dataclass(slots=True)
class Told:
    """changes: parameters that differ from the policy's own, as they are typed. busy: why the cluster is, empty where
    it is not; until_ms: for how long, 0 until told otherwise.
    """

    changes: dict[str, str] = field(default_factory=dict)
    busy: str = ""
    until_ms: int = 0

    def take(self, steering: Steering, policy: Policy, now_ms: int) -> tuple[Policy, str]:
        """The policy from now on, and the answer: one sentence."""
        asked = {one.name: one.value for one in steering.parameters}
        if steering.stack:
            return policy, f"{steering.author} asks for the stacks of {steering.stack}"
        if steering.policy and steering.policy != policy.name:
            return policy, f"refused: the policy is {policy.name}, not {steering.policy}"
        try:
            policy = parameters.changed(policy, asked)
        except UsageError as error:
            return policy, f"refused: {error}"
        self.changes = {name: text for name, text in {**self.changes, **asked}.items() if text}
        said = [", ".join(f"{name}={text or 'its default'}" for name, text in asked.items())] if asked else []
        if steering.cluster is not Cluster.UNCHANGED:
            busy = steering.cluster is Cluster.BUSY
            self.busy = f"{steering.author} says so{why_of(steering)}" if busy else ""
            self.until_ms = now_ms + int(1000 * steering.busy_s) if busy and steering.busy_s > 0.0 else 0
            limit = f" for {steering.busy_s:g} s" if self.until_ms else ""
            said.append(f"the cluster is {steering.cluster}{limit}")
        if not said:
            return policy, f"policy {policy.name}, asked by {steering.author}"
        return policy, f"{' and '.join(said)}, says {steering.author}{why_of(steering)}"

    def follow(self, stamp: str, policy: Policy) -> Policy:
        """Parameters as a decision had them, where what was told is gone."""
        found = json.loads(stamp) if stamp else {}
        own = parameters.as_dict(policy)
        self.changes = {name: _typed(value) for name, value in found.items() if name in own and own[name] != value}
        return self.applied(policy)

    def applied(self, policy: Policy) -> Policy:
        """The policy with what is in force of its parameters; what another version of it does not take is dropped."""
        try:
            return parameters.changed(policy, self.changes)
        except UsageError:
            self.changes = {}
            return policy

    def begin(self, asked: Mapping[str, str]) -> None:
        """Another policy decides, with these parameters: what was told of the one before is gone."""
        self.changes = {name: text for name, text in asked.items() if text}

    def is_busy(self, now_ms: int) -> str:
        return "" if self.until_ms and now_ms >= self.until_ms else self.busy

    def to_row(self) -> list[Any]:
        return [self.changes, self.busy, self.until_ms]

    @classmethod
    def from_row(cls, row: Sequence[Any], *, same_policy: bool) -> Told:
        changes: Mapping[str, str] = row[0] if same_policy else {}
        return cls(dict(changes), row[1], row[2])


def why_of(steering: Steering) -> str:
    """The reason as the end of a sentence, where one is given."""
    return f": {steering.reason}" if steering.reason else ""


def _typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
