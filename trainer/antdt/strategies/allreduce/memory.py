"""What a step changes besides parameters, and must not have changed if it is aborted: buffers and random numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.distributed import ReduceOp

from antdt.strategies.allreduce.rendezvous import Generation

Place = tuple[torch.nn.Module, str]


class _Group:
    """Buffers of one dtype and device, kept as one flat copy.

    By module and name, because a module may put a new tensor in a buffer's place. reduced: part of the model's state,
    so it must be equal on all members.
    """

    def __init__(self, named: Mapping[str, Place], reduced: bool) -> None:
        self.names, self.places, self.reduced = list(named), list(named.values()), reduced
        self.kept = self._flat()
        self.is_float = self.kept.is_floating_point() or self.kept.is_complex()

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

    def change(self, weight: float) -> torch.Tensor:
        """What this member adds to the mean: only what it changed, so that constants stay as they are, bit by bit."""
        now = self._flat()
        change = torch.where(now == self.kept, torch.zeros((), dtype=now.dtype, device=now.device), now - self.kept)
        return change.mul_(weight) if weight else change.zero_()


class Buffers:
    """The model's buffers: floats become the mean weighted by samples, whole numbers the largest."""

    def __init__(self, model: torch.nn.Module) -> None:
        persistent = set(model.state_dict())
        kinds: dict[Any, dict[str, Place]] = {}
        for prefix, module in model.named_modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    path = f"{prefix}.{name}" if prefix else name
                    kind = buffer.dtype, buffer.device, path in persistent
                    kinds.setdefault(kind, {})[path] = module, name
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

    def restore(self) -> None:
        """As they were when last kept."""
        for group in self._groups:
            group.write(group.kept)
        self._flight = []

    def launch(self, generation: Generation, weight: float) -> None:
        """weight: this member's samples over the reference batch."""
        for group in self._groups:
            if group.reduced and generation.world > 1:
                flat = group.change(weight) if group.is_float else group._flat()
                work = generation.allreduce(flat, ReduceOp.SUM if group.is_float else ReduceOp.MAX)
                self._flight.append((group, flat, work))

    def wait(self, generation: Generation) -> None:
        """Until all members' parts are in; the model's buffers are still this member's own."""
        for _, _, work in self._flight:
            generation.wait(work)

    def finish(self, factor: float) -> None:
        """Overwrites the model's buffers. factor: reference batch over total."""
        for group, flat, _ in self._flight:
            group.write(group.kept + flat.mul_(factor) if group.is_float else flat)
        self._flight = []


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
