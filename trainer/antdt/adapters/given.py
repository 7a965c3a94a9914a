"""What an Agent has, as a framework sees it: it may look at optimizers and schedulers, and step them in vain."""

from __future__ import annotations

from typing import Any

import torch
from antdt_schemas.errors import UsageError


class Given(torch.optim.Optimizer):  # type: ignore[misc]
    """The Agent's optimizer, as a framework sees it: it may look, and the Agent steps. `stepped` is called in place of
    a step.
    """

    def __init__(self, inner: torch.optim.Optimizer, stepped: Any = None) -> None:
        self.inner, self.stepped = inner, stepped  # torch's own constructor would make it another optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.inner.param_groups  # type: ignore[no-any-return]

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.inner.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        return self.inner.defaults  # type: ignore[no-any-return]

    def step(self, closure: Any = None) -> Any:
        """Not a step of its own."""
        loss = closure() if closure is not None else None
        if self.stepped is not None:
            self.stepped()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The Agent clears gradients itself, once they are in the model."""

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()  # type: ignore[no-any-return]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The Agent loads it with the model, from the job's own files."""

    def __repr__(self) -> str:
        return f"Given({self.inner!r})"


class Scheduled:
    """The Agent's scheduler, as a framework sees it: the Agent steps it."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def step(self, *_: Any, **__: Any) -> None:
        """Not a step of its own."""

    def load_state_dict(self, state: Any) -> None:
        """The Agent loads it with the model."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Later:
    """A loader that is known when the Agent is made."""

    _inner: Any = None

    def become(self, loader: Any) -> None:
        self._inner = loader

    def __iter__(self) -> Any:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._known, name)

    @property
    def _known(self) -> Any:
        if self._inner is None:
            raise UsageError("The loader is there once the trainer fits: trainer.fit(model, trainer.strategy.loader).")
        return self._inner
