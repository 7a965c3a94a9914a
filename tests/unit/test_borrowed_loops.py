"""Loops that somebody else wrote (`tests.helpers.borrowed_loops`): as they are they train what one process trains, or
are refused; and as the sentence says, they train that, through a death as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from antdt.strategies.together import one_optimizer
from antdt_schemas.errors import UsageError
from torch.nn import functional
from torch.utils.data import DataLoader

from tests.helpers import borrowed_loops as loops
from tests.helpers.scripts import Alone, Died, InProcess, Script, equal, trained

BATCH, EPOCHS, DIES_AT = 12, 3, 5
DATA = loops.data()
Loss = Callable[..., torch.Tensor]


def sgd(model: Any, of: Any = None, **once: Any) -> Any:
    params = [one for one in (of or model).parameters() if one.requires_grad]
    return model, torch.optim.SGD(params, 0.1, momentum=0.9), once


def run(world: int, script: Script, build: Callable[[], Any], **words: Any) -> list[InProcess]:
    def seeded() -> Any:
        torch.manual_seed(1)  # as a script does in each of its lives
        return build()

    return trained(world, seeded, script, DATA, batch_size=BATCH, epochs=EPOCHS, **words)


def stepping(loss_of: Callable[..., Any], *, on_step: Callable[[Any], None] | None = None, **words: Any) -> Script:
    """The loop of an Agent. loss_of: of the Agent, model and batch."""

    def script(agent: InProcess) -> None:
        if on_step is not None:
            agent.on_step(lambda: on_step(agent.model))
        for batch in agent:
            agent.step(loss_of(agent, agent.model, *batch), **words)

    return script


def same_as_alone(build: Any, script: Script, alone: Callable[[Alone], None]) -> None:
    """With two workers, and with three of which one dies."""

    def dies(agent: InProcess) -> None:
        batches = agent._batches

        def until_it_dies(asked: Any) -> Any:
            for batch in batches(asked):
                if agent.name == "w1" and agent.step_number == DIES_AT:
                    raise Died
                yield batch

        agent._batches = until_it_dies  # type: ignore[method-assign]
        script(agent)

    for world, death in ((2, False), (3, True)):
        agents = run(world, dies if death else script, build, dies=(1, DIES_AT) if death else None)
        single = Alone(agents[0], build)
        alone(single)
        equal(agents, single, 1e-8)


def plain(loss_of: Loss, after: Callable[[Any], None] = lambda _: None) -> Callable[[Alone], None]:
    def alone(single: Alone) -> None:
        for batch in single:
            single.optimizer.zero_grad()
            loss_of(single.model, *batch).backward()
            single.optimizer.step()
            after(single.model)

    return alone


# -- what is carried from batch to batch


def with_teacher(where: str) -> Script:
    def script(agent: InProcess) -> None:
        teacher = loops.teacher_of(agent.model)
        if where == "on_step":
            agent.on_step(lambda: loops.follow(agent.model, teacher))
        for x, y, _ in agent:
            agent.step(loops.taught(agent.model, teacher, x, y))
            if where == "loop":
                loops.follow(agent.model, teacher)

    return script


def with_centre(agent: InProcess) -> None:
    teacher, centre = loops.teacher_of(agent.model), loops.Centre()
    for x, _, _ in agent:
        agent.step(loops.centred(agent.model, teacher, centre, x))


def with_baseline(agent: InProcess) -> None:
    baseline = loops.Baseline()
    for x, y, _ in agent:
        agent.step(loops.rewarded(agent.model, baseline, x, y))


def with_queue(agent: InProcess) -> None:
    """Features of the last batches, of this worker's samples."""
    queue = torch.zeros(BATCH, 3, dtype=torch.float64)
    for x, y, _ in agent:
        out = agent.model(x)
        loss = functional.cross_entropy(out, y) + (out @ queue.T).logsumexp(1).mean()
        queue = torch.cat([out.detach(), queue])[:BATCH]
        agent.step(loss)


CARRIED: dict[str, Script] = {
    "a teacher that follows in the loop": with_teacher("loop"),
    "a teacher that follows in on_step": with_teacher("on_step"),
    "a centre of outputs": with_centre,
    "a baseline of rewards": with_baseline,
    "a queue of features": with_queue,
}


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", CARRIED)
def test_what_a_loss_depends_on_and_the_agent_does_not_know_is_refused(name: str, world: int) -> None:
    """A worker that comes later would begin with another one; and most of it is of each worker's own samples."""
    with pytest.raises(UsageError, match=r"carried from batch to batch \(.*py:\d+\).*does not know.*on_step"):
        run(world, CARRIED[name], lambda: sgd(loops.mlp()))


def test_a_teacher_that_stays_as_it_is_may_be_anywhere() -> None:
    def script(agent: InProcess) -> None:
        for x, y, _ in agent:
            agent.step(loops.taught(agent.model, teacher, x, y))

    torch.manual_seed(2)
    teacher = loops.mlp()
    same_as_alone(lambda: sgd(loops.mlp()), script, plain(lambda m, x, y, _: loops.taught(m, teacher, x, y)))


def test_a_tensor_that_each_batch_is_copied_into_carries_nothing() -> None:
    def loss_of(m: Any, x: torch.Tensor, y: torch.Tensor, _: Any) -> torch.Tensor:
        place = getattr(m, "place", None)
        m.place = place = torch.zeros(BATCH, loops.FEATURES, dtype=torch.float64) if place is None else place
        place[: len(x)].copy_(x)
        return functional.cross_entropy(m(place[: len(x)].clone()), y)

    same_as_alone(lambda: sgd(loops.mlp()), stepping(lambda _, *given: loss_of(*given)), plain(loss_of))


def of_teacher(m: Any) -> None:
    loops.follow(m.student, m.teacher)


def school() -> Any:
    student = loops.mlp()
    whole = {"student": student, "teacher": loops.teacher_of(student), "centre": loops.Centre()}
    return sgd(whole, student)


def rewarding() -> Any:
    model = loops.mlp()
    return sgd({"model": model, "baseline": loops.Baseline()}, model)


def test_a_teacher_and_a_centre_that_the_agent_is_given_are_those_of_one_process() -> None:
    def loss_of(m: Any, x: torch.Tensor, *_: Any) -> torch.Tensor:
        return loops.centred(m.student, m.teacher, m.centre, x)

    same_as_alone(school, stepping(lambda _, *given: loss_of(*given), on_step=of_teacher), plain(loss_of, of_teacher))


def test_a_running_baseline_in_a_buffer_is_that_of_one_process() -> None:
    def loss_of(m: Any, x: torch.Tensor, y: torch.Tensor, _: Any) -> torch.Tensor:
        return loops.rewarded(m.model, m.baseline, x, y)

    same_as_alone(rewarding, stepping(lambda _, *given: loss_of(*given)), plain(loss_of))


# -- what is changed in the body


def changing_state(agent: InProcess) -> None:
    average = agent.strategy.once.state["average"]
    for x, y, _ in agent:
        agent.step(functional.cross_entropy(agent.model(x), y))
        average.update_parameters(agent.model)


def averaging() -> Any:
    model = loops.mlp()
    return sgd(model, state={"average": torch.optim.swa_utils.AveragedModel(model)})


@pytest.mark.parametrize("world", [1, 2])
def test_a_state_that_is_changed_in_the_body_is_refused(world: int) -> None:
    with pytest.raises(UsageError, match=r"state\['average'\].* was changed in the loop's body.*@agent\.on_step"):
        run(world, changing_state, averaging)


@pytest.mark.parametrize("world", [1, 2])
def test_a_frozen_encoder_that_follows_in_the_forward_is_refused(world: int) -> None:
    script = stepping(lambda _, m, x, *__: m(x))
    with pytest.raises(UsageError, match=r"Frozen parameter key\.0\.weight was changed in .*@agent\.on_step"):
        run(world, script, lambda: sgd(loops.MoCo(moves=True)))


def test_parameters_that_an_optimizer_of_the_step_has_changed_are_not_refused() -> None:
    """As a GAN has it whose parts are frozen in turn."""

    def script(agent: InProcess) -> None:
        coder, critic = agent.whole.optimizers
        for x, _, _ in agent:
            agent.model.critic.requires_grad_(False)
            agent.backward(sum(loops.coder_terms(agent.model, x)))  # type: ignore[arg-type]
            agent.apply(coder)
            agent.model.critic.requires_grad_(True)
            agent.backward(loops.critic_loss(agent.model, x))
            agent.apply(critic)

    run(1, script, loops.adversaries)


# -- buffers


SPOILED: dict[str, tuple[Callable[[], Any], str, Loss]] = {
    "a queue": (lambda: loops.MoCo(moves=False), "queue is given rows", lambda m, x, y, at: m(x)),
    "a bank": (loops.Bank, "rows is given rows", lambda m, x, y, at: m(x, at)),
    "a codebook": (loops.Codebook, "sizes is given a sum", lambda m, x, y, at: m(x)),
}


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", SPOILED)
def test_a_buffer_that_becomes_no_mean_over_all_samples_is_refused(name: str, world: int) -> None:
    build, match, loss_of = SPOILED[name]
    with pytest.raises(UsageError, match=rf"Buffer {match}.*agent\.gather\(rows\).*buffers="):
        run(world, stepping(lambda _, *given: loss_of(*given)), lambda: sgd(build()))


def test_a_queue_of_keys_of_all_workers_is_that_of_one_process() -> None:
    def loss_of(agent: InProcess, m: Any, x: torch.Tensor, *_: Any) -> torch.Tensor:
        m.gather = agent.gather
        return m(x)

    script = stepping(loss_of, on_step=loops.MoCo.move)
    same_as_alone(lambda: sgd(loops.MoCo(moves=False)), script, plain(lambda m, x, *_: m(x), loops.MoCo.move))


def test_a_codebook_by_sums_over_all_workers_is_that_of_one_process() -> None:
    def loss_of(agent: InProcess, m: Any, x: torch.Tensor, *_: Any) -> torch.Tensor:
        m.total = agent.all_reduce
        return m(x)

    same_as_alone(lambda: sgd(loops.Codebook()), stepping(loss_of), plain(lambda m, x, *_: m(x)))


def test_a_bank_to_which_each_worker_adds_its_rows_is_that_of_one_process() -> None:
    def loss_of(m: Any, x: torch.Tensor, _: Any, at: torch.Tensor) -> torch.Tensor:
        return m(x, at)

    build = lambda: sgd(loops.Bank(), buffers={"rows": "sum"})  # noqa: E731
    same_as_alone(build, stepping(lambda _, *given: loss_of(*given)), plain(loss_of))


# -- adversaries


def alternating(first: Loss, second: Loss, after: Callable[[Any], None] = lambda _: None) -> tuple[Script, Any]:
    """One loss and optimizer, then the other; of a worker, and of one process."""

    def script(agent: InProcess) -> None:
        for x, _, _ in agent:
            for optimizer, loss_of in zip(agent.whole.optimizers, (first, second), strict=True):
                mean: Any = lambda grad: agent.all_reduce(len(x) * grad) / agent.all_reduce(len(x))  # noqa: B023, E731
                agent.backward(loss_of(agent.model, x, mean))
                agent.apply(optimizer)
                after(agent.model)

    def alone(single: Alone) -> None:
        for x, _, _ in single:
            for optimizer, loss_of in zip(single.optimizer, (first, second), strict=True):
                optimizer.zero_grad()
                loss_of(single.model, x, loops.own).backward()
                optimizer.step()
                after(single.model)

    return script, alone


def judged(group: Any, x: torch.Tensor, _mean: Any) -> torch.Tensor:
    return loops.critic_loss(group, x)


def test_losses_of_two_adversaries_have_each_their_own_denominators() -> None:
    """A mean over pixels beside one over samples, and in the same line two means over samples."""
    script, alone = alternating(lambda group, x, _: sum(loops.coder_terms(group, x)), judged)  # type: ignore[arg-type, return-value]
    same_as_alone(loops.adversaries, script, alone)


def test_a_weight_that_follows_from_gradients_of_a_convolution_is_refused_and_right_as_advised() -> None:
    script, _ = alternating(lambda group, x, _: loops.adaptive(group, x), judged)
    with pytest.raises(UsageError, match=r"convolution_backward .*agent\.all_reduce\(len\(x\) \* mean\)"):
        run(2, script, loops.adversaries)
    script, alone = alternating(loops.adaptive, judged)
    same_as_alone(loops.adversaries, script, alone)


def test_weights_that_are_clamped_in_a_body_that_is_given_up_are_put_back() -> None:
    """WGAN's critic; the first body of a job in which workers wait for each other is given up."""

    @torch.no_grad()
    def clamp(group: Any) -> None:
        for param in group.critic.parameters():
            param.clamp_(-0.1, 0.1)

    script, alone = alternating(lambda group, x, _: sum(loops.coder_terms(group, x)), judged, clamp)  # type: ignore[arg-type, return-value]
    same_as_alone(loops.adversaries, script, alone)


# -- what a loss is divided by


@pytest.mark.parametrize("of_torch", [False, True])
def test_a_number_of_objects_that_is_kept_above_zero_is_refused_and_right_as_advised(of_torch: bool) -> None:
    def loss_of(m: Any, x: torch.Tensor, y: torch.Tensor, _: Any) -> torch.Tensor:
        total, objects = loops.found_objects(m, x, y)
        return total / (objects.clamp(min=1) if of_torch else max(1, int(objects)))

    def advised(agent: InProcess, m: Any, x: torch.Tensor, y: torch.Tensor, _: Any) -> torch.Tensor:
        total, objects = loops.found_objects(m, x, y)
        return total / max(1, agent.all_reduce(int(objects)))

    with pytest.raises(UsageError, match=r"divided by 1 for \d samples.*agent\.all_reduce\(n\)"):
        run(2, stepping(lambda _, *given: loss_of(*given)), lambda: sgd(loops.mlp()))
    same_as_alone(lambda: sgd(loops.mlp()), stepping(advised, reduction="sum"), plain(loss_of))


def test_a_sum_that_is_divided_by_a_small_constant_is_refused() -> None:
    script = stepping(lambda _, m, x, y, __: functional.cross_entropy(m(x), y, reduction="sum") / 4)
    with pytest.raises(UsageError, match=r"divided by 4.*reduction='sum'"):
        run(2, script, lambda: sgd(loops.mlp()))


@pytest.mark.parametrize("loss_of", [loops.hardest, loops.correlated])
def test_a_loss_over_all_rows_is_refused_and_right_over_those_of_all_workers(loss_of: Loss) -> None:
    with pytest.raises(UsageError, match=r"puts the samples .* together.*agent\.gather\(outputs\)"):
        run(2, stepping(lambda _, m, x, y, __: loss_of(m, x, y)), lambda: sgd(loops.mlp()))
    script = stepping(lambda agent, m, x, y, _: loss_of(m, x, y, agent.gather))
    same_as_alone(lambda: sgd(loops.mlp()), script, plain(lambda m, x, y, _: loss_of(m, x, y)))


def bound(model: Any) -> None:
    with torch.no_grad():
        for param in model.parameters():
            param.clamp_(-0.2, 0.2)


@pytest.mark.parametrize("world", [1, 2])
def test_weights_that_are_bounded_behind_the_step_in_the_body_are_refused(world: int) -> None:
    """As of WGAN's critic, or what must not be negative: whoever takes the model over, or restores it, would not."""

    def script(agent: InProcess) -> None:
        for x, y, _ in agent:
            agent.step(functional.cross_entropy(agent.model(x), y))
            bound(agent.model)

    with pytest.raises(UsageError, match=r"Parameter 0\.weight was changed.*behind agent\.step.*@agent\.on_step"):
        run(world, script, lambda: sgd(loops.mlp()))


def test_weights_that_are_bounded_in_on_step_are_those_of_one_process() -> None:
    def loss_of(m: Any, x: torch.Tensor, y: torch.Tensor, _: Any) -> torch.Tensor:
        return functional.cross_entropy(m(x), y)

    script = stepping(lambda _, *given: loss_of(*given), on_step=bound)
    same_as_alone(lambda: sgd(loops.mlp()), script, plain(loss_of, after=bound))


# -- hooks on gradients


def hooked(hook: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], Any]:
    def build() -> Any:
        model = loops.mlp()
        for param in model.parameters():
            param.register_hook(hook)
        return sgd(model)

    return build


@pytest.mark.parametrize("hook", [lambda g: g.clamp(-0.02, 0.02), lambda g: g * (0.1 / (g.norm() + 1e-6)).clamp(max=1)])
def test_a_hook_that_clips_a_part_of_a_gradient_is_refused(hook: Any) -> None:
    with pytest.raises(UsageError, match=r"hook on the gradient of 0\.weight .*agent\.reduce\(\)"):
        run(1, stepping(lambda _, m, x, y, __: functional.cross_entropy(m(x), y)), hooked(hook))


def test_a_hook_that_is_linear_is_that_of_one_process() -> None:
    def loss_of(m: Any, x: torch.Tensor, y: torch.Tensor, _: Any) -> torch.Tensor:
        return functional.cross_entropy(m(x), y)

    build = hooked(lambda grad: 0.5 * (grad - grad.mean(0, keepdim=True)))
    same_as_alone(build, stepping(lambda _, *given: loss_of(*given)), plain(loss_of))


def behind(hook: Callable[[Any], None], *, early: bool) -> Callable[[], Any]:
    def build() -> Any:
        model = loops.mlp()
        for param in model.parameters() if early else ():
            param.register_post_accumulate_grad_hook(hook)
        return sgd(model)

    return build


def clamp_behind(param: Any) -> None:
    param.grad.clamp_(-0.02, 0.02)


def use_up(param: Any) -> None:
    param.data.sub_(0.1 * param.grad)
    param.grad = None


@pytest.mark.parametrize("hook", [clamp_behind, use_up])
@pytest.mark.parametrize("early", [True, False])
def test_a_hook_behind_a_gradient_that_clips_it_or_uses_it_up_is_refused(hook: Any, early: bool) -> None:
    """Before the Agent is made, or in between."""

    def script(agent: InProcess) -> None:
        for param in agent.model.parameters() if not early else ():
            param.register_post_accumulate_grad_hook(hook)
        for x, y, _ in agent:
            agent.step(functional.cross_entropy(agent.model(x), y))

    with pytest.raises(UsageError, match=r"hook on the gradient of 0\.weight .*agent\.reduce\(\)"):
        run(2, script, behind(hook, early=early))


def test_a_hook_behind_a_gradient_that_is_linear_or_only_looks_is_that_of_one_process() -> None:
    def halve(param: Any) -> None:
        param.grad.mul_(0.5)

    seen = list[float]()
    for hook in (halve, lambda param: seen.append(float(param.grad.norm()))):
        script = stepping(lambda _, m, x, y, __: functional.cross_entropy(m(x), y))
        alone = plain(lambda m, x, y, _: functional.cross_entropy(m(x), y))
        same_as_alone(behind(hook, early=True), script, alone)
    assert seen


@pytest.mark.parametrize("own", [True, False])
def test_an_optimizer_that_steps_in_backward_is_refused(own: bool) -> None:
    """Of memory it saves that of the gradients; each worker would step by its own part."""

    def build() -> Any:
        model = loops.mlp()
        each = {param: torch.optim.SGD([param], lr=0.1) for param in model.parameters()}

        def step(param: Any) -> None:
            each[param].step()
            each[param].zero_grad()

        for param in model.parameters():
            param.register_post_accumulate_grad_hook(step)
        return (model, one_optimizer(list(each.values())), {}) if own else sgd(model)

    with pytest.raises(UsageError, match=r"optimizer\.step\(\) was called by the script|SGD\.step\(\) would change"):
        run(2, stepping(lambda _, m, x, y, __: functional.cross_entropy(m(x), y)), build)


# -- other samples


def test_samples_of_a_loader_beside_the_agent_are_refused_and_those_of_an_evaluation_are_not() -> None:
    """As labelled and unlabelled ones are zipped."""

    def script(agent: InProcess) -> None:
        beside = DataLoader(DATA, 4)
        for (x, y, _), (other, _, _) in zip(agent, beside, strict=False):
            agent.step(functional.cross_entropy(agent.model(x), y) + agent.model(other).square().mean())

    def evaluating(agent: InProcess) -> None:
        for x, y, _ in agent:
            with torch.no_grad():
                seen.extend(agent.model(one) for one, _, _ in DataLoader(DATA, 22))
            agent.model.eval()
            seen.extend(agent.model(one) for one, _, _ in DataLoader(DATA, 22))
            agent.model.train()
            agent.step(functional.cross_entropy(agent.model(x), y))
            seen.extend(agent.model(one).detach() for one, _, _ in DataLoader(DATA, 22))  # without saying so

    seen: list[torch.Tensor] = []
    with pytest.raises(UsageError, match=r"A DataLoader gives a batch .* one data set .*no_grad"):
        run(1, script, lambda: sgd(loops.mlp()))
    (agent,) = run(1, evaluating, lambda: sgd(loops.mlp()))
    assert len(seen) == 6 * len(agent.history) > 6


# -- a count of batches


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("counts", [False, True])
def test_a_count_of_batches_that_is_none_of_steps_is_warned_of(
    counts: bool, nested: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """By who comes later, and only where the script counts so."""

    def loop(agent: InProcess, batches: Any) -> None:
        for at, batch in enumerate(batches) if counts else ((agent.step_number, one) for one in batches):
            if agent.name == "w1" and agent.step_number == DIES_AT:
                raise Died
            loss = functional.cross_entropy(agent.model(batch[0]), batch[1])
            agent.step(loss * min(1.0, 0.5 + at / 10))

    def script(agent: InProcess) -> None:
        for batches in agent.epochs() if nested else (agent,):
            loop(agent, batches)

    run(2, script, lambda: sgd(loops.mlp()), dies=(1, DIES_AT))
    said = [one.getMessage() for one in caplog.records if "enumerate" in one.getMessage()]
    late = [one for one in said if "counts 0 batches" in one]
    assert len(late) == counts, said
    assert all("at step 0" not in one for one in late), said
    assert all("agent.step_number" in one for one in said)
    assert len(said) <= 2 * counts, said  # by who has come, and by who was in the step that was given up
