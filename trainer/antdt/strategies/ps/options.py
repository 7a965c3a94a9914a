"""What a script states of parameter servers. Must not know how any of it is done."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from antdt_schemas.errors import UsageError
from antdt_schemas.strategies import COLONY, DROP, EVEN

from antdt.strategies.base import Here, Strategy, StrategyOptions

if TYPE_CHECKING:
    import torch

BSP, ASP, SSP = "bsp", "asp", "ssp"
MODES = (BSP, ASP, SSP)
SHARDINGS = ("", EVEN, COLONY)
LATE = ("recompute", DROP)


@dataclass(frozen=True, slots=True)
class ParameterServer:
    """Servers hold the model, and step the optimizer; workers pull parameters, compute, and push gradients.

    `antdt launch -n 4 --servers 2 train.py` starts both, and all run the script: a server takes its part of the model
    from it, and the class and settings of its optimizer, serves where the loop would be, and ends there. Workers hold
    the parameters of the version that they last pulled.

    mode: "bsp": a version is made of one contribution of each worker that has samples, as one step of the mean over all
    of them. "asp": of each contribution as it comes. "ssp": so, and no worker is more than `staleness` contributions
    ahead of the slowest one (Ho et al., 2013). backup: with bsp, so many of the slowest contributions a version does
    not wait for (Chen et al., arXiv 1604.00981): a late one is computed anew once, then carried into the next version,
    and never lost. A plan may ask for more (BACKUP_WORKERS).

    Samples are leased, and each is in one version; in which depends on who is fast. A worker that dies holds up nobody:
    its samples return. When a server dies, all servers go back to the newest checkpoint, and the ledger with them:
    `AgentOptions(checkpoint_every_steps=)` says how much that is at most. antdt.Embedding holds tables whose rows
    travel only where they are used.

    sharding: to whom samples are leased. "": to whoever asks for the next ones. "even": those of an epoch are dealt out
    evenly ahead, and each worker trains its own part, also while others have nothing left. "colony": so, and whoever
    has nothing left to begin takes shards over from others that have not begun them, from whom it chooses by itself.

    late: "drop" is the classic form of backup workers: with bsp, a contribution that comes too late is thrown away, and
    **its samples are lost**, in no model and in quarantine. It is here to be compared with: such a job is not exactly
    once, and its audit names what it lost.

    Optimizers that work element by element run on servers (SGD, Adam, AdamW, Adagrad and the like). What needs all
    gradients at one place, or a step that all workers make together, is refused: clip_grad_norm, scaler, state, several
    optimizers, BatchNorm, agent.skip, stop, reduce, gather and all_reduce.

    pending_max: versions that may await their commit. unreachable_s: how long a server may not answer before a worker
    asks for another generation. servers: how many, as the launcher says.

    Raises UsageError for values that are none.
    """

    mode: Literal["bsp", "asp", "ssp"] = "bsp"
    staleness: int = 3
    backup: int = 0
    sharding: Literal["", "even", "colony"] = ""
    late: Literal["recompute", "drop"] = "recompute"
    pending_max: int = 4096
    unreachable_s: float = 60.0
    servers: int = 0
    has_common_step: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"ParameterServer(mode={self.mode!r}): take one of {', '.join(map(repr, MODES))}.")
        if not _whole(self.staleness, 1) or not _whole(self.backup, 0) or not _whole(self.servers, 0):
            raise UsageError("ParameterServer: staleness >= 1, backup >= 0 and servers >= 0 are whole numbers.")
        if self.backup and self.mode != BSP:
            raise UsageError(
                f'ParameterServer(mode={self.mode!r}, backup={self.backup}): only mode="bsp" waits for workers, so '
                "only there is somebody not to wait for: leave backup out."
            )
        if self.sharding not in SHARDINGS:
            known = ", ".join(map(repr, SHARDINGS))
            raise UsageError(f"ParameterServer(sharding={self.sharding!r}): take one of {known}.")
        if self.late not in LATE:
            raise UsageError(f"ParameterServer(late={self.late!r}): take one of {', '.join(map(repr, LATE))}.")
        if self.late == DROP and (self.mode != BSP or self.sharding):
            raise UsageError('ParameterServer(late="drop"): only mode="bsp" knows who is late; leave sharding out.')
        if self.pending_max < 1 or not self.unreachable_s > 0:
            raise UsageError("ParameterServer: pending_max >= 1, unreachable_s > 0.")

    @property
    def name(self) -> str:
        """That of the job's records: other servers hold other parts."""
        mode = f"{SSP}={self.staleness}" if self.mode == SSP else self.mode
        more = DROP if self.late == DROP else self.sharding
        return f"ps-{mode}{'/' if more else ''}{more}/servers={self.servers}"

    def placed(self, servers: int, *, alone: bool) -> StrategyOptions:
        """With the servers of the launch; without a job the process steps the optimizer itself."""
        if alone:
            from antdt.strategies.ps.alone import InOneProcess  # torch, which options do without

            return InOneProcess()
        if not servers:
            raise UsageError(
                "ParameterServer needs servers, and this launch has none: `antdt launch -n 4 --servers 2 train.py`."
            )
        return replace(self, servers=servers)

    def member(self, model: torch.nn.Module, optimizer: Any, here: Here) -> Strategy:
        """One worker's part in it, or one server's."""
        from antdt.strategies.ps.member import member_of  # which needs these options

        return member_of(model, optimizer, self, here)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
