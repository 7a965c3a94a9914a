"""The rules of the exactly-once protocol, each with a piece of our code that keeps it, and what notices its absence.

The numbers are those of `tests/README.md`. Rules 15 to 19 are the parameter server's (`served`).
"""

from __future__ import annotations

from antdt.driving.membership import Membership
from antdt.files import checkpoint
from antdt.strategies.allreduce import mesh
from antdt.strategies.allreduce.composition import Round
from antdt.strategies.allreduce.holding import Holding
from antdt.strategies.allreduce.mesh import _Link
from antdt.strategies.allreduce.peers import Door
from antdt.strategies.allreduce.rates import _Rates
from antdt.strategies.allreduce.replicas import Replica
from antdt.strategies.allreduce.store import StoreClient
from antdt.strategies.allreduce.strategy import AllReduceReplica
from antdt.strategies.allreduce.talk import Talk
from antdt.strategies.allreduce.updates import Updating
from antdt.strategies.habits.weights import Weights
from antdt.strategies.local.member import LocalMember
from antdt.strategies.once import Once
from antdt.worker import instructions as ask
from antdt.worker.life import Life
from antdt.worker.plans import Plans
from antdt.worker.session import Session
from antdt.worker.session.commits import Commits
from antdt.worker.session.files import Files
from antdt.worker.session.leases import Leases
from antdt_schemas.records import Action
from antdt_streams.controller.core.deciding import Deciding
from antdt_streams.controller.core.effects import Trial
from antdt_streams.controller.core.in_force import InForce
from antdt_streams.controller.core.lives import Lives
from antdt_streams.controller.core.state import ControllerState
from antdt_streams.ledger import start
from antdt_streams.ledger.core import committing, decide, evidence, fences, joining, leader, leasing, turn
from antdt_streams.ledger.core.callers import Callers
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.core.groups import AllReduce as AllReduceRules
from antdt_streams.ledger.core.holdups import HoldUps
from antdt_streams.ledger.core.leader import InOffice
from antdt_streams.ledger.core.line import Line
from antdt_streams.ledger.core.members import Members
from antdt_streams.ledger.core.state import State
from antdt_streams.ledger.life import Life as LedgerLife
from antdt_streams.ledger.silence import Silence
from antdt_streams.runtime.rebuild import Written
from antdt_streams.runtime.runner import Runner

from tests.mutations import stories
from tests.mutations.mutate import Edit, Mutation
from tests.mutations.steps import in_a_folder
from tests.mutations.worlds import worlds
from tests.unit import (
    test_allreduce_composition,
    test_allreduce_finite,
    test_allreduce_mesh,
    test_allreduce_rates,
    test_allreduce_rendezvous,
    test_allreduce_replicas,
    test_allreduce_steps,
    test_announced,
    test_controller_core,
    test_evidence,
    test_habits,
    test_holdups,
    test_holdups_served,
    test_ledger,
    test_ledger_life,
    test_ledger_places,
    test_life,
    test_local_sgd,
    test_orders,
    test_plans,
    test_rebuild,
    test_requests,
    test_session_ledger,
)

ON_LOSS = "\n    turn.gone("
GIVE_BACK_AT_ONCE = """
    shards = turn.state.shards
    for number in sorted(shards.held.get(incarnation, ())):
        lease = shards.leases[number]
        turn.emit(records.Returned(number, lease.epoch, lease.front, lease.end - lease.front, True, False))"""
QUARANTINE_AT_ONCE = """
    shards, spec = turn.state.shards, turn.state.spec
    for number in sorted(shards.held.get(incarnation, ())):
        lease = shards.leases[number]
        attempts = shards.epoch(lease.epoch).attempts.get(lease.front // spec.shard_size, 0)
        if attempts + 1 >= spec.max_attempts:
            turn.emit(records.Returned(number, lease.epoch, lease.front, lease.end - lease.front, True, True))"""
BLAME_WHO_LEAVES = """    member(turn, request)
    shards = turn.state.shards
    for lease in [shards.leases[n] for n in shards.held.get(request.incarnation, ())]:
        where = lease.epoch, lease.front, lease.end - lease.front
        evidence.blame(turn, request.incarnation, where, "", "", 0)
"""
EVENT_BEFORE_FILE = """        from antdt.files import checkpoint
        at, head = (self.session.generation, self.session.incarnation), self.strategy
        name = checkpoint.file_name(*at, head.step_number)
        self.session.files.wrote(records.Checkpoint(at[0], head.step_number, head.lineage, name))
        yield ask.Wait(lambda: self.session.files.newest is None, 5.0)
        event = yield ask.WriteFile(random, patience_s)
"""

MUTATIONS = (
    # -- 1: one ledger leads, its entry is the truth, and it replies on what it has read back
    Mutation(
        "1",
        "entries of a former leader count",
        (Edit(Fold.read, "!= (self.office.offset, self.office.hash)", "== (-1, b'')"),),
        test_ledger.test_a_zombies_entry_is_void_and_it_notices,
    ),
    Mutation(
        "1",
        "what does not chain says nothing",
        (Edit(Fold._chains, "        self._doubt(Doubt.of(offset, named, self.proven, error))\n", ""),),
        test_ledger.test_what_does_not_chain_breaks_the_log_until_the_same_leader_goes_on_over_it,
    ),
    Mutation(
        "1",
        "any leader ends a doubt",
        (Edit(Fold._end_doubts, "not since < d.offset <= named", "not d.offset <= named"),),
        test_ledger.test_what_does_not_chain_breaks_the_log_until_the_same_leader_goes_on_over_it,
    ),
    Mutation(
        "1",
        "replies before the entry is read back",
        (
            Edit(
                LedgerLife._run_cycle,
                "        yield Moment.DECIDED\n",
                "        for answer in office.pending.answers:\n"
                "            self.replies.send(office.reply(answer))\n"
                "        yield Moment.DECIDED\n",
            ),
        ),
        worlds(60),
    ),
    Mutation(
        "1",
        "the cache is written ahead of the log",
        (
            Edit(
                LedgerLife._run_cycle,
                "        yield Moment.DECIDED\n",
                "        self.cache.save(office.fold, self.log.leader_epoch)\n        yield Moment.DECIDED\n",
            ),
        ),
        worlds(60),
    ),
    Mutation(
        "1",
        "replies though another leader took office",
        (
            Edit(
                LedgerLife._run_cycle,
                "office.read_back(message.offset, message.payload) or cycle",
                "office.pending or cycle",
            ),
        ),
        worlds(60),
    ),
    Mutation(
        "1",
        "an office is taken without reading the log to its end",
        (Edit(start.Start.catch_up, "        self.fold_to(fold, self.log.end())\n", ""),),
        worlds(60),
    ),
    Mutation(
        "1",
        "a standby never takes office",
        (Edit(Silence.looked, "return began_s - self._waits_since_s >= self.patience_s", "return False"),),
        worlds(60),
    ),
    Mutation(
        "1",
        "requests that are others are read on as if they were not",
        (Edit(LedgerLife._begin_requests, "if fact is not None:", "if False:"),),
        test_requests.test_a_ledger_that_starts_with_moved_requests_goes_on,
    ),
    Mutation(
        "1",
        "an accepted loss is not recorded",
        (Edit(LedgerLife.recover, "self.office.propose([], (lost.fact,))", "self.office.propose([])"),),
        worlds(100),
    ),
    Mutation(
        "1",
        "what was accepted once covers every later loss",
        (Edit(start._covers, " - set(known.accepted)", ""),),
        test_ledger_life.test_a_loss_that_goes_less_far_than_one_that_was_accepted_is_another_loss,
    ),
    Mutation(
        "1",
        "a refusal leaves no trace",
        (Edit(turn.refuse, "turn.emit(records.Refused", "(records.Refused"),),
        test_ledger.test_requests_without_the_secret_are_refused,
    ),
    Mutation(
        "1",
        "an input position that is not in the entry",
        (Edit(InOffice.propose, "requests[taken - 1].offset + 1 if taken else ", ""),),
        stories.every_request_is_consumed_once,
    ),
    # -- 2: requests may arrive again; an answer is the whole list of leases
    Mutation(
        "2",
        "only new leases are told",
        (
            Edit(
                leader._leases,
                "if lease.generation == state.members.generation:",
                "if lease.generation == state.members.generation and "
                "number not in state.shards.held.setdefault('', {}):\n"
                "            state.shards.held[''][number] = None",
            ),
        ),
        stories.an_answer_that_was_lost_is_told_again,
    ),
    Mutation(
        "2",
        "a lease that was taken from is taken again",
        (Edit(Leases._merge, "if number <= self._newest_lease:", "if False:"),),
        worlds(150, first=50),
    ),
    Mutation(
        "2",
        "news counts as the answer to what was never asked",
        (
            Edit(Session._acknowledge, "if reply.number < 0:", "if False:"),
            Edit(Files.answered, "self._names.get(reply.number) == file.file", "reply.number < 0"),
        ),
        stories.a_late_answer_to_an_older_file_is_none_to_the_next,
    ),
    # -- 3: generations come from the ledger
    Mutation(
        "3",
        "a grant does not wait for those that have not asked",
        (Edit(AllReduceRules.grant, 'if who.incarnations[m].status == "member"', "if False"),),
        stories.nobody_is_granted_before_everybody_has_asked,
    ),
    Mutation(
        "3",
        "claims while a collective may still complete",
        (
            Edit(Life._leave, "        yield ask.Leave()\n", ""),
            Edit(Life._leave, "strategy.lineage)\n", "strategy.lineage)\n        yield ask.Leave()\n"),
        ),
        lambda: test_life.test_wherever_a_generation_ends_it_is_left_before_the_next_one_is_asked_for(ask.Finish),
    ),
    Mutation(
        "3",
        "collectives of two generations meet",
        (Edit(StoreClient._ask, '"generation": self._generation', '"generation": 0'),),
        test_allreduce_rendezvous.test_two_generations_at_one_store_do_not_meet,
    ),
    Mutation(
        "3",
        "whoever connects is a member",
        (Edit(Door._introduced, "if secrets.compare_digest(word, self._word) else NOBODY", ""),),
        test_allreduce_mesh.test_a_stranger_and_whoever_has_the_wrong_word_are_sent_away,
    ),
    Mutation(
        "3",
        "what belongs to another exchange is added up",
        (Edit(_Link._pass, "message.head != message.own", "False"),),
        lambda: test_allreduce_mesh.test_one_that_was_left_out_is_noticed(test_allreduce_mesh.meshes(2)),
    ),
    Mutation(
        "3",
        "each adds up in an order of its own",
        (Edit(mesh._in_order, "sorted(parts)", "parts"),),
        lambda: test_allreduce_mesh.test_everybody_has_the_sum_in_rank_order_bit_by_bit(
            3, test_allreduce_mesh.torch.float32
        ),
    ),
    # -- 4: fences
    Mutation(
        "4",
        "a lost incarnation is heard",
        (Edit(fences.member, "if who.gone:", "if False:"),),
        test_ledger.test_a_lost_incarnation_is_refused_everything,
    ),
    Mutation(
        "4",
        "a generation that is closed is heard",
        (Edit(fences.open_member, "generation != members.generation or not members.open or", ""),),
        stories.a_closed_generation_commits_nothing,
    ),
    Mutation(
        "4",
        "any member commits",
        (Edit(AllReduceRules.may_commit, "if who == first else", "if True else"),),
        test_ledger.test_only_the_first_member_commits,
    ),
    Mutation(
        "4",
        "whoever comes later takes the place of whoever was there",
        (Edit(joining._makes_room, "if restart or proven else", "if True else"),),
        test_ledger_places.test_a_second_launch_is_told_who_runs_the_worker_and_changes_nothing,
    ),
    Mutation(
        "4",
        "what was said before somebody asked is a sign of life",
        (Edit(Callers.room, "since_ms, self.clock_ms)", "since_ms, self.clock_ms, alive=True)"),),
        test_ledger_places.test_what_was_said_before_the_newcomer_asked_is_no_sign_of_life,
    ),
    Mutation(
        "4",
        "who was displaced comes back, and displaces",
        (Edit(fences.gone, 'if who.status == "displaced":', "if False:"),),
        test_ledger_places.test_a_displaced_one_is_told_so_whatever_it_asks_and_no_sample_is_to_blame,
    ),
    Mutation(
        "4",
        "a take-over does not wait",
        (Edit(Callers.room, "Room.UNKNOWN\n        return Room.OCC", "Room.FREE\n        return Room.OCC"),),
        test_ledger_places.test_a_take_over_asks_the_occupant_to_leave_and_waits_until_it_has,
    ),
    # -- 5: void states
    Mutation(
        "5",
        "who was declared lost keeps its model",
        (Edit(Life._rejoin, "        self.strategy.void = True\n", ""),),
        test_life.test_who_is_declared_lost_comes_back_as_another_one_with_a_void_model,
    ),
    Mutation(
        "5",
        "a state is valid while it is overwritten",
        (Edit(Holding.restore, "        self.void = True\n", ""),),
        test_allreduce_steps.test_a_state_that_cannot_be_loaded_whole_leaves_a_void_one_that_is_never_a_source,
    ),
    Mutation(
        "5",
        "a grant that was not asked for is taken",
        (Edit(Session._granted, "and not self.attached", "and False"),),
        stories.a_grant_that_was_not_asked_for_is_of_another_history,
    ),
    Mutation(
        "5",
        "a zombie is heard, with the model it has",
        (Edit(fences.member, "if who.gone:", "if False:"),),
        stories.a_zombie_that_is_furthest_is_no_source,
    ),
    Mutation(
        "5",
        "a model that was rolled back is claimed",
        (Edit(Session._granted, "self._void or grant.restore_file is not None", "False"),),
        stories.who_was_granted_a_file_claims_nothing_until_it_has_it,
    ),
    Mutation(
        "5",
        "the claims of those that a roll-back found waiting stand",
        (Edit(Members.void_models, "who.claim = None", "pass"),),
        stories.a_rollback_voids_the_claims_that_were_made,
    ),
    # -- 6: the source
    Mutation(
        "6",
        "whoever comes is the source",
        (Edit(AllReduceRules._next, "and i.claim >= committed", ""),),
        stories.a_source_holds_all_that_is_committed,
    ),
    Mutation(
        "6",
        "a grant from a file undoes nothing in the log",
        (Edit(AllReduceRules._next, "if committed > newest.step:", "if False:"),),
        test_ledger.test_nobody_holds_what_is_committed_so_the_ledger_rolls_back,
    ),
    # -- 7: commits
    Mutation(
        "7",
        "a step is committed again",
        (Edit(committing.commit, "range(max(body.first_step, state.line.committed + 1), ", "range(body.first_step, "),),
        test_ledger.test_a_step_that_is_committed_is_not_committed_again,
    ),
    Mutation(
        "7",
        "steps may be left out",
        (Edit(committing.commit, "if body.first_step > state.line.committed + 1:", "if False:"),),
        test_ledger.test_a_gap_and_a_wrong_lineage_are_refused,
    ),
    Mutation(
        "7",
        "any lease, any token",
        (Edit(committing._leased, "if lease is None or lease.token != token:", "if lease is None:"),),
        test_ledger.test_a_commit_with_another_token_is_refused_and_recorded,
    ),
    Mutation(
        "7",
        "a new generation forgets what its model carries",
        (Edit(Session.begin, "[c for c in pending if c.step > self.committed]", "[]"),),
        worlds(100),
    ),
    # -- 8: settlement
    Mutation(
        "8",
        "leases of the lost return at once",
        (Edit(turn.lose, ON_LOSS, GIVE_BACK_AT_ONCE + ON_LOSS),),
        test_ledger.test_leases_of_the_lost_wait_for_the_first_commit_of_the_next_generation,
    ),
    Mutation(
        "8",
        "leases of the lost never return",
        (Edit(committing.commit, "if not state.members.settled and", "if False and"),),
        test_ledger.test_leases_of_the_lost_wait_for_the_first_commit_of_the_next_generation,
    ),
    Mutation(
        "8",
        "settled by the first commit of several",
        (Edit(committing.commit, " and turn.rules.settles(state)", ""),),
        test_ledger.test_leases_stay_in_limbo_until_every_step_of_the_source_is_committed,
    ),
    Mutation(
        "8",
        "held leases are kept over a regroup",
        (Edit(Leases.drop, "self.held.clear()", "return"),),
        worlds(60),
    ),
    Mutation(
        "8",
        "quarantined when the loss is noticed",
        (Edit(turn.lose, ON_LOSS, QUARANTINE_AT_ONCE + ON_LOSS),),
        stories.a_shard_in_the_model_is_never_quarantined,
    ),
    Mutation(
        "8",
        "who leaves on purpose counts as lost",
        (Edit(joining.leave, "    member(turn, request)\n", BLAME_WHO_LEAVES),),
        stories.who_leaves_costs_no_attempt,
    ),
    # -- 9: lineage
    Mutation(
        "9",
        "a file of any branch is a checkpoint",
        (
            Edit(committing.checkpoint, "if line.lineage_at(body.step) != body.lineage:", "if False:"),
            Edit(Line.checkpoint, "assert self.lineage_at(e.step) == e.lineage, e", "pass"),
        ),
        test_ledger.test_a_checkpoint_of_another_branch_is_refused,
    ),
    Mutation(
        "9",
        "a commit need not lead to the model's lineage",
        (Edit(committing._validated, "and body.lineage != at:", "and False:"),),
        test_ledger.test_a_gap_and_a_wrong_lineage_are_refused,
    ),
    # -- 10: files
    Mutation(
        "10",
        "the event goes before the file",
        (Edit(Life._write, "        event = yield ask.WriteFile(random, patience_s)\n", EVENT_BEFORE_FILE),),
        worlds(60),
    ),
    Mutation(
        "10",
        "file names repeat over branches",
        (Edit(checkpoint.file_name, "-g{generation}-{incarnation}", ""),),
        worlds(60),
    ),
    Mutation(
        "10",
        "the event is sent once",
        (Edit(Files.tick, "if file is not None and", "if file is not None and not self._due.tries and"),),
        stories.an_event_of_a_file_that_was_lost_is_sent_again,
    ),
    Mutation(
        "10",
        "an answer to any file is one to the last",
        (Edit(Files.answered, "self._names.get(reply.number) == file.file", "reply.number in self._names"),),
        stories.a_late_answer_to_an_older_file_is_none_to_the_next,
    ),
    Mutation(
        "10",
        "a refused file is pending for ever",
        (
            Edit(
                Files.answered,
                "reply.status is not Status.CLOSED:",
                "reply.status is Status.OK:",
            ),
        ),
        stories.a_refused_file_makes_room_for_the_next,
    ),
    # -- 11: the end
    Mutation(
        "11",
        "done without a durable file",
        (
            Edit(
                decide.decide,
                "if state.line.checkpoints[-1].step == state.line.committed and state.finished:",
                "if state.finished:",
            ),
        ),
        test_ledger.test_end_only_when_a_durable_file_holds_everything,
    ),
    Mutation(
        "11",
        "the end is looked for only when a file comes",
        (Edit(decide.decide, "and state.finished:", "and isinstance(body, records.Checkpoint) and state.finished:"),),
        stories.the_end_is_noticed_whatever_brings_it,
    ),
    # -- 12: release
    Mutation(
        "12",
        "a release names no token",
        (Edit(leasing.release, " or lease.token != token", ""),),
        test_ledger.test_release_returns_a_lease_that_was_never_taken_from,
    ),
    Mutation(
        "12",
        "a lease that was taken from is released",
        (Edit(leasing.release, "if lease.front != lease.start:", "if False:"),),
        stories.a_lease_that_was_taken_from_is_not_released,
    ),
    # -- 13: rounds
    Mutation(
        "13",
        "a step is reported before all are known to have applied it",
        (Edit(Commits.tick, "if c.step <= self._provable", ""),),
        worlds(100),
    ),
    Mutation(
        "13",
        "a round without samples is a step",
        (Edit(AllReduceReplica.reduce, "if round_.total == 0:", "if False:"),),
        lambda: test_allreduce_steps.test_a_round_without_samples_changes_nothing(1, "inline"),
    ),
    Mutation(
        "13",
        "replicas that differ go on",
        (Edit(Round.of, "if mine[:width] != first[:width]:", "if False:"),),
        lambda: test_allreduce_composition.test_replicas_that_differ_are_named({"lineage": b"x" * 16}),
    ),
    Mutation(
        "13",
        "replicas with other parameters go on",
        (Edit(Round.unequal, "row.state, row.trained", "row.trained"),),
        lambda: test_allreduce_replicas.test_a_parameter_that_one_worker_changes_ends_the_run_of_all((2, 2), "inline"),
    ),
    Mutation(
        "13",
        "an adoption hides that two members differ",
        (Edit(Holding.adopt, "if unequal is not None:", "if False:"),),
        test_allreduce_replicas.test_an_adoption_does_not_hide_that_two_members_differ,
    ),
    Mutation(
        "13",
        "own steps stay in a model whose period was given up",
        (Edit(LocalMember._go_back, "            self._put_back()\n", ""),),
        lambda: test_local_sgd.test_a_period_that_ends_in_its_midst_leads_back_to_the_last_average("between two"),
    ),
    Mutation(
        "13",
        "the optimizer keeps what it learned in a period that was given up",
        (Edit(LocalMember._go_back, "self._own_optimizer.load_state_dict(deepcopy(self._optimizer_kept))", "pass"),),
        lambda: test_local_sgd.test_a_period_that_ends_in_its_midst_leads_back_to_the_last_average("between two"),
    ),
    Mutation(
        "13",
        "a gradient that is not finite is applied",
        (Edit(AllReduceReplica.step, "gradients.is_finite() and self._are_finite()", "True"),),
        lambda: test_allreduce_finite.test_the_step_counts_and_nothing_else_changes(float("nan"), True, "inline"),
    ),
    Mutation(
        "13",
        "a loss weighs its samples, whatever it was divided by",
        (Edit(Weights.of, "float(samples) if weight is None else weight", "float(samples)"),),
        lambda: test_habits.test_a_loss_with_a_denominator_of_its_own("tokens", 2, 1),
    ),
    Mutation(
        "13",
        "an optimizer that has stepped before the end of a step is not taken back with it",
        (Edit(Updating._give_up_updates, "            self._undo.restore()\n", "            pass\n"),),
        lambda: test_habits.test_a_death_between_the_two_optimizers_of_a_gan(2),
    ),
    Mutation(
        "13",
        "who comes later hears something else of what was said between two steps",
        (Edit(Talk._exchange, "if True not in knows:", "if True:"),),
        lambda: test_habits.test_a_death_while_workers_tell_each_other_something(2, "between"),
    ),
    Mutation(
        "13",
        "a scheduler does not travel with the model",
        (Edit(Once.load_state_dict, "            one.load_state_dict(theirs)\n", "            pass\n"),),
        lambda: test_habits.test_a_death_and_a_newcomer_with_scheduler_and_average(3, 2),
    ),
    Mutation(
        "13",
        "a skipped step is reported as any other",
        (Edit(Commits.tick, "if c.skipped is not None", "if False"),),
        test_session_ledger.test_who_made_a_step_be_skipped_reaches_the_log_however_late,
    ),
    # -- 14: plans
    Mutation(
        "14",
        "the plan in the model is taken back",
        (
            Edit(
                Round.of,
                "max(rows[0].plan, min([row.plan_seen for row in rows]))",
                "min([row.plan_seen for row in rows])",
            ),
        ),
        test_allreduce_composition.test_plan_in_the_model_is_never_taken_back,
    ),
    Mutation(
        "14",
        "a plan counts before everybody has seen it",
        (Edit(Round.of, "min([row.plan_seen for row in rows])", "max([row.plan_seen for row in rows])"),),
        test_allreduce_composition.test_plan_takes_effect_when_everybody_has_seen_it,
    ),
    Mutation(
        "14",
        "the plan does not travel with the model",
        (Edit(Holding.restore, "progress.step, progress.lineage, progress.plan", "*progress[:2], self.plan"),),
        test_allreduce_steps.test_who_adopts_a_model_takes_over_its_plan,
    ),
    Mutation(
        "14",
        "a plan is taken only where it changes the shares",
        (Edit(Plans.add, "decision.plan <= self.newest", "decision.action is not records.Action.ADJUST_BS"),),
        lambda: test_plans.test_a_plan_is_taken_whole_whatever_has_changed(Action.ADJUST_LR),
    ),
    Mutation(
        "14",
        "who is started again is a plan, which no worker reports",
        (Edit(InForce.take, "        if proposal.action not in CHANGES:\n            return\n", ""),),
        test_controller_core.test_a_plan_of_a_learning_rate_keeps_the_shares,
    ),
    Mutation(
        "14",
        "the factor of learning rates does not travel with the model",
        (Edit(Holding.restore, "        self.rates.factor = progress.learning_rate_factor\n", ""),),
        test_allreduce_rates.test_the_factor_comes_back_with_the_model,
    ),
    Mutation(
        "14",
        "a scheduler in a hook sees the factor",
        (
            Edit(
                _Rates._step_inside_of_hooks,
                "        optimizer._optimizer_step_post_hooks.move_to_end(first.id, last=False)\n",
                "",
            ),
        ),
        lambda: test_allreduce_rates.test_no_scheduler_sees_the_factor_and_every_step_has_it(
            "exponential", "post-hook"
        ),
    ),
    Mutation(
        "14",
        "replicas with different factors are equal",
        (Edit(Replica.stepped, "(factor, *", "(1.0, *"),),
        test_allreduce_rates.test_a_member_with_another_factor_is_named,
    ),
    # -- 20: evidence, quarantine, readmission
    Mutation(
        "20",
        "who dies with others speaks against what it had",
        (Edit(State._gone, "if self.shards.blamed and self.members.took_part(incarnation):", "if False:"),),
        worlds(100, first=220),
    ),
    Mutation(
        "20",
        "who died after others speaks against what it had",
        (Edit(evidence.died_of_samples, "and state.death_speaks(incarnation)", ""),),
        lambda: test_evidence.test_who_dies_together_with_others_speaks_against_nothing("w0.0", "reported"),
    ),
    Mutation(
        "20",
        "an end that was asked for is evidence",
        (Edit(evidence.died_of_samples, "exit_code not in NO_FAULT and", ""),),
        lambda: test_evidence.test_an_end_that_somebody_asked_for_or_that_says_something_else_is_no_evidence(143),
    ),
    Mutation(
        "20",
        "the whole lease is to blame",
        (Edit(evidence._accuse, "max(start, lease.front), min(start + length, lease.end)", "lease.front, lease.end"),),
        test_evidence.test_a_sample_that_raises_is_tried_as_often_as_it_may_and_then_it_alone_is_missing,
    ),
    Mutation(
        "20",
        "evidence outlives the samples' way into the model",
        (Edit(evidence.against, "max(found.start, front)", "found.start"),),
        test_evidence.test_of_a_batch_that_is_in_the_model_by_half_the_rest_is_suspected,
    ),
    Mutation(
        "20",
        "a script that never completed a step costs samples",
        (Edit(evidence.suffices, "state.line.committed > 0 or", "True or"),),
        test_evidence.test_a_step_that_nobody_ever_completed_speaks_against_the_script,
    ),
    Mutation(
        "20",
        "a batch that failed is leased whole again",
        (Edit(leasing.lease, "evidence.suspects(shards, epoch, start, end)", "0"),),
        test_evidence.test_halves_of_a_batch_that_failed_go_to_different_workers,
    ),
    Mutation(
        "20",
        "a period is leased whole again, of which one batch failed",
        (Edit(evidence.suspects, "return last * size if", "return 0 if"),),
        lambda: test_evidence.test_a_period_of_several_batches_that_always_fails_at_one_of_them_comes_down_to_it(13),
    ),
    Mutation(
        "20",
        "done stays done, whatever is readmitted",
        (Edit(State._readmitted, "self.done = None", "pass"),),
        test_evidence.test_a_job_that_is_done_takes_back_what_is_in_quarantine_and_ends_again,
    ),
    # -- 21: who holds up the others
    Mutation(
        "21",
        "what all do alike is somebody's fault",
        (Edit(HoldUps._holding, "max(waiting.values(), default=0)", "10**9"),),
        lambda: test_holdups.test_what_all_do_alike_is_nobodys_fault_however_long("user"),
    ),
    Mutation(
        "21",
        "what was announced does not count",
        (Edit(HoldUps._holding, "or said.phase_ms <= said.allowed_ms ", ""),),
        test_holdups.test_what_was_announced_takes_as_long_as_was_said,
    ),
    Mutation(
        "21",
        "what was heard long ago counts today",
        (Edit(HoldUps.look, " and clock_ms - s.heard_ms <= FRESH_MS", ""),),
        test_holdups.test_what_was_heard_long_ago_says_nothing_of_today,
    ),
    Mutation(
        "21",
        "who waits is to blame where nobody else is",
        (
            Edit(
                InOffice._look_at_everybody,
                "close(turn, found.deadlock)",
                "lose(turn, self.state.members.group[0], '')",
            ),
        ),
        test_holdups.test_where_all_wait_for_each_other_they_meet_again_and_nobody_is_lost,
    ),
    Mutation(
        "21",
        "a request hides what its sender is stuck at",
        (Edit(Session.tick, "and standing.phase_s < since_s", ""),),
        test_holdups.test_a_heartbeat_says_what_the_training_thread_is_at_also_while_other_requests_go_out,
    ),
    Mutation(
        "21",
        "who stays in a generation that it knows to be over may",
        (Edit(HoldUps._holding, "said.phase == STAYS or ", ""),),
        test_holdups_served.test_nor_does_a_member_without_servers,
    ),
    Mutation(
        "21",
        "who was not told that its generation is over stays in it",
        (Edit(Session._said, "self.phase is Phase.CLOSED", "True"),),
        lambda: test_holdups_served.test_who_knows_that_its_generation_is_over_says_so_while_it_stays("w0", "worker"),
    ),
    Mutation(
        "21",
        "who stays has stayed since before it was told",
        (Edit(Session._said, "min(said.phase_s, now_s - self._over_s)", "said.phase_s"),),
        lambda: test_holdups_served.test_who_knows_that_its_generation_is_over_says_so_while_it_stays("s1", "server"),
    ),
    Mutation(
        "21",
        "loading a model is not announced",
        (Edit(Membership._announce, "size_bytes / SLOW_BYTES_A_S", "0.0"),),
        in_a_folder(lambda at: test_announced.test_one_that_others_hand_over_takes_as_long_as_it_is_large(at, None)),
    ),
    # -- services: exactly once over crashes
    Mutation(
        "services",
        "the state is stored before its outputs are written",
        (
            Edit(Runner._commit, "        if outbox:\n            self.sink.flush()\n", ""),
            Edit(
                Runner._commit,
                "        self.store.write(changes)\n",
                "        self.store.write(changes)\n        self.sink.flush()\n",
            ),
        ),
        worlds(100),
    ),
    Mutation(
        "services",
        "a service that rebuilds writes again what is written",
        (Edit(Written.has, "offset < self.below or", ""),),
        test_rebuild.test_the_input_is_replayed_and_nothing_is_written_again,
    ),
    Mutation(
        "services",
        "and what the old version wrote behind its last commit is written over",
        (Edit(Written.has, " or (offset, index) <= self.marks.get(topic, NOWHERE)", ""),),
        test_rebuild.test_wherever_the_old_version_died,
    ),
    Mutation(
        "services",
        "a state is rebuilt on top of rows of other rules",
        (Edit(Runner._commit, "dict(self._replaced)", "{}"),),
        test_rebuild.test_the_input_is_replayed_and_nothing_is_written_again,
    ),
    Mutation(
        "services",
        "a repeated decision is taken again",
        (Edit(Plans.add, "if mark <= self._marks.get(cause.partition, (-1, -1)):", "if False:"),),
        stories.a_decision_counts_once,
    ),
    # -- orders: what people say lies in the Controller's one order
    Mutation(
        "orders",
        "a rebuild carries out an order that was not understood",
        (Edit(ControllerState.follow, "if not record.promote and not record.restart:", "if True:"),),
        test_orders.test_an_order_that_an_older_controller_did_not_understand_changes_nothing_later,
    ),
    Mutation(
        "orders",
        "whoever is being started again is ordered to once more",
        (Edit(Lives.refusal, "if worker in restarting:", "if False:"),),
        test_orders.test_an_order_that_is_read_again_starts_nobody_again,
    ),
    Mutation(
        "orders",
        "a life that is over is ordered to be started again",
        (Edit(Lives.refusal, "if measured != incarnation and", "if False and"),),
        test_orders.test_an_order_that_is_read_again_starts_nobody_again,
    ),
    Mutation(
        "orders",
        "an earlier life acknowledges that a later one was started again",
        (Edit(Trial.is_acknowledged, "is_later(node.incarnation, self.target)", "node.incarnation != self.target"),),
        test_orders.test_a_life_before_the_one_that_is_to_go_acknowledges_nothing,
    ),
    Mutation(
        "orders",
        "a policy goes on from what another one remembers",
        (Edit(ControllerState._begin, "policy, {}, ", "policy, self.memory, "),),
        test_orders.test_a_policy_that_is_promoted_decides_from_that_record_on_without_what_another_remembers,
    ),
    Mutation(
        "orders",
        "what was promoted is gone with the process",
        (Edit(Deciding.resume, "if not promoted or own != self.own.name:", "if True:"),),
        test_orders.test_what_was_promoted_decides_after_a_restart_and_after_a_rebuild,
    ),
    Mutation(
        "orders",
        "a rebuild asks the policy before it says what was written of a decision",
        (Edit(ControllerState._decide, "takewhile(lambda one: one.effect is not None, written)", "()"),),
        test_orders.test_a_policy_is_told_the_verdict_that_was_written_whatever_these_rules_would_say,
    ),
)
