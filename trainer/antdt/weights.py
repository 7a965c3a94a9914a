"""The weights of a model as a file for whoever uses them: evaluation, inference, another library. Nothing of a job is
needed to read them.

`NAME.safetensors` is that format, with step, lineage and job as its metadata; any other name is what `torch.save` makes
of the state dict. A file is there whole or not at all. Owns what is in such a file. Must not know of the checkpoints
that a job goes on from, which are something else (`files.checkpoint`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from antdt_schemas.errors import AntdtError, Unavailable, UsageError

from antdt.files import checkpoint
from antdt.files.part_files import Manifest, is_manifest, parts_of
from antdt.job import AgentOptions

SUFFIX = ".safetensors"
# Keys of the metadata.
VALUE, RUN, TIED = "antdt.value", "antdt.run", "antdt.tied"

MARGIN_S, SLOW_BYTES_A_S = 20.0, 10e6  # a disk that is slower than that is stuck

Mode = Literal["max", "min"]
Busy = Callable[[float, str], AbstractContextManager[None]]


class Writer(Protocol):
    """Of whom the weights are: whether this worker writes for all, and what to write beside them."""

    @property
    def is_main(self) -> bool: ...
    def labels(self) -> dict[str, str]: ...


class Weights:
    """Of one Agent's model. busy: what writing is announced by, so that nobody is given up for it."""

    def __init__(self, model: torch.nn.Module, writer: Writer, options: AgentOptions, busy: Busy) -> None:
        self._model, self._writer, self._options, self._busy = model, writer, options, busy

    def made(self, step: int) -> None:
        """A step was made: perhaps it is one whose weights are wanted."""
        every = self._options.save_every_steps
        if every and step % every == 0:
            self.save(self._options.save_path.format(step=step))

    def save(self, path: str | os.PathLike[str], **more: str) -> bool:
        """Write them, if this worker is the one who does. Raises Unavailable, UsageError."""
        if self._writer.is_main:
            size_bytes = sum(p.numel() * p.element_size() for p in self._model.parameters())
            with self._busy(MARGIN_S + size_bytes / SLOW_BYTES_A_S, f"saves {path}"):
                write(self._model, Path(path), {**self._writer.labels(), **more})
        return self._writer.is_main

    def keep_best(self, value: float, path: str | os.PathLike[str], mode: Mode) -> bool:
        """Write them if no value of this run was as good. That one is in the file, so it outlives the process.

        Raises:
            UsageError: a path or mode that cannot do it.
            Unavailable: the file cannot be written.
        """
        path, value = Path(path), float(value)
        if path.suffix != SUFFIX or mode not in ("max", "min"):
            raise UsageError(f'keep_best: mode is "max" or "min", and the file {path} is to end in {SUFFIX}.')
        if not self._writer.is_main or math.isnan(value):
            return False
        found, run = labels_of(path), self._writer.labels()[RUN]
        best = float(found[VALUE]) if found.get(RUN) == run and VALUE in found else None
        if best is not None and not (value > best if mode == "max" else value < best):
            return False
        return self.save(path, **{VALUE: repr(value)})


def write(model: torch.nn.Module, path: Path, labels: Mapping[str, str]) -> None:
    """A durable file of the model's state dict.

    Raises:
        UsageError: something in it is no tensor, which a .safetensors file cannot have.
        Unavailable: the disk is full, or the folder cannot be written.
    """
    plain = getattr(model, "_orig_mod", model)  # as it was before torch.compile
    if any(getattr(one, "is_remote", False) for one in plain.modules()):
        raise UsageError(
            f"{path}: tables of this model are on parameter servers, and in no state dict: save behind the loop, where "
            "they are put together, or read a checkpoint by antdt.load_model(path, model)."
        )
    state = plain.state_dict()
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == SUFFIX:
            _save_tensors(state, partial, labels)
        else:
            torch.save(state, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if not isinstance(error, OSError):
            raise
        why = error.strerror or str(error)
        raise Unavailable(f"The weights cannot be written to {path}: {why}.", "Is the disk full?") from error


def _save_tensors(state: Mapping[str, Any], path: Path, labels: Mapping[str, str]) -> None:
    other = [name for name, value in state.items() if type(value) is not torch.Tensor or value.layout != torch.strided]
    if other:
        raise UsageError(
            f"{other[0]} is no plain tensor: save to a file of another name than *{SUFFIX}, for example *.pt."
        )
    try:
        from safetensors.torch import save_file

        kept, tied = _untied(state)
        save_file(kept, path, metadata={**labels, "format": "pt", TIED: json.dumps(tied)})
    except ModuleNotFoundError as error:
        raise UsageError(f"A {SUFFIX} file needs {error.name}: `pip install {error.name}`, or save to *.pt.") from error


def _untied(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors that share nothing; and of those that are another one by another name, which."""
    kept: dict[str, torch.Tensor] = {}
    first: dict[tuple[Any, ...], str] = {}
    tied: dict[str, str] = {}
    storages: set[int] = set()
    for name, tensor in state.items():
        place = tensor.untyped_storage().data_ptr()
        same = (place, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and same in first:
            tied[name] = first[same]
            continue
        first[same] = name
        plain = tensor.detach().contiguous()
        kept[name] = plain.clone() if place in storages and plain.data_ptr() == tensor.data_ptr() else plain
        storages.add(place)
    return kept, tied


def labels_of(path: Path) -> dict[str, str]:
    """The metadata of a .safetensors file; none where there is no such file."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return {}
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise UsageError(f"{path} is no {SUFFIX} file ({error}): remove it, or take another name.") from error


def load_model(
    path: str | os.PathLike[str], model: torch.nn.Module | None = None, *, device: str = "cpu", strict: bool = True
) -> Any:
    """Weights that an Agent has saved, or those in a checkpoint of a job (`step-*.pt`). Nothing in a file is executed.

    model: gets them, and is returned; without one the state dict is: of a table on parameter servers, ids and rows that
    were ever trained, as NAME.ids and NAME.rows. strict: as in `load_state_dict`.

    Raises:
        UsageError: there is no such file, it has no weights, or they are those of another model.
    """
    state = _of_servers(Path(path), model) or _read(Path(path), device)
    if model is None:
        return state
    try:
        getattr(model, "_orig_mod", model).load_state_dict(state, strict=strict)
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise UsageError(f"The weights in {path} are those of another model: {why}") from error
    return model


def _of_servers(path: Path, model: torch.nn.Module | None) -> dict[str, Any]:
    """Those in a checkpoint of parameter servers; none for any other file. Raises UsageError."""
    try:
        if not path.is_file() or path.suffix == SUFFIX or not is_manifest(path.read_bytes()[:64]):
            return {}
        manifest = Manifest.load(checkpoint.read_bytes(path.parent, path.name, ""), str(path))
        from antdt.strategies.ps.whole import state_of  # torch has no part in other files' weights

        return state_of(parts_of(path.parent, manifest, manifest.labels.get("job", "")), model)
    except (AntdtError, OSError) as error:
        raise UsageError(f"{path} cannot be read as weights: {error}") from error


def _read(path: Path, device: str) -> dict[str, Any]:
    try:
        if path.suffix == SUFFIX:
            from safetensors.torch import load_file

            found: dict[str, Any] = load_file(path, device=device)
            for name, other in json.loads(labels_of(path).get(TIED, "{}")).items():
                found[name] = found[other]
            return found
        loaded = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise UsageError(f"{path} cannot be read as weights: {error}") from error
    state = loaded["model"] if isinstance(loaded, Mapping) and "progress" in loaded else loaded
    if not isinstance(state, Mapping):
        raise UsageError(f"{path} has no weights in it, but a {type(state).__name__}.")
    return dict(state)
