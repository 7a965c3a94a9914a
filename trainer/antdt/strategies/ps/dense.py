"""One server's pieces of all dense parameters, under optimizers of the script's own classes.

Rules
    Hyperparameters are read from the script's optimizer before each step, so a scheduler changes them here as well.
    What workers are sent is a copy of one version, made once for all of them, in a buffer that is filled again only
    when all of it has left: parameters change in place, and messages are not copied.

Must not know workers, versions or files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from antdt.strategies.ps import wire
from antdt.strategies.ps.layout import Layout
from antdt.strategies.together import optimizers_of

# Of how a step is computed, not of what it is; servers compute on the CPU.
COMPUTED = {"foreach": None, "capturable": False, "differentiable": False, "fused": None}
FUSED = ("SGD", "Adam", "AdamW", "Adagrad")


class Outgoing:
    """Copies of the parameters as they are sent. `current`: that of this version, once somebody has asked for it."""

    def __init__(self) -> None:
        self.current: list[torch.Tensor] | None = None
        self._copies: list[tuple[list[torch.Tensor], list[Any]]] = []  # with who still sends from them

    def of(self, params: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The copy of this version."""
        if self.current is None:
            free = self._free()
            self.current = self._new(params) if free is None else free
            for copy, param in zip(self.current, params, strict=True):
                copy.copy_(param.detach())
        return self.current

    def sent(self, tracker: Any) -> None:
        """The current copy is on its way until the tracker is done."""
        for buffers, trackers in self._copies:
            if buffers is self.current:
                trackers[:] = [one for one in trackers if not one.done]
                trackers.append(tracker)

    def outdated(self) -> None:
        """The parameters change now."""
        self.current = None

    def _free(self) -> list[torch.Tensor] | None:
        for buffers, trackers in self._copies:
            if all(one.done for one in trackers):
                return buffers
        return None

    def _new(self, params: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        made = [torch.empty_like(param) for param in params]
        self._copies.append((made, []))
        return made


class Dense:
    """`params`: one flat parameter for each block. `optimizers`: as many as the script's, with its groups."""

    def __init__(self, layout: Layout, model: torch.nn.Module, optimizer: Any, part: int, servers: int) -> None:
        self.layout, self.outgoing = layout, Outgoing()
        self._theirs = optimizers_of(optimizer)
        named = dict(model.named_parameters())
        self.params = []
        for block in layout.blocks:
            flat = torch.cat([named[name].detach().reshape(-1).cpu() for name in block.names])
            mine = flat[block.piece(part, servers)].clone()
            self.params.append(torch.nn.Parameter(mine))
            self.params[-1].grad = torch.zeros_like(mine)
        self.optimizers = [self._made(at, one) for at, one in enumerate(self._theirs)]

    def _made(self, at: int, theirs: Any) -> Any:
        """One of the same class and groups over our pieces; None where it has none."""
        groups = []
        for number, group in enumerate(theirs.param_groups):
            mine = [
                p
                for p, b in zip(self.params, self.layout.blocks, strict=True)
                if (b.optimizer, b.group) == (at, number)
            ]
            if mine:
                settings = {name: value for name, value in group.items() if name != "params"}
                fused = type(theirs).__name__ in FUSED and all(
                    param.dtype in (torch.float32, torch.float64) for param in mine
                )
                groups.append(
                    {
                        **settings,
                        **_computed(settings),
                        **({"fused": True} if fused else {}),
                        "params": mine,
                        "of": number,
                    }
                )
        return type(theirs)(groups, lr=float(groups[0].get("lr", 1.0))) if groups else None

    def step(self, gradients: Sequence[tuple[float, Sequence[wire.Segment]]], factor: float) -> None:
        """One step by the sum of these, each times its number, with the learning rates times `factor`."""
        self.outgoing.outdated()
        for at, param in enumerate(self.params):
            for number, (times, segments) in enumerate(gradients):
                add_into(param.grad, segments[at], times, first=number == 0)
        for theirs, ours in zip(self._theirs, self.optimizers, strict=True):
            if ours is not None:
                for group in ours.param_groups:
                    self._take_settings(group, theirs.param_groups[group["of"]], factor)
                ours.step()

    @staticmethod
    def _take_settings(group: dict[str, Any], theirs: dict[str, Any], factor: float) -> None:
        group.update({name: value for name, value in theirs.items() if name != "params" and name not in COMPUTED})
        if "lr" in group:
            group["lr"] = float(group["lr"]) * factor

    def check(self, segments: Sequence[wire.Segment]) -> str:
        """Why these are no gradient of our pieces; empty if they are."""
        for block, param, segment in zip(self.layout.blocks, self.params, segments, strict=True):
            size = sum(len(frame) for frame in segment)
            if size != param.numel() * param.element_size():
                return f"{size} bytes for {param.numel()} numbers of {block.dtype}"
        return ""

    def is_finite(self) -> bool:
        """Whether all parameters are."""
        return all(bool(torch.isfinite(param.detach().sum(dtype=torch.float64))) for param in self.params)

    # -- files

    def tensors(self) -> Iterable[tuple[str, torch.Tensor]]:
        """Parameters and the optimizers' state, by names of a file."""
        for at, param in enumerate(self.params):
            yield f"dense.{at}", param.detach()
        for at, one in enumerate(self.optimizers):
            state = one.state_dict()["state"] if one is not None else {}
            for index, values in state.items():
                for name, value in values.items():
                    if isinstance(value, torch.Tensor):
                        yield f"state.{at}.{index}.{name}", value

    def others(self) -> list[dict[int, dict[str, Any]]]:
        """The optimizers' state that is no tensor."""
        return [
            {
                i: {n: v for n, v in values.items() if not isinstance(v, torch.Tensor)}
                for i, values in one.state_dict()["state"].items()
            }
            if one is not None
            else {}
            for one in self.optimizers
        ]

    def load(self, tensors: dict[str, torch.Tensor], others: list[dict[int, dict[str, Any]]]) -> None:
        """The inverse."""
        self.outgoing.outdated()
        for at, param in enumerate(self.params):
            param.detach().copy_(tensors[f"dense.{at}"])
        for at, one in enumerate(self.optimizers):
            if one is not None:
                state: dict[int, dict[str, Any]] = {index: dict(values) for index, values in others[at].items()}
                for name, value in tensors.items():
                    kind, _, rest = name.partition(".")
                    if kind == "state" and rest.startswith(f"{at}."):
                        _, index, key = rest.split(".", 2)
                        state.setdefault(int(index), {})[key] = value.clone()
                one.load_state_dict({"state": state, "param_groups": one.state_dict()["param_groups"]})


def add_into(target: torch.Tensor, segment: wire.Segment, times: float, first: bool) -> None:
    """Add numbers that come in frames, each times a factor; the first ones replace what was there."""
    at = 0
    for frame in segment:
        part = wire.tensor_of(frame, target.dtype)
        place = target[at : at + len(part)]
        if first:
            torch.mul(part, times, out=place)
        else:
            place.add_(part, alpha=times)
        at += len(part)
    assert at == len(target), f"{at} numbers of {len(target)}"


def _computed(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in COMPUTED.items() if name in settings}
