"""antdt: distributed training that stays fast when workers are slow, and can prove what it trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from antdt.agent import Agent, AgentOptions, AllReduce, LoadingOptions

__all__ = ["Agent", "AgentOptions", "AllReduce", "LoadingOptions"]


def __getattr__(name: str) -> Any:
    """torch is imported with the Agent only: the launcher beside the workers does without it."""
    if name in __all__:
        from antdt import agent

        return getattr(agent, name)
    raise AttributeError(f"module 'antdt' has no attribute {name!r}")
