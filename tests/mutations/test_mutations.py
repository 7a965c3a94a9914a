"""A rule of the protocol that is taken out of our own code is noticed, and what notices it passes while it is there."""

from __future__ import annotations

import pytest

from tests.mutations import dealt, rules, served, steps, topics
from tests.mutations.mutate import Mutation, fails, taken_out
from tests.mutations.worlds import Worlds


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "mutation",
    rules.MUTATIONS + steps.MUTATIONS + topics.MUTATIONS + served.MUTATIONS + dealt.MUTATIONS,
    ids=lambda m: f"{m.rule}-{m.name}".replace(" ", "-"),
)
def test_a_rule_that_is_taken_out_is_noticed(mutation: Mutation) -> None:
    with taken_out(mutation.edits):
        found = fails(mutation.check)
    print(found)
    assert found, f"nothing notices that {mutation.name}"
    if isinstance(mutation.check, Worlds):
        mutation.check.again()
    else:
        mutation.check()
