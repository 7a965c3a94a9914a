"""Which policy decides: the one that the Controller was started with, or one that was promoted since.

Owns what a promotion is refused for, and what of it holds after a restart: what was promoted decides until another one
is, or until the Controller is started with another policy than it was then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from antdt_schemas.errors import UsageError
from antdt_schemas.records import Steering
from antdt_schemas.strategies import kind_of

from antdt_streams.policies import parameters
from antdt_streams.policies.policy import Policy

Find = Callable[[str], Policy]
"""The policy of a name; raises UsageError where it cannot be had. Loading code is not the core's."""


def finds_none(name: str) -> Policy:
    """Of a Controller that was given nothing to find policies by."""
    raise UsageError(f"No policy {name!r} can be loaded here.")


def misfit(policy: Policy, strategy: str) -> str:
    """What keeps a policy from working under a strategy, which is empty while not known; empty: nothing."""
    under: tuple[str, ...] = tuple(getattr(policy, "strategies", ()))
    if not under or not strategy or any(name.startswith(under) for name in (strategy, kind_of(strategy))):
        return ""
    return f"policy {policy.name} works under {' or '.join(under)} only"


@dataclass(slots=True)
class Deciding:
    """own: the policy that the Controller was started with. base: the one that decides, as nobody has changed it.
    promoted: how that was named; empty: it is the own one.
    """

    own: Policy
    find: Find = finds_none
    promoted: str = ""
    base: Policy = field(init=False)

    def __post_init__(self) -> None:
        self.base = self.own

    def promote(self, steering: Steering, now: Policy, strategy: str) -> Policy:
        """Another policy from now on, with these parameters. now: the one that decides.

        Raises:
            UsageError: it cannot be loaded, does not take the parameters, or cannot work here. Nothing has changed.
        """
        if steering.policy and steering.policy != now.name:
            raise UsageError(f"the policy is {now.name}, not {steering.policy}")
        found = self.find(steering.promote)
        if (found.name, found.version) == (now.name, now.version):
            raise UsageError(f"{now.name} decides already: `antdt policy set` changes its parameters")
        if why := misfit(found, strategy):
            raise UsageError(f"{why}, and this job's strategy is {strategy}")
        policy = parameters.changed(found, {one.name: one.value for one in steering.parameters})
        self.base, self.promoted = found, steering.promote
        return policy

    def demote(self) -> None:
        self.base, self.promoted = self.own, ""

    def resume(self, promoted: str, own: str) -> None:
        """Go on as stored rows have it. own: the policy that the Controller was started with then.

        Raises:
            UsageError: what was promoted cannot be loaded any more.
        """
        if not promoted or own != self.own.name:
            return
        try:
            self.base, self.promoted = self.find(promoted), promoted
        except UsageError as error:
            raise UsageError(
                f"The policy {promoted}, which was promoted, cannot be loaded any more: {error} Put it back, or name "
                f"another one than {own} by `antdt up --policy`."
            ) from error
