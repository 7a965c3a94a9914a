"""What a step changes besides parameters, and must not have changed if it is aborted: buffers and random numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from antdt_schemas.errors import UsageError
from torch.distributed import ReduceOp

from antdt.strategies.allreduce.rendezvous import Generation

Place = tuple[torch.nn.Module, str]


class _Group:
    """Buffers of one dtype and device, kept as one flat copy.

    By module and name, because a module may put a new tensor in a buffer's place. rule: how those of all members become
    one; "local" ones do not.
    """

    def __init__(self, named: Mapping[str, Place], rule: str) -> None:
        self.names, self.places, self.rule = list(named), list(named.values()), rule
        self.reduced, self.adds_up = rule != "local", rule in ("mean", "sum")
        self.kept = self._flat()

    def _flat(self) -> torch.Tensor:
        return torch.cat([module._buffers[name].detach().reshape(-1) for module, name in self.places])

    def keep(self) -> None:
        self.kept = self._flat()

    def write(self, flat: torch.Tensor) -> None:
        with torch.no_grad():
            at = 0
            for module, name in self.places:
                buffer = module._buffers[name]
                buffer.copy_(flat[at : at + buffer.numel()].view_as(buffer))
                at += buffer.numel()

    def apart(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each buffer as it was kept."""
        at = 0
        for name, (module, own) in zip(self.names, self.places, strict=True):
            buffer = module._buffers[own]
            yield name, self.kept[at : at + buffer.numel()].view(buffer.shape)
            at += buffer.numel()

    def changed(self) -> Iterator[str]:
        """Names of those that are not as they were kept."""
        for (name, kept), (module, own) in zip(self.apart(), self.places, strict=True):
            if not torch.equal(kept, module._buffers[own]):
                yield name

    def part(self, generation: Generation, weight: float) -> tuple[torch.Tensor, Any]:
        """What this member gives, and how it is reduced."""
        if self.adds_up:
            return self.change(weight if self.rule == "mean" else 1.0), ReduceOp.SUM
        if self.rule == "max":
            return self._flat(), ReduceOp.MAX
        return self._flat() if generation.rank == 0 else torch.zeros_like(self.kept), ReduceOp.SUM

    def change(self, weight: float) -> torch.Tensor:
        """What this member adds: only what it changed, so that constants stay as they are, bit by bit."""
        now = self._flat()
        change = torch.where(now == self.kept, torch.zeros((), dtype=now.dtype, device=now.device), now - self.kept)
        return change if weight == 1.0 else change.mul_(weight) if weight else change.zero_()


class Buffers:
    """The model's buffers: floats become the mean weighted by samples, whole numbers the largest, unless a rule says
    otherwise. rules: of buffers by name, or by a pattern such as `encoder.*`; see `Once`.
    """

    def __init__(self, model: torch.nn.Module, rules: Mapping[str, str] | None = None) -> None:
        persistent, rules = set(model.state_dict()), rules or {}
        kinds: dict[Any, dict[str, Place]] = {}
        unused, self._stated = set(rules), set[str]()
        for prefix, module in model.named_modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    path = f"{prefix}.{name}" if prefix else name
                    pattern = next((one for one in rules if fnmatchcase(path, one)), None)
                    unused.discard(pattern or "")
                    if pattern is not None:
                        self._stated.add(path)
                    rule = _rule_of(path, buffer, rules.get(pattern or ""), path in persistent)
                    kinds.setdefault((buffer.dtype, buffer.device, rule), {})[path] = module, name
        if unused:
            raise UsageError(f"buffers: the model has none that is called {', '.join(sorted(unused))}.")
        self._groups = [_Group(places, kind[2]) for kind, places in kinds.items()]
        self._flight: list[tuple[_Group, torch.Tensor, Any]] = []

    def keep(self) -> None:
        """Remembers the buffers as they are."""
        for group in self._groups:
            group.keep()
        self._flight = []

    def kept(self) -> list[torch.Tensor]:
        """Those that are part of the state, as they were last kept, flat."""
        return [group.kept for group in self._groups if group.reduced]

    def kept_apart(self) -> list[tuple[str, torch.Tensor]]:
        """The same one by one, with their names."""
        return [one for group in self._groups if group.reduced for one in group.apart()]

    def averaged(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Those that become the mean, or the largest, as nobody has said anything else."""
        for group in self._groups:
            if group.rule in ("mean", "max"):
                for name, (module, own) in zip(group.names, group.places, strict=True):
                    if name not in self._stated:
                        yield name, module._buffers[own]

    def restore(self) -> None:
        """As they were when last kept."""
        for group in self._groups:
            group.write(group.kept)
        self._flight = []

    def changed(self) -> str:
        """Which buffers, that are part of the state, are not as they were kept."""
        changed = (name for group in self._groups if group.reduced for name in group.changed())
        return next(changed, "")

    def launch(self, generation: Generation, weight: float) -> None:
        """weight: this member's samples over the reference batch."""
        for group in self._groups:
            if group.reduced and generation.world > 1:
                flat, operation = group.part(generation, weight)
                self._flight.append((group, flat, generation.allreduce(flat, operation)))

    def wait(self, generation: Generation) -> None:
        """Until all members' parts are in; the model's buffers are still this member's own."""
        for _, _, work in self._flight:
            generation.wait(work)

    def finish(self, factor: float) -> None:
        """Overwrites the model's buffers. factor: reference batch over total."""
        for group, flat, _ in self._flight:
            if group.adds_up:
                flat = group.kept + (flat if group.rule == "sum" else flat.mul_(factor))
            group.write(flat)
        self._flight = []


def _rule_of(path: str, buffer: torch.Tensor, rule: str | None, persistent: bool) -> str:
    """What is no part of the model's state stays each member's own, unless the script says otherwise."""
    adds = buffer.is_floating_point() or buffer.is_complex()
    if rule is None:
        return ("mean" if adds else "max") if persistent else "local"
    wrong = (rule == "mean" and not adds) or (rule == "max" and buffer.is_complex())
    if wrong or (rule in ("sum", "first") and buffer.dtype is torch.bool):
        raise UsageError(f"buffers: {path} is {buffer.dtype}, and has no {rule} over the workers.")
    return rule


class RandomState:
    """torch's random numbers on the CPU and on the given CUDA devices."""

    def __init__(self, devices: set[torch.device]) -> None:
        self.devices = sorted((device for device in devices if device.type == "cuda"), key=str)
        self.keep()

    def keep(self) -> None:
        """Remembers where they are."""
        self._cpu = torch.get_rng_state()
        self._cuda = [torch.cuda.get_rng_state(device) for device in self.devices]

    def restore(self) -> None:
        """As they were when last kept."""
        torch.set_rng_state(self._cpu)
        for device, state in zip(self.devices, self._cuda, strict=True):
            torch.cuda.set_rng_state(state, device)
