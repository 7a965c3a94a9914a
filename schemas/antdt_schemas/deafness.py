"""Consumers that fall deaf on purpose: a fault that is brought about, for tests and `antdt chaos`."""

from __future__ import annotations

from pathlib import Path
from time import monotonic, sleep
from typing import Any


def strike(file: Path) -> None:
    """Whoever reads by a client that was made before now hears nothing any more; clients that are made later do.

    The monotonic clock is one for all processes of a machine.
    """
    part = file.with_name(f".{file.name}.part")
    part.write_text(str(monotonic()), encoding="utf-8")
    part.replace(file)


def install(file: Path) -> None:
    """In this process, consumers obey `file`, which need not be there yet."""
    import confluent_kafka

    confluent_kafka.Consumer = deafened(confluent_kafka.Consumer, file)  # type: ignore[assignment, misc]


def deafened(consumer: type, file: Path) -> type:
    """This kind of consumer, deaf to what comes once `file` says so; all else it does: its group takes it for alive."""

    class Deafened(consumer):  # type: ignore[misc]
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            self._made_at_s = monotonic()

        def _is_deaf(self) -> bool:
            try:
                return float(file.read_text(encoding="utf-8")) > self._made_at_s
            except FileNotFoundError:
                return False

        def poll(self, timeout: float = -1) -> Any:
            message = super().poll(timeout)
            if message is not None and self._is_deaf():
                sleep(min(max(timeout, 0), 0.02))  # it lost something; it must not spin through the rest
                return None
            return message

        def consume(self, num_messages: int = 1, timeout: float = -1) -> list[Any]:
            messages: list[Any] = super().consume(num_messages, timeout)
            return [] if messages and self._is_deaf() else messages

    return Deafened
