"""The rules of steps of a fixed size, each with a piece of our code that keeps it, and what notices its absence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from antdt.strategies.allreduce.composition import Round
from antdt.strategies.allreduce.holding import Holding
from antdt.strategies.allreduce.strategy import AllReduceReplica
from antdt.worker.life import Life
from antdt.worker.plans import Plans
from antdt.worker.taking import Leased, Stepped, _Granted
from antdt_schemas.batches import EVEN, Layout, Layouts
from antdt_schemas.order import Order
from antdt_streams.controller.core.state import _names_nobody
from antdt_streams.ledger.core import changing, committing, decide, evidence, groups, later
from antdt_streams.ledger.core.batches import Batches
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.core.holes import Holes
from antdt_streams.ledger.core.line import Line
from antdt_streams.ledger.core.state import State
from antdt_streams.ledger.core.versions import Surviving
from antdt_streams.proof.coverage import Coverage

from tests.mutations.mutate import Edit, Mutation
from tests.mutations.worlds import worlds
from tests.unit import (
    test_batches,
    test_effects,
    test_ledger_changes,
    test_ledger_later,
    test_ledger_steps,
    test_ledger_together,
    test_life,
    test_sparing,
    test_taking,
)


def in_folder(check: Callable[..., object], *arguments: object) -> None:
    """With a folder as its last argument."""
    with TemporaryDirectory() as folder:
        check(*arguments, Path(folder))


def in_a_folder(check: Callable[[Path], object]) -> Callable[[], None]:
    """The check, with a folder when it runs."""
    return lambda: in_folder(check)


NARROWING = test_ledger_steps.test_suspicion_narrows_down_to_the_sample_and_it_alone_is_left_out

MUTATIONS = (
    Mutation(
        "steps",
        "a size that depends on where the epoch began",
        (Edit(Layout.size, "-(-left // -(-left // self.batch_size))", "min(self.batch_size, left)"),),
        test_batches.test_even_is_memoryless_and_equals_the_closed_form,
    ),
    Mutation(
        "steps",
        "a step may be any other one",
        (Edit(Batches.follows, "if due == tuple(place) else", "if True else"),),
        lambda: test_ledger_steps.test_any_other_step_is_refused((0, 8, 8)),
    ),
    Mutation(
        "steps",
        "a step of no generation",
        (Edit(Batches.follows, "if not self.generation_of_steps <= executed <= generation:", "if False:"),),
        test_ledger_steps.test_a_step_names_the_generation_that_executed_it,
    ),
    Mutation(
        "steps",
        "steps of one commit are all held against the first place",
        (Edit(committing._placed, "        trial.pass_over(found)\n", ""),),
        worlds(60, steps=True),
    ),
    Mutation(
        "steps",
        "what is left out counts for steps that were executed before",
        (Edit(Holes._since, " if e.generation <= executed", ""),),
        test_ledger_steps.test_a_step_that_was_executed_before_an_exclusion_has_its_sample,
    ),
    Mutation(
        "steps",
        "a readmitted sample is left out where it is appended as well",
        (Edit(Holes.append, "len(self.exclusions)", "0"),),
        test_ledger_steps.test_suspicion_narrows_down_to_the_sample_and_it_alone_is_left_out,
    ),
    Mutation(
        "steps",
        "what no committed step has left out is readmitted",
        (Edit(Batches.readmittable, "min(end, self.epochs[number].cursor)", "end"),),
        test_ledger_steps.test_what_is_left_out_before_its_step_waits_for_the_step_to_be_readmitted,
    ),
    Mutation(
        "steps",
        "members of an open generation are not told of the tail",
        (Edit(decide._readmit, "if found and state.members.open:", "if False:"),),
        test_ledger_steps.test_what_is_left_out_before_its_step_waits_for_the_step_to_be_readmitted,
    ),
    Mutation(
        "steps",
        "a sample of a step that the others have is blamed",
        (Edit(Batches._at_hand, "if clue.step > source_step:", "if True:"),),
        test_ledger_steps.test_what_the_survivors_have_in_their_model_is_above_suspicion,
    ),
    Mutation(
        "steps",
        "several samples together are proven guilty",
        (Edit(Batches._counted, "suspicion.is_proven and batches.total(pieces) == 1", "True"),),
        NARROWING,
    ),
    Mutation(
        "steps",
        "a failure never narrows what is suspected",
        (Edit(Batches.judged, "batches.within(smallest.pieces, pieces)", "smallest.pieces"),),
        NARROWING,
    ),
    Mutation(
        "steps",
        "there is one poison at most",
        (
            Edit(
                Batches.judged,
                "if not met:",
                "if not met and found:\n                pass\n            elif not met:",
            ),
        ),
        test_ledger_steps.test_two_poisons_of_one_step_are_told_apart,
    ),
    Mutation(
        "steps",
        "what ends all members counts against what they had",
        (Edit(Surviving._somebody_survives, "len(group) == 1 or", "True or"),),
        test_ledger_steps.test_nobody_is_guilty_where_all_die_or_nothing_was_at_hand,
    ),
    Mutation(
        "steps",
        "who dies beside others is no evidence, though somebody survives",
        (Edit(Surviving.death_speaks, "isinstance(self.shards, Batches) or", ""),),
        test_ledger_steps.test_who_dies_beside_others_speaks_against_its_samples_while_somebody_survives,
    ),
    Mutation(
        "steps",
        "what ends all members narrows nothing down",
        (Edit(Batches.doubt, "replace(c, counts=False) if c.deadly else c for c in", "c for c in () and"),),
        test_ledger_steps.test_two_samples_that_end_both_members_are_told_apart,
    ),
    Mutation(
        "steps",
        "in a log of before, who dies with others is evidence",
        (Edit(Batches.pardon, "if not (c.deadly and c.incarnation in dead)", ""),),
        test_ledger_steps.test_in_a_log_of_before_who_dies_with_others_is_pardoned,
    ),
    Mutation(
        "steps",
        "what was readmitted and lies behind a stop is missing",
        (Edit(Coverage._rest_of_tail, "self.stop is None or", "True or"),),
        lambda: in_folder(test_ledger_changes.test_what_was_readmitted_and_lies_behind_a_stop_is_not_trained, 0),
    ),
    Mutation(
        "steps",
        "a stop behind a step that is no more is waited for",
        (
            Edit(
                State.finished.fget,
                "if self.stop is not None and self.line.committed >= self.stop.step:\n            return True",
                "if self.stop is not None:\n            return self.line.committed >= self.stop.step",
            ),
        ),
        lambda: in_folder(test_ledger_changes.test_a_job_that_has_no_such_step_any_more_ends_behind_its_epochs),
    ),
    Mutation(
        "steps",
        "a plan that comes when all is done is refused",
        (Edit(decide._is_over, "and not body.plan)", ")"),),
        test_ledger_changes.test_a_plan_that_comes_when_all_is_done_harms_nobody,
    ),
    Mutation(
        "steps",
        "what failed in a step that is committed is evidence",
        (Edit(evidence._suspect, "blamed.step > turn.state.line.committed and", ""),),
        test_ledger_steps.test_what_is_committed_is_above_suspicion,
    ),
    Mutation(
        "steps",
        "what is proven is not left out",
        (Edit(groups.excluded, "if not isinstance(s.shards, Batches):", "if True:"),),
        NARROWING,
    ),
    Mutation(
        "steps",
        "an entry's last step needs no lineage",
        (Edit(Fold._apply, "assert last is None or last.lineage,", "assert True,"),),
        lambda: in_folder(test_ledger_together.test_what_it_has_must_be_right_and_the_last_has_one, 3, b""),
    ),
    Mutation(
        "steps",
        "a lineage that the log has is not compared",
        (
            Edit(Line.commit, 'assert e.lineage in (self.lineage, b""), (e, self.lineage)', "pass"),
            Edit(Coverage._advance, 'event.lineage not in (self.lineage, b"")', "False"),
        ),
        lambda: in_folder(test_ledger_together.test_what_it_has_must_be_right_and_the_last_has_one, 1, bytes(16)),
    ),
    Mutation(
        "steps",
        "logs of before may leave a lineage out",
        (Edit(State._committed, "assert e.lineage or not self.tells_each, e", "pass"),),
        lambda: in_folder(test_ledger_together.test_a_log_of_older_rules_has_that_of_each, False),
    ),
    Mutation(
        "steps",
        "what is readmitted counts for steps that were executed before",
        (Edit(Holes.tail_of, " if found.since <= executed", ""),),
        lambda: in_folder(
            test_ledger_changes.test_a_step_behind_the_last_epoch_is_as_long_as_the_tail_was_when_it_was_executed, False
        ),
    ),
    Mutation(
        "steps",
        "what is proven in one epoch is tried anew in the next",
        (Edit(later._left_out, "if ahead.epoch > root.epoch and", "if False and"),),
        in_a_folder(test_ledger_later.test_what_is_proven_in_one_epoch_is_left_out_of_all_later_ones),
    ),
    Mutation(
        "steps",
        "what a sampler draws is left out where another epoch has another sample",
        (Edit(later.changes, "or not order.is_known", ""), Edit(Order.sample, "self.name == SEQUENTIAL", "True")),
        test_ledger_later.test_positions_of_an_order_that_a_sampler_draws_say_nothing_of_other_epochs,
    ),
    Mutation(
        "steps",
        "what was readmitted is left out of later epochs",
        (Edit(later._out, "if number >= readmitted.get(sample, 0):", "if True:"),),
        in_a_folder(test_ledger_later.test_readmitted_it_is_trained_in_its_place_where_that_is_ahead),
    ),
    Mutation(
        "steps",
        "what a model has left out is lifted",
        (Edit(later._lifted, "(piece.epoch, piece.start) >= reach and", "piece.epoch and"),),
        in_a_folder(test_ledger_later.test_what_the_model_of_the_source_may_have_left_out_is_not_lifted),
    ),
    Mutation(
        "steps",
        "what is appended is lifted as well",
        (
            Edit(later._lifted, "and not batches.within((piece,), tail)", ""),
            Edit(Batches.lift, "not batches.within(self.holes.tail, (piece,))", "True"),
        ),
        in_a_folder(test_ledger_later.test_a_roll_back_behind_a_readmission_takes_nothing_twice),
    ),
    Mutation(
        "steps",
        "what is lifted shifts what the tail leaves out",
        (Edit(Holes.lift, "a.exclusions - sum(n < a.exclusions for n in before)", "a.exclusions"),),
        in_a_folder(test_ledger_later.test_who_fails_again_after_it_was_readmitted_is_out_again),
    ),
    Mutation(
        "steps",
        "whatever was readmitted of a sample fails again",
        (Edit(later._left_out_of_tail, "if sample in failed and", "if False and"),),
        in_a_folder(
            test_ledger_later.test_who_fails_again_behind_the_last_epoch_is_left_out_of_all_that_was_readmitted
        ),
    ),
    Mutation(
        "steps",
        "epochs that nobody comes to leave something out",
        (Edit(later._left_out, "if batches.within((at,), (ahead,)):", "if True:"),),
        in_a_folder(test_ledger_later.test_what_an_epoch_drops_is_not_left_out_of_it),
    ),
    Mutation(
        "steps",
        "what is left out is suspected for ever",
        (Edit(Batches.judge, "if e.generation == generation", "if False"),),
        NARROWING,
    ),
    Mutation(
        "steps",
        "who was readmitted once is never suspected again",
        (Edit(Batches.judge, " if e.generation == generation", ""),),
        test_ledger_steps.test_a_sample_fails_in_the_tail_as_anywhere,
    ),
    Mutation(
        "steps",
        "a roll-back leaves what the tail has committed",
        (Edit(Batches.undo_all_but, "if former.epoch == self.spec.epochs:", "if False:"),),
        test_ledger_steps.test_a_roll_back_into_an_epoch_undoes_the_tail_as_well,
    ),
    Mutation(
        "steps",
        "suspects are not computed apart",
        (Edit(Stepped._units, "if not suspects:", "if True:"),),
        test_taking.test_suspects_are_computed_apart_and_by_another_member_each_time,
    ),
    Mutation(
        "steps",
        "suspects stay with one machine",
        (Edit(Stepped._shift, "if watched else 0", "if False else 0"),),
        test_taking.test_suspects_are_computed_apart_and_by_another_member_each_time,
    ),
    Mutation(
        "steps",
        "a step without one of its parts is applied",
        (Edit(AllReduceReplica.step, "and round_.total != place.total", "and False"),),
        test_taking.test_a_step_without_one_of_its_parts_is_none_and_comes_again,
    ),
    Mutation(
        "steps",
        "an empty step has no number",
        (Edit(AllReduceReplica._is_made_of_nothing, "self._place.total == 0", "False"),),
        test_taking.test_a_step_with_nothing_left_in_it_has_its_number,
    ),
    Mutation(
        "steps",
        "the place stays behind when a model is adopted",
        (Edit(Holding.restore, ", progress.cursor\n", ", self.cursor\n"),),
        test_taking.test_the_place_travels_with_the_model,
    ),
    Mutation(
        "steps",
        "members may cut a step each in its own way",
        (Edit(Round.of, "if mine[:width] != first[:width]:", "if mine[:4] != first[:4]:"),),
        test_taking.test_members_that_cut_a_step_otherwise_are_not_of_one_mind,
    ),
    Mutation(
        "steps",
        "a member that has not read its plan trains by another one",
        (Edit(Life._form, "self.plans.newest >= self.strategy.plan or closed()", "True"),),
        test_life.test_who_has_not_read_the_plan_of_its_model_trains_with_nobody,
    ),
    Mutation(
        "steps",
        "a batch size counts for what was executed before",
        (Edit(Layouts.of, "if since <= generation:", "if True:"),),
        test_ledger_changes.test_what_was_executed_before_has_the_size_of_then,
    ),
    Mutation(
        "steps",
        "a generation goes on in the midst of a change",
        (Edit(changing.resize, "if members.open:", "if False:"),),
        test_ledger_changes.test_the_same_wish_changes_nothing_twice_and_an_older_plan_nothing_at_all,
    ),
    Mutation(
        "steps",
        "an older plan takes back a newer one",
        (Edit(changing.resize, "or 0 < body.plan <= shards.plan", ""),),
        test_ledger_changes.test_the_same_wish_changes_nothing_twice_and_an_older_plan_nothing_at_all,
    ),
    Mutation(
        "steps",
        "a single worker changes the batch of all",
        (Edit(changing.may_state, "or wanted == shards.stated:", "or True:"),),
        test_ledger_changes.test_while_somebody_works_a_single_worker_waits_and_is_refused,
    ),
    Mutation(
        "steps",
        "a member keeps the batch size that it began with",
        (Edit(Stepped.begin, "if grant.batch_size:", "if False:"),),
        test_taking.test_a_generation_has_its_batch_size_and_what_is_left_is_cut_anew,
    ),
    Mutation(
        "steps",
        "steps go on behind those that were asked for",
        (Edit(Layout.due, "if self.steps and made >= self.steps and at.epoch < self.epochs:", "if False:"),),
        lambda: test_batches.test_a_batch_size_may_change_anywhere_and_no_position_is_left_out_or_repeated(EVEN),
    ),
    Mutation(
        "steps",
        "steps go on behind a stop",
        (
            Edit(committing.commit, "new.stop - 1 > state.stop.step", "False"),
            Edit(State._committed, "self.stop is None or e.step <= self.stop.step", "True"),
        ),
        test_ledger_changes.test_no_step_is_behind_a_stop,
    ),
    Mutation(
        "steps",
        "who comes behind a stop goes on",
        (Edit(_Granted.step, "if self.stop_step and made >= self.stop_step:", "if False:"),),
        test_taking.test_nothing_is_taken_behind_the_last_step,
    ),
    # -- backup workers of a collective
    Mutation(
        "14",
        "a share of nothing is a sample all the same",
        (Edit(Stepped._cut, "self._least, spares=spares)", "self._least)"),),
        lambda: test_sparing.test_a_step_is_the_same_when_somebody_takes_none_of_it(0),
    ),
    Mutation(
        "14",
        "the first member takes nothing",
        (Edit(Stepped.take, "max(1, self._shares[0])", "self._shares[0]"),),
        test_sparing.test_the_first_member_always_runs_the_loops_body,
    ),
    Mutation(
        "14",
        "a share of nothing is empty under any plan",
        (Edit(Plans._split_of, "spares=plan.backup_workers > 0", "spares=True"),),
        test_sparing.test_a_plan_with_backup_workers_leaves_a_share_of_nothing_empty_and_others_do_not,
    ),
    Mutation(
        "14",
        "who holds samples on lease takes none",
        (Edit(Leased.take, "max(1, split.shares[session.rank].batch_size)", "split.shares[session.rank].batch_size"),),
        test_sparing.test_who_holds_samples_on_lease_takes_one_a_step,
    ),
    Mutation(
        "14",
        "backup workers that a plan does not name are commanded",
        (Edit(_names_nobody, "return all(", "return False and all("),),
        lambda: test_effects.test_what_the_jobs_strategy_cannot_do_is_refused_once(
            test_effects.UNNAMED, "nobody carries out"
        ),
    ),
)
