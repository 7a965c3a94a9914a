"""The rules of samples that are dealt out ahead, and of a colony whose workers take over from each other, each with a
piece of our code that keeps it, and what notices its absence. A lease, a move or a deal that does not follow is refused
by the state itself, so whoever decides wrongly is noticed there.
"""

from __future__ import annotations

from antdt.worker.session.leases import Leases
from antdt.worker.session.moves import Moves, _Peer
from antdt_schemas import records
from antdt_schemas.records import Status
from antdt_streams.ledger.core import dealing
from antdt_streams.ledger.core.dealt import DealtShards

from tests.mutations.mutate import Edit, Mutation
from tests.mutations.worlds import served_worlds
from tests.properties import test_dealt
from tests.unit import test_ledger_dealt, test_moves


def no_move(move: records.Move, status: Status, said: str) -> object:
    """A check of one that is refused."""
    return lambda: test_ledger_dealt.test_what_is_no_move_is_refused_and_recorded(move, status, said)


def _mutation(name: str, function: object, old: str, new: str, check: object) -> Mutation:
    return Mutation("dealt", name, (Edit(function, old, new),), check)  # type: ignore[arg-type]


MUTATIONS = (
    # -- what is dealt, and to whom
    _mutation(
        "a worker begins with what was dealt to another one",
        dealing.own,
        "        mine = shards.todo(who, number)\n",
        "        mine = shards.epochs[number].returned if number in shards.epochs else shards.todo(who, number)\n",
        test_ledger_dealt.test_an_epoch_is_dealt_evenly_and_nobody_begins_with_another_ones_part,
    ),
    _mutation(
        "all of a part is leased at once",
        dealing.half_of,
        "-(-mine.total // 2)",
        "mine.total",
        test_ledger_dealt.test_at_most_half_of_a_part_is_leased_at_once,
    ),
    _mutation(
        "the last worker is dealt what does not divide",
        dealing.evenly,
        "left = each + (part < more)",
        "left = each",
        test_dealt.test_what_is_dealt_is_all_of_it_and_even,
    ),
    _mutation(
        "who has much is dealt the larger part as well",
        dealing._deal,
        "key=lambda n: (loads[n], ",
        "key=lambda n: (-loads[n], ",
        test_ledger_dealt.test_what_comes_back_goes_to_who_has_least_first,
    ),
    _mutation(
        "who comes in the middle of an epoch is dealt nothing of it",
        dealing._deal,
        "comes = shards.sharding == EVEN and (",
        "comes = False and (",
        test_ledger_dealt.test_who_comes_in_the_middle_of_an_epoch_is_dealt_its_share_of_what_nobody_has_begun,
    ),
    _mutation(
        "a colony begins an epoch before all of the last one is begun",
        dealing.own,
        "if shards.sharding == COLONY and",
        "if False and",
        test_ledger_dealt.test_whoever_is_done_goes_on_to_the_next_epoch_and_in_a_colony_not_before_all_is_begun,
    ),
    _mutation(
        "servers are dealt samples",
        dealing._deal,
        "attached = turn.state.members.attached\n",
        "attached = [*turn.state.members.attached, *turn.state.members.group]\n",
        test_ledger_dealt.test_an_epoch_is_dealt_evenly_and_nobody_begins_with_another_ones_part,
    ),
    # -- who may take over what
    _mutation(
        "what was begun is taken over",
        dealing.move,
        "body.source == NOBODY or not shards.has(body.source, body.epoch, body.start, end)",
        "body.source == NOBODY",
        no_move(records.Move(1, "w1.0", 0, 40, 20), Status.WAIT, "[40, 60) of epoch 0 is not, or not any more"),
    ),
    _mutation(
        "what is nobody's is taken over",
        dealing.move,
        "body.source == NOBODY or ",
        "",
        test_ledger_dealt.test_what_is_nobodys_is_dealt_and_not_taken_over,
    ),
    _mutation(
        "nothing is taken over",
        dealing.move,
        "body.length < 1 or ",
        "",
        no_move(records.Move(1, "w1.0", 0, 60, 0), Status.REFUSED, "nothing that w0.0 can take over"),
    ),
    _mutation(
        "a move that comes again is refused",
        dealing.move,
        "if not shards.has(who, body.epoch, body.start, end):",
        "if True:",
        test_ledger_dealt.test_what_is_not_begun_is_moved_to_who_asks_for_it_and_asking_again_changes_nothing,
    ),
    _mutation(
        "a move of an older generation counts",
        dealing.move,
        "    open_member(turn, request, body.generation)\n",
        "",
        no_move(records.Move(0, "w1.0", 0, 60, 20), Status.OK, "Generation 0 is closed"),
    ),
    _mutation(
        "workers take over where samples are dealt evenly",
        dealing.move,
        "or shards.sharding != COLONY:",
        "or False:",
        lambda: test_ledger_dealt.test_nothing_is_moved_where_no_colony_is_meant(test_ledger_dealt.EVEN),
    ),
    _mutation(
        "servers take over samples",
        dealing.move,
        "    if refused is not None:\n",
        "    if False:\n",
        test_ledger_dealt.test_servers_take_nothing_over,
    ),
    _mutation(
        "loads are told where nobody may take over",
        dealing.loads,
        "shards.sharding != COLONY",
        "False",
        test_ledger_dealt.test_nobody_hears_of_its_own_part_and_of_so_many_others_at_most,
    ),
    _mutation(
        "a worker hears of its own part",
        dealing.loads,
        "name in (NOBODY, asker)",
        "name == NOBODY",
        test_ledger_dealt.test_nobody_hears_of_its_own_part_and_of_so_many_others_at_most,
    ),
    _mutation(
        "a reply has the loads of everybody",
        dealing.loads,
        "found[:LOADS_PER_REPLY_MAX]",
        "found",
        test_ledger_dealt.test_nobody_hears_of_its_own_part_and_of_so_many_others_at_most,
    ),
    # -- what the state makes of it
    _mutation(
        "what is leased is still to be begun",
        DealtShards.lease,
        "        self._part(e.incarnation).todo[e.epoch].remove(e.start, e.start + e.length)\n",
        "",
        test_ledger_dealt.test_an_epoch_is_dealt_evenly_and_nobody_begins_with_another_ones_part,
    ),
    _mutation(
        "the part of a worker that is gone stays its own",
        DealtShards.forget,
        "        part = self.parts.get(who)\n",
        "        return\n        part = self.parts.get(who)\n",
        served_worlds(20),
    ),
    _mutation(
        "what a worker gives back is nobody's",
        DealtShards.take_back,
        "and holder in self.parts:",
        "and False:",
        test_ledger_dealt.test_what_a_worker_gives_back_is_still_its_own,
    ),
    _mutation(
        "what is in quarantine is given back to its holder",
        DealtShards.take_back,
        "if not e.quarantined and",
        "if",
        test_ledger_dealt.test_what_goes_into_quarantine_is_nobodys_part,
    ),
    _mutation(
        "who is dealt anew keeps what it had",
        DealtShards.deal,
        "if e.anew else ():",
        "if False else ():",
        test_ledger_dealt.test_who_comes_in_the_middle_of_an_epoch_is_dealt_its_share_of_what_nobody_has_begun,
    ),
    _mutation(
        "who is dealt nothing is not known to have been dealt",
        DealtShards.deal,
        "            self._part(name).todo.setdefault(e.epoch, IntervalSet())\n",
        "",
        test_ledger_dealt.test_who_was_dealt_nothing_has_nothing_and_is_not_dealt_anew,
    ),
    _mutation(
        "the row of who gives is not written",
        DealtShards._hand,
        "        self._mark(source)\n",
        "",
        test_dealt.test_rows_of_who_gives_and_who_takes_are_written,
    ),
    _mutation(
        "the row of who takes is not written",
        DealtShards._hand,
        "        self._mark(target)\n",
        "",
        test_dealt.test_rows_of_who_gives_and_who_takes_are_written,
    ),
    _mutation(
        "parts of epochs that are begun whole are kept for ever",
        DealtShards._forget_epochs,
        "if epoch < low",
        "if False",
        test_ledger_dealt.test_parts_of_what_is_begun_whole_are_forgotten,
    ),
    _mutation(
        "a move says that samples were done",
        DealtShards._hand,
        "            giver.dealt -= end - start\n",
        "",
        test_ledger_dealt.test_what_is_moved_is_not_done_by_who_gives_it,
    ),
    # -- what workers do by themselves
    _mutation(
        "who has samples takes over",
        Moves.tick,
        "or not leases.runs_out or",
        "or",
        test_moves.test_who_has_samples_takes_nothing_over,
    ),
    _mutation(
        "the same loads are gone by twice",
        Moves.tick,
        "        self._heard = False\n",
        "",
        test_moves.test_what_was_heard_is_gone_by_once,
    ),
    _mutation(
        "several moves are asked for at a time",
        Moves.tick,
        "(due.tries and now_s - due.at_s < due.pause_s(self.options))",
        "False",
        test_moves.test_one_move_is_asked_for_at_a_time_and_again_after_a_while,
    ),
    _mutation(
        "all who are idle take from the same one",
        Moves._choose,
        "at = self._chance() * sums[-1]",
        "at = 0.0",
        test_moves.test_several_that_are_idle_do_not_all_take_from_the_same_one,
    ),
    _mutation(
        "shards are cut by a move",
        Moves._from,
        "-(-(end - share) // size) * size)",
        "end - share)",
        test_moves.test_of_a_worker_that_is_not_known_yet_half_is_taken_in_whole_shards_from_its_end,
    ),
    _mutation(
        "any number of shards is worth a move",
        Moves._from,
        "if shards >= self.parameters.shards_min else None",
        "if shards else None",
        test_moves.test_less_than_the_least_is_not_worth_a_move,
    ),
    _mutation(
        "half is taken, however fast both are",
        Moves._from,
        "load.left * own / (own + other)",
        "load.left / 2",
        test_moves.test_so_much_is_taken_that_both_end_together,
    ),
    _mutation(
        "trails do not evaporate",
        Moves._observe,
        "(1.0 - p.evaporation) * peer.trail + gain",
        "peer.trail + gain",
        test_moves.test_trails_gain_by_the_time_that_is_left_and_evaporate,
    ),
    _mutation(
        "a rate is measured over any moment",
        _Peer.measure,
        "if since_s >= every_s:",
        "if since_s > 0:",
        test_moves.test_a_rate_is_not_measured_over_a_moment,
    ),
    _mutation(
        "trails of the generation before are followed",
        Moves.begin,
        "        self._peers: dict[str, _Peer] = {}\n",
        "        self._peers: dict[str, _Peer] = getattr(self, '_peers', {})\n",
        test_moves.test_another_generation_knows_nothing_of_the_one_before,
    ),
    _mutation(
        "what nobody else may have is given back",
        Leases.observe,
        "or self.sharding == EVEN:",
        "or False:",
        test_moves.test_nothing_that_was_dealt_is_given_back_where_nobody_else_may_have_it,
    ),
    _mutation(
        "a colony holds as much as it may while somebody is idle",
        Leases._target,
        "if self._waiting or self._short else",
        "if self._waiting else",
        test_moves.test_who_is_told_that_others_are_idle_holds_little,
    ),
)
