"""What a process is in its job: a worker that holds the model, one whose model servers hold, or such a server."""

from __future__ import annotations

from antdt_schemas.strategies import servers_of

from antdt.connect.settings import SERVER, Settings
from antdt.driving.membership import Membership
from antdt.strategies.base import StrategyOptions


def placed(strategy: StrategyOptions, settings: Settings) -> StrategyOptions:
    """The strategy, where this process is. Raises UsageError where it cannot be used there."""
    return strategy.placed(settings.servers, alone=settings.alone)


def kind_of(settings: Settings, strategy: str) -> type[Membership]:
    """The class that carries out what its life asks for."""
    if not servers_of(strategy):
        return Membership
    from antdt.driving import served  # which needs a library that other jobs do without

    return served.ServerOfWorkers if settings.role == SERVER else served.WorkerOfServers
