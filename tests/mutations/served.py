"""The rules of jobs whose model lies on servers (15 to 19), each with a piece of our code that keeps it, and what
notices its absence. Those of the order of versions are held here through the whole chain, ledger included.
"""

from __future__ import annotations

from functools import partial

from antdt.strategies.ps.core.ordering import Ordering
from antdt.strategies.ps.core.staging import Staging
from antdt.worker.serving import ServingLife
from antdt.worker.session import Session
from antdt.worker.session.commits import Commits
from antdt_streams.ledger.core import (
    committing,
    decide,
    evidence,
    fences,
    holdups,
    joining,
    leader,
    leasing,
    rows,
    turn,
)
from antdt_streams.ledger.core.groups import ParameterServer
from antdt_streams.ledger.core.holdups import HoldUps, Spans
from antdt_streams.ledger.core.members import Members
from antdt_streams.ledger.core.state import State

from tests.mutations.mutate import Edit, Mutation
from tests.mutations.worlds import served_worlds
from tests.unit import test_holdups, test_holdups_served, test_ledger, test_ledger_servers, test_session_servers

GONE = "    turn.emit(records.Lost(incarnation, reason[:REASON_CHARS_MAX], by))\n"
GIVE_BACK_AT_ONCE = """
    shards = turn.state.shards
    for number in sorted(shards.held.get(incarnation, ())):
        lease = shards.leases[number]
        turn.emit(records.Returned(number, lease.epoch, lease.front, lease.end - lease.front, False, False))
"""

MUTATIONS = (
    # -- 15: nothing is in the model before all servers have it, and in the order of the first
    Mutation(
        "15",
        "a version is made of what one server has",
        (Edit(Ordering.on_staged, "if len(at) < self.servers:", "if False:"),),
        served_worlds(400),
    ),
    Mutation(
        "15",
        "a server answers before it has applied",
        (Edit(Staging.obey, "        if order.include:\n", "        if order.include and not order.answer:\n"),),
        served_worlds(50),
    ),
    Mutation(
        "15",
        "any server commits",
        (Edit(ParameterServer.may_commit, "None if who == first else", "None if True else"),),
        test_ledger_servers.test_servers_take_no_samples_and_workers_commit_no_steps,
    ),
    Mutation(
        "15",
        "servers take samples",
        (Edit(ParameterServer.may_take, "None if who in s.members.attached else", "None if True else"),),
        test_ledger_servers.test_servers_take_no_samples_and_workers_commit_no_steps,
    ),
    Mutation(
        "15",
        "a job of servers has steps of a fixed size",
        (Edit(decide.check_spec, "if servers_of(spec.strategy) and spec.batches:", "if False:"),),
        partial(
            test_ledger.test_a_job_that_cannot_work_says_why,
            {"strategy": "ps-bsp/servers=2", "batches": "even"},
            "no steps of a fixed size",
        ),
    ),
    # -- 16: a contribution is in one version
    Mutation(
        "16",
        "what is late is computed again and included as it was, too",
        (
            Edit(
                Ordering._on_ready,
                "            return [self._order(late=(key,))]\n",
                "            self._ready[key.incarnation] = contribution\n"
                "            return [self._order(late=(key,))]\n",
            ),
        ),
        served_worlds(100),
    ),
    # -- 17: the end of a worker
    Mutation(
        "17",
        "the end of a worker ends the generation",
        (Edit(ParameterServer.on_loss, "who in s.members.group", "True"),),
        test_ledger_servers.test_workers_come_and_go_without_an_end_of_the_generation,
    ),
    Mutation(
        "17",
        "what a lost worker holds returns at once",
        (Edit(turn.lose, GONE, GONE + GIVE_BACK_AT_ONCE),),
        served_worlds(200, first=23),
    ),
    Mutation(
        "17",
        "the first server includes what a lost worker has pushed",
        (Edit(Ordering.on_lost, "tuple(sorted(set(incarnations) - self._lost))", "()"),),
        served_worlds(200, first=124),
    ),
    Mutation(
        "17",
        "the first server says that it obeys, and does not",
        (Edit(ServingLife._obey, "ask.Obey(lost,", "ask.Obey((),"),),
        served_worlds(200, first=124),
    ),
    Mutation(
        "17",
        "a loss is obeyed before the last step of it is reported",
        (Edit(Commits.obey, "max((committed, *(c.step for c in self.compositions)))", "0"),),
        test_session_servers.test_a_loss_is_obeyed_with_the_last_step_that_may_hold_something_of_it,
    ),
    Mutation(
        "17",
        "an older loss gives back what newer ones hold",
        (Edit(committing._fence, "losses + 1)", "len(members.losses) + 1)"),),
        test_ledger_servers.test_a_commit_that_has_not_seen_the_loss_returns_nothing,
    ),
    Mutation(
        "17",
        "a loss of a lost log is obeyed",
        (
            Edit(
                committing.commit,
                "    if min(body.log_seen, len(state.members.losses)) > state.members.fenced:\n"
                "        _fence(turn, min(body.log_seen, len(state.members.losses)))\n",
                "    if body.log_seen > state.members.fenced:\n        _fence(turn, body.log_seen)\n",
            ),
        ),
        test_ledger_servers.test_only_losses_that_there_are_can_be_obeyed,
    ),
    Mutation(
        "17",
        "nothing is returned without a step",
        (
            Edit(
                Commits.tick,
                "again = (bool(ready) or",
                "obeys, new = False, bool(ready) or first\n        again = (bool(ready) or",
            ),
        ),
        test_session_servers.test_a_loss_is_obeyed_without_a_step_to_report,
    ),
    Mutation(
        "17",
        "a commit that was lost is not said again where it has no step",
        (Edit(Commits.tick, "self._provable >= 0) or obeys) and", "self._provable >= 0)) and"),),
        test_session_servers.test_a_commit_that_was_lost_says_again_what_is_obeyed,
    ),
    Mutation(
        "17",
        "an empty commit names the lineage that the generation began with",
        (Edit(Commits.drop, '            self.lineage = last.lineage if last.step == committed else b""\n', ""),),
        test_session_servers.test_a_loss_is_obeyed_without_a_step_to_report,
    ),
    Mutation(
        "17",
        "losses are told to all servers",
        (Edit(leader._losses, "and incarnation == members.group[0]", ""),),
        test_ledger_servers.test_a_loss_is_told_to_the_first_server_until_it_obeys_and_to_nobody_else,
    ),
    Mutation(
        "17",
        "all losses are told in one reply",
        (
            Edit(
                leader._losses, "min(len(members.losses), members.fenced + LOSSES_PER_REPLY_MAX)", "len(members.losses)"
            ),
        ),
        test_ledger_servers.test_a_long_list_of_losses_is_told_in_pieces,
    ),
    Mutation(
        "17",
        "a new generation knows nobody who was lost before",
        (Edit(Members.form, "        self._fence(0)\n", ""),),
        test_ledger_servers.test_a_new_generation_hears_of_all_losses,
    ),
    Mutation(
        "17",
        "a loss is told with the next heartbeat only",
        (Edit(turn.Turn.gone, "if members.open and members.incarnations[incarnation].loss:", "if False:"),),
        test_ledger_servers.test_what_a_lost_worker_holds_returns_when_the_first_server_refuses_it,
    ),
    Mutation(
        "17",
        "a worker that leaves is no loss",
        (Edit(Members.end, "if name in self.attached:", 'if name in self.attached and status != "left":'),),
        test_ledger_servers.test_rows_give_the_state_back,
    ),
    Mutation(
        "17",
        "who is attached leases in any generation",
        (Edit(fences.open_member, "generation != members.generation or not members.open or", ""),),
        test_ledger_servers.test_who_is_lost_or_out_of_date_is_leased_nothing,
    ),
    Mutation(
        "17",
        "a worker that left an open generation waits for ever",
        (
            Edit(
                Session._on_attached,
                "elif self._now_s - self._left_s >= self.options.reenter_s:",
                "elif False:",
            ),
        ),
        test_session_servers.test_a_worker_that_leaves_an_open_generation_comes_back_as_another_one,
    ),
    Mutation(
        "17",
        "a worker enters a generation before it has joined",
        (Edit(Session._enter_next, "and self._joined", ""),),
        test_session_servers.test_a_grant_that_comes_before_the_own_join_is_read_is_not_entered,
    ),
    Mutation(
        "17",
        "a worker stays in a generation when it hears of the next",
        (Edit(Session._on_attached, "            if self.phase is Phase.MEMBER:\n", "            if False:\n"),),
        test_session_servers.test_a_worker_that_hears_of_the_next_generation_first_leaves_the_last_one,
    ),
    # -- 18: the end of a server
    Mutation(
        "18",
        "the end of a server ends nothing",
        (Edit(ParameterServer.on_loss, "if s.members.open and who in s.members.group:", "if False:"),),
        test_ledger_servers.test_everybody_hears_of_a_grant_and_of_its_end,
    ),
    Mutation(
        "18",
        "nothing is undone when servers restore a file",
        (Edit(ParameterServer.grant, "if s.line.committed > newest.step:", "if False:"),),
        test_ledger_servers.test_all_servers_go_back_to_the_newest_file,
    ),
    Mutation(
        "18",
        "a generation begins without one of its servers",
        (Edit(ParameterServer.grant, "if len(asking) < who.servers:", "if not asking:"),),
        test_ledger_servers.test_a_server_that_did_not_ask_is_waited_for,
    ),
    Mutation(
        "18",
        "the first generation waits for no worker",
        (Edit(ParameterServer.grant, "if who.generation == 0 and", "if False and"),),
        test_ledger_servers.test_the_first_generation_waits_for_servers_and_workers,
    ),
    Mutation(
        "18",
        "what older generations hold never returns",
        (Edit(ParameterServer.settles, "return True", "return False"),),
        test_ledger_servers.test_the_first_commit_of_a_generation_returns_what_older_ones_hold,
    ),
    Mutation(
        "18",
        "a server has any name",
        (Edit(ParameterServer.may_join, "if (role == SERVER) == (worker in parts):", "if True:"),),
        lambda: test_ledger_servers.test_a_server_is_named_after_its_part("s2.0", "none of the servers"),
    ),
    Mutation(
        "18",
        "workers do not hear that a generation is over",
        (Edit(Members.everybody, "        yield from self.attached\n", ""),),
        test_ledger_servers.test_everybody_hears_of_a_grant_and_of_its_end,
    ),
    Mutation(
        "18",
        "a worker ends a generation by asking for the next",
        (Edit(joining.regroup, '("waiting", "attached")', '("waiting",)'),),
        test_ledger_servers.test_a_worker_that_asks_for_a_generation_ends_none,
    ),
    # -- 19: files hold one version
    Mutation(
        "19",
        "a part is saved where its server is, not where the order says",
        (Edit(Ordering.mark, "return [self._order(save=name)]", "self._number += 1\n        return []"),),
        served_worlds(20),
    ),
    # -- who is to blame, and who hangs
    Mutation(
        "20",
        "who dies with another accuses its samples",
        (Edit(State.dead_beside, "if self.members.servers and isinstance(self.shards, Shards):", "if False:"),),
        lambda: test_ledger_servers.test_who_dies_with_another_accuses_nobody("w1.0"),
    ),
    Mutation(
        "20",
        "who is attached accuses nobody",
        (Edit(evidence.died_of_samples, "and took_part", "and incarnation in state.members.group"),),
        test_ledger_servers.test_who_dies_alone_among_the_workers_accuses_its_samples,
    ),
    Mutation(
        "20",
        "nobody who is attached is looked at",
        (Edit(HoldUps._holding, "            elif attached and is_open:\n", "            elif False:\n"),),
        test_holdups.test_a_worker_that_hangs_is_lost_and_the_generation_goes_on,
    ),
    Mutation(
        "20",
        "servers wait for somebody",
        (Edit(HoldUps._waited_ms, "if attached else set(members.group)", "if False else set(members.group)"),),
        test_holdups.test_a_message_that_is_lost_between_workers_and_servers_ends_the_generation,
    ),
    Mutation(
        "20",
        "who waited for somebody that is lost has waited in vain",
        (Edit(HoldUps._waited_ms, "if attached else shortest_ms", "if False else shortest_ms"),),
        test_holdups.test_a_worker_that_hangs_is_lost_and_the_generation_goes_on,
    ),
    Mutation(
        "21",
        "nobody waits for samples",
        (Edit(HoldUps._idle, "yield from", "return None\n        yield from"),),
        test_holdups_served.test_a_worker_that_hangs_with_samples_holds_up_who_has_none_left,
    ),
    Mutation(
        "21",
        "who has no samples holds up those who wait for some",
        (Edit(HoldUps._holding, "if _has_samples(state, name) else exchanging_ms", ""),),
        test_holdups_served.test_one_that_has_none_holds_up_nobody_who_waits_for_some,
    ),
    Mutation(
        "21",
        "what was dealt to a worker is anybody's",
        (Edit(holdups._has_samples, "dealt or ", ""),),
        test_holdups_served.test_so_does_one_that_hangs_with_a_part_that_was_dealt_to_it,
    ),
    Mutation(
        "21",
        "a topic that grows keeps its workers waiting for each other",
        (Edit(HoldUps._idle, " and state.shards.space.closed", ""),),
        test_holdups_served.test_where_more_may_come_nobody_waits_for_who_is_slow,
    ),
    Mutation(
        "21",
        "who does not look for samples waits for them",
        (
            Edit(HoldUps._idle, " if said.phase_ms < self.patience_ms", ""),
            Edit(HoldUps._holding, " or (said.phase == IDLE and attached and is_open)", ""),
        ),
        test_holdups_served.test_a_worker_that_does_not_look_for_samples_any_more_is_lost,
    ),
    Mutation(
        "21",
        "nobody looks who gets into a generation of servers",
        (Edit(HoldUps._forming, "if members.servers:", "if False:"),),
        served_worlds(60),
    ),
    Mutation(
        "21",
        "who has waited for a grant has waited in its generation",
        (Edit(HoldUps._holding, "name, self._forming_ms[name]", "name, said.phase_ms"),),
        lambda: test_holdups_served.test_a_server_that_does_not_get_into_its_generation_is_lost("idle"),
    ),
    Mutation(
        "21",
        "a server that loads has lost a message",
        (Edit(HoldUps._waited_ms, "not (attached and self._server_is_busy(state))", "True"),),
        test_holdups_served.test_a_server_that_loads_for_as_long_as_it_has_announced_is_waited_for,
    ),
    Mutation(
        "21",
        "who is in an older generation waits in the newest one",
        (Edit(HoldUps._at, " and said.generation in (UNKNOWN, state.members.generation)", ""),),
        test_holdups_served.test_a_worker_that_stays_behind_is_lost_and_waits_for_nobody_in_the_next_generation,
    ),
    Mutation(
        "21",
        "who is in an older generation is waited for until it comes",
        (Edit(HoldUps._waited_ms, " if not self._is_behind(state, name)", ""),),
        test_holdups_served.test_a_message_is_lost_among_those_who_are_there,
    ),
    Mutation(
        "21",
        "nobody stays in a generation that is over",
        (Edit(HoldUps._holding, "said.phase == STAYS or ", ""),),
        served_worlds(60),
    ),
    Mutation(
        "21",
        "who is not heard of for a moment begins anew",
        (Edit(Spans.end, " and not is_silent(name)", ""),),
        lambda: test_holdups_served.test_heartbeats_that_are_lost_now_and_then_save_nobody("forming", "reducing"),
    ),
    Mutation(
        "21",
        "who was not heard of for long has gone on",
        (Edit(Spans.end, "last_ms < oldest_ms or ", ""),),
        test_holdups_served.test_who_was_not_heard_of_for_long_may_have_had_samples_meanwhile,
    ),
    Mutation(
        "21",
        "who asks for samples need not say that it waits for them",
        (Edit(Session.tick, " and standing.phase != IDLE", ""),),
        test_holdups_served.test_who_has_no_samples_says_so_beside_its_questions_for_some,
    ),
    Mutation(
        "1",
        "losses are numbered in an order that rows do not know",
        (Edit(State._regressed, "for name in sorted(known):", "for name in list(known):"),),
        test_ledger_servers.test_the_same_log_gives_the_same_losses_wherever_it_is_read_from,
    ),
    Mutation(
        "1",
        "who was lost is forgotten by rows",
        (Edit(rows._incarnation, "if i.loss:", "if False:"),),
        test_ledger_servers.test_rows_give_the_state_back,
    ),
    Mutation(
        "12",
        "all members share what is left, and workers are none",
        (Edit(leasing._at_most, "turn.rules.takers(turn.state)", "len(turn.state.members.group)"),),
        test_ledger_servers.test_workers_share_what_is_left_however_many_servers_there_are,
    ),
)
