"""Whether all members hold one replica; where they do not, what differs first, between whom, and what likely did it.

Owns what a replica consists of here, and the exchange that names the difference. Must not know steps or rows.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from antdt.strategies.allreduce import fingerprint
from antdt.strategies.allreduce.composition import ReplicasDiffer
from antdt.strategies.allreduce.memory import Buffers
from antdt.strategies.allreduce.rendezvous import Generation
from antdt.strategies.allreduce.state import gather_bytes
from antdt.strategies.base import GenerationClosed

log = logging.getLogger("antdt")

SHOWN_SIZE_BYTES_MAX = 4 * 2**20  # of a tensor, to find the first number that differs

LIKELY = {
    "setting": "A scheduler was stepped, or the setting changed, by some workers only. Give the scheduler to the "
    "Agent, antdt.Agent(..., scheduler=scheduler): it is stepped on every worker, saved, and restored with the model. "
    "What the script sets itself follows from agent.step_number, not from what this process has counted (enumerate).",
    "parameter": "Something besides agent.step changed it on some workers only (an optimizer of the script's own, "
    "clamping, copying, a learning rate set in the loop: a worker that takes no sample in a step has no batch). Do it "
    "in optimizer.register_step_post_hook, where every worker comes by in every step. Random numbers are each worker's "
    "own; and an optimizer whose state_dict() leaves something out (a count of its own, an optimizer inside of it) "
    "makes another step on a worker that comes later. If nothing of the kind is done, the workers compute differently "
    "(hardware, torch, threads): AllReduce(compare_every=0) accepts that.",
    "trained parameters": "Some workers have frozen or unfrozen parameters in this step, and others not: do it where "
    "all of them come by, by what all know alike (agent.step_number, agent.epoch, a callback of agent.on_epoch).",
    "frozen parameter": "It is not trained, so the script changed it on some workers only: set it before the Agent is "
    "made, or in a function under @agent.on_step, by what all workers know alike.",
    "buffer": "A hook of the optimizer changed it on some workers only, or by what only they know: make it depend on "
    "what all workers know alike.",
}


class Part(NamedTuple):
    """Something that must be equal everywhere. kind: a key of LIKELY. name: as in the model's state."""

    kind: str
    name: str
    value: Any


class Replica:
    """What this member holds: parameters, buffers and the optimizer's numbers.

    settings: fingerprint of the numbers of all parameter groups as they were when the optimizer stepped last; 0 before.
    Buffers are those of the last applied step: what forward does to them later is reduced in any case.
    """

    def __init__(self, model: torch.nn.Module, optimizer: Any, buffers: Buffers) -> None:
        self.model, self.optimizer, self.buffers = model, optimizer, buffers
        self._params, self._mask, self._trained = list(model.parameters()), tuple[Any, ...](), 0
        self.forget()

    def forget(self) -> None:
        """Another generation: what was stepped by before was not for everybody."""
        self._numbers: tuple[Any, ...] = ()
        self._settings: list[Any] = []
        self._stepped_by: tuple[Any, ...] = ()
        self.settings = 0

    def stepped(self, factor: float) -> None:
        """The optimizer has stepped. factor: what its learning rates were multiplied by. Its numbers are worked out
        anew where one of them is another object than behind the step before.
        """
        groups = self.optimizer.param_groups
        stepped_by = factor, [[*map(id, group.values())] for group in groups]
        if stepped_by == self._stepped_by:
            return
        self._settings = [[*group.values()] for group in groups]  # an id is that of one object while it lives
        self._stepped_by = stepped_by if fingerprint.are_plain(groups) else ()
        numbers = (factor, *fingerprint.numbers_of(self.optimizer.param_groups))
        if numbers != self._numbers or not self.settings:
            self._numbers, self.settings = numbers, fingerprint.of_numbers(numbers)

    def trained(self, *more: Any) -> int:
        """Fingerprint of which parameters are trained, and of whatever else."""
        mask = (*more, *[param.requires_grad for param in self._params])
        if mask != self._mask:
            self._mask, self._trained = mask, fingerprint.of_numbers(mask)
        return self._trained

    def state(self, *, frozen: bool) -> int:
        """Fingerprint of all tensors; of frozen parameters, which may be huge, only where it is asked for."""
        return fingerprint.of_tensors(self._tensors(frozen))

    def _tensors(self, frozen: bool) -> Iterator[torch.Tensor]:
        yield from (param for param in self.model.parameters() if frozen or param.requires_grad)
        yield from self.buffers.kept()
        yield from fingerprint.tensors_of(self.optimizer.param_groups)

    def parts(self) -> list[Part]:
        """Everything apart, with its name; what is likely the cause of the others comes first."""
        names = ["the plan's factor of learning rates", *fingerprint.names_of(self.optimizer.param_groups)]
        found = [Part("setting", "number of parameter groups", len(self.optimizer.param_groups))]
        found += [Part("setting", name, value) for name, value in zip(names, self._numbers, strict=False)]
        params = list(self.model.named_parameters())
        trained = ", ".join(name for name, param in params if param.requires_grad)
        found.append(Part("trained parameters", "by name", trained))
        found += [Part("parameter", name, param) for name, param in params if param.requires_grad]
        found += [Part("frozen parameter", name, param) for name, param in params if not param.requires_grad]
        found += [Part("buffer", name, value) for name, value in self.buffers.kept_apart()]
        settings = fingerprint.tensors_of(self.optimizer.param_groups)
        return found + [Part("setting", f"tensor {at} of the parameter groups", t) for at, t in enumerate(settings)]


def difference(
    generation: Generation, replica: Replica, workers: Sequence[str], step: int, between: tuple[int, int]
) -> ReplicasDiffer:
    """What differs between these two ranks. All members call it alike, each with its own replica."""
    first, second = (workers[rank] for rank in between)
    parts, at = replica.parts(), None
    shown: tuple[str, object, object] = "", "one", "another"
    try:
        tables = [json.loads(one) for one in gather_bytes(generation, json.dumps([_digest(p) for p in parts]).encode())]
        pairs = enumerate(zip(tables[between[0]], tables[between[1]], strict=False))
        at = next((at for at, (left, right) in pairs if left != right), None)
        if at is not None:
            values = gather_bytes(generation, _raw(parts[at].value))
            shown = _shown(parts[at].value, values[between[0]], values[between[1]])
    except GenerationClosed:  # somebody who knows as much has ended already
        log.warning("what differs could not be compared to its end: a worker ended meanwhile")
    if at is None:
        return _differ(step, "the model", first, second, ("one", "another"), LIKELY["parameter"])
    part, (where, left, right) = parts[at], shown
    return _differ(step, f"{part.kind} {part.name}{where}", first, second, (left, right), LIKELY[part.kind])


def check_file(parts: Iterable[Part], saved: Mapping[str, torch.Tensor], step: int, file: str) -> None:
    """Raises ReplicasDiffer where a tensor of this replica is not that of a file of the same step."""
    for part in parts:
        other = saved.get(part.name)
        if other is None or not isinstance(part.value, torch.Tensor) or part.kind == "setting":
            continue
        if fingerprint.of_tensors([part.value]) != fingerprint.of_tensors([other]):
            where, left, right = _shown(part.value, _raw(other), _raw(part.value))
            raise _differ(step, f"{part.kind} {part.name}{where}", file, "here", (left, right), LIKELY[part.kind])


def _differ(step: int, what: str, first: str, second: str, values: tuple[object, object], hint: str) -> ReplicasDiffer:
    expected, found = f"{values[0]} ({first})", f"{values[1]} ({second})"
    return ReplicasDiffer(f"After step {step}, replicas are not equal: {what}", expected, found, hint)


def _digest(part: Part) -> int:
    value = part.value
    return fingerprint.of_tensors([value]) if isinstance(value, torch.Tensor) else fingerprint.of_numbers([value])


def _raw(value: Any) -> bytes:
    if not isinstance(value, torch.Tensor):
        return repr(value).encode()
    flat = value.detach().reshape(-1)[: SHOWN_SIZE_BYTES_MAX // value.element_size()]
    return bytes(flat.cpu().contiguous().view(torch.uint8).numpy())


def _shown(value: Any, left: bytes, right: bytes) -> tuple[str, object, object]:
    """Where the first number is that differs, and both."""
    if not isinstance(value, torch.Tensor):
        return "", left.decode(), right.decode()
    flats = [torch.frombuffer(bytearray(one), dtype=torch.uint8).view(value.dtype) for one in (left, right)]
    size = value.element_size()
    at = next((i // size for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
    if at is None:
        return f" behind its first {len(flats[0]):,} numbers", "one", "another"
    index = [int(i) for i in torch.unravel_index(torch.tensor(at, device="cpu"), value.shape)] if value.dim() else []
    return f"[{', '.join(map(str, index))}]" if index else "", flats[0][at].item(), flats[1][at].item()
