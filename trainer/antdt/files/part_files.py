"""The files of a model that lies on several servers: each writes its part, the primary a file that names all parts.

Owns that file, a manifest, whose name is the one in the log. Must not know what is in a part.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple

from antdt_schemas import records
from antdt_schemas.errors import Mismatch, Unavailable
from antdt_schemas.limits import INIT_FILE

from antdt.files import checkpoint
from antdt.files.model_files import WRITTEN, ModelFiles, Trouble
from antdt.strategies.base import Model
from antdt.worker.instructions import Parts
from antdt.worker.session import Phase, Session

KIND = "antdt.parts"
SEEN_S, SEEN_EVERY_S = 3.0, 0.1


class Manifest(NamedTuple):
    """Which parts a model of `step` is made of: file names and digests, in the order of the servers."""

    step: int
    lineage: bytes
    plan: int
    files: tuple[tuple[str, bytes], ...]
    labels: dict[str, str]

    def dump(self) -> bytes:
        """For its file."""
        files = [[name, digest.hex()] for name, digest in self.files]
        said = {"step": self.step, "lineage": self.lineage.hex(), "plan": self.plan, "files": files}
        return json.dumps({"kind": KIND, **said, "labels": self.labels}, indent=1).encode()

    @classmethod
    def load(cls, data: bytes, of: str) -> Manifest:
        """The inverse. Raises Mismatch for a file of something else."""
        found: Any = None
        if is_manifest(data):
            found = json.loads(data)
        if found is None:
            raise Mismatch(f"The kind of {of}", KIND, "another one", "It was not written by parameter servers.")
        files = tuple((name, bytes.fromhex(digest)) for name, digest in found["files"])
        return cls(found["step"], bytes.fromhex(found["lineage"]), found["plan"], files, found["labels"])


def is_manifest(data: bytes) -> bool:
    """Whether a file's content is that of a manifest."""
    return data.startswith(b"{") and KIND.encode() in data[:64]


def stem_of(generation: int, incarnation: str, step: int) -> str:
    """What the names of all files of one version begin with."""
    return checkpoint.file_name(generation, incarnation, step).removesuffix(".pt")


def parts_of(folder: Path, manifest: Manifest, job: str) -> list[bytes]:
    """What all parts hold. Raises Unavailable, Mismatch."""
    return [part_of(folder, manifest, number, job) for number in range(len(manifest.files))]


def part_of(folder: Path, manifest: Manifest, number: int, job: str) -> bytes:
    """What one part holds, whole. Raises Unavailable, Mismatch."""
    name, digest = manifest.files[number]
    data = checkpoint.read_bytes(folder, name, job)
    found = checkpoint.digest_of(data)
    if found != digest:
        hint = f"It is not the file that was saved; nothing was overwritten with it. {checkpoint.rollback(job)}."
        raise Mismatch(f"The digest of part {folder / name}", digest.hex(), found.hex(), hint)
    return data


class PartFiles(ModelFiles):
    """See ModelFiles. The model before any step is what the script makes: it is no file."""

    def __init__(self, root: Path, job: str, strategy: Model, assemble: Callable[..., None] | None = None) -> None:
        super().__init__(root, job, strategy)
        self._assemble = assemble

    def part(self, grant: records.Grant, number: int) -> tuple[Manifest, bytes] | None:
        """What this server goes on from; None: from what the script makes.

        Raises Unavailable, Mismatch, ForeignState.
        """
        name = grant.restore_file or INIT_FILE
        if name == INIT_FILE:
            return None
        manifest = Manifest.load(checkpoint.read_bytes(self.folder, name, self.job), f"checkpoint {self.folder / name}")
        parts = len(grant.members), len(manifest.files)
        self._check(name, manifest.labels, step=(grant.committed, manifest.step), parts=parts)
        return manifest, part_of(self.folder, manifest, number, self.job)

    def leave_sign(self, server: str, sign: str) -> str:
        """Write a sign of this server into the folder, for the others to see that it is theirs as well. Returns it;
        empty where it could not be written, which is said when a file cannot be.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f".{server}").write_text(sign, encoding="utf-8")
        except OSError:
            return ""
        return sign

    def sees(self, server: str, sign: str, patience_s: float = 0.0) -> bool:
        """Whether there is the sign that this server says it has written; a folder of a network may be a bit late."""
        until_s = monotonic() + patience_s
        while True:
            try:
                if (self.folder / f".{server}").read_text(encoding="utf-8") == sign:
                    return True
            except OSError:
                pass
            if monotonic() >= until_s:
                return False
            sleep(SEEN_EVERY_S)

    def publish(self, session: Session, parts: Parts) -> records.Checkpoint | None:
        """All parts are durable: so is the file that names them when this returns. The event is for the caller to send.

        None: it could not be written, and is owed; that was said.
        """
        name = f"{stem_of(session.generation, session.incarnation, parts.version)}.pt"
        data = Manifest(parts.version, parts.lineage, parts.plan, parts.files, self._stamped(name)).dump()
        try:
            digest = checkpoint.write_bytes(self.folder, name, data)
        except Unavailable as error:
            self.owes = True
            self._trouble.failed(error, self.last_good(session))
            self.prune(session)
            return None
        self.owes, self.written_step, self.written_name = False, parts.version, name
        self._trouble.over()
        return records.Checkpoint(session.generation, parts.version, parts.lineage, name, digest)

    def write_part(self, name: str, data: memoryview, session: Session) -> bytes:
        """Make a durable file of a part; where it cannot be written, with pauses, as long as this generation goes on.

        Raises Unavailable.
        """
        trouble, generation = Trouble(), session.generation
        while True:
            try:
                digest = checkpoint.write_bytes(self.folder, name, data)
            except Unavailable as error:
                if session.generation != generation or session.phase is not Phase.MEMBER:
                    raise
                trouble.failed(error, self.last_good(session))
                sleep(max(0.0, trouble.next_s - monotonic()))
            else:
                trouble.over()
                return digest

    def take_final(self, file: str) -> str:
        """The job is done: the model is put together of its parts. Returns since when it is."""
        found = next(self.root.glob(f"*/{file}"), self.root / file)
        manifest = Manifest.load(checkpoint.read_bytes(found.parent, file, self.job), f"checkpoint {found}")
        if self._assemble is not None:
            self._assemble(parts_of(found.parent, manifest, self.job), manifest.step, manifest.lineage)
        return manifest.labels.get(WRITTEN, "")

    @property
    def owes_init(self) -> bool:
        """It is no file."""
        return False
