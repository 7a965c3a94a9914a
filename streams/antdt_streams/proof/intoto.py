"""An in-toto Statement for each file of a model: which samples are in it, and what in the log proves that.

Statement v1 (github.com/in-toto/attestation, spec/v1/statement.md), of the predicate type below. Not signed here: that
is for tools which have the keys. Owns the predicate; where its parts come from is the chronicle's and the audit's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from antdt_schemas import records
from antdt_schemas.errors import LogTampered, UsageError

from antdt_streams.ledger.core.state import State
from antdt_streams.proof.audit import report_of
from antdt_streams.proof.chronicle import LISTED_MAX, Chronicle, Kept, Told

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://antdt.dev/provenance/v1"
# Digests that in-toto has no name for, in lowercase hexadecimal. blake2b_128: as of `b2sum -l 128`. antdt_lineage: of
# the steps in the model, of a file whose digest the log does not have.
BLAKE2B, LINEAGE = "blake2b_128", "antdt_lineage"
PIECE_BYTES = 1 << 20


def statements(
    told: Told, topic_id: str, policies: Sequence[Mapping[str, Any]] | None, folder: Path | None = None
) -> list[dict[str, Any]]:
    """One for each file that counts, in the order of their steps.

    policies: who decided under which version, None where that is not known, as the log alone does not say it. folder:
    where the files are; each is then read, held against the log, and named by its SHA-256 as well.

    Raises:
        LogTampered: the log breaks; or a file is not the one that the log names.
        UsageError: a file is not there.
    """
    fold = told.account.fold
    if told.broken is not None:
        raise LogTampered("The log", "one that proves itself", told.broken.sentence())
    if fold.state is None or fold.genesis is None:
        return []
    spec = fold.genesis.spec
    report = report_of(told.account, None)
    common: dict[str, Any] = {
        "job": fold.genesis.job,
        "runId": fold.genesis.run_id,
        "dataset": dataset(spec),
        "policies": policies,
        "exceptions": exceptions(fold.state, told.chronicle, report),
        "audit": {key: report[key] for key in ("exactly_once", "finished", "verdict", "digest")},
        "tool": {"name": "antdt", "version": metadata.version("antdt")},
    }
    head = {"headOffset": fold.position.next_offset - 1, "headHash": fold.position.hash.hex()}
    out = []
    for kept in told.chronicle.kept:
        about: dict[str, Any] = {
            "step": kept.step,
            "lineage": kept.lineage.hex(),
            "final": kept.file == fold.state.done,
            "samples": samples(kept),
            "log": {"topicId": topic_id, "offset": kept.offset, "hash": kept.hash.hex(), **head},
        }
        subject = {"name": kept.file, "digest": digests(kept, folder)}
        out.append({"_type": STATEMENT, "subject": [subject], "predicateType": PREDICATE, "predicate": about | common})
    return out


def samples(kept: Kept) -> dict[str, Any]:
    """What is in the model: LISTED_MAX ranges at most, and the digest of all of them."""
    ranges = [list(one) for one in kept.ranges]
    told = json.dumps(ranges, separators=(",", ":")).encode()
    return {
        "count": kept.samples,
        "ranges": ranges[:LISTED_MAX],
        "rangesTotal": len(ranges),
        "rangesDigest": {"sha256": hashlib.sha256(told).hexdigest()},
    }


def dataset(spec: records.JobSpec) -> dict[str, Any]:
    return {
        "name": spec.dataset,
        "digest": {BLAKE2B: spec.dataset_digest.hex()},
        "samples": spec.samples,
        "epochs": spec.epochs,
        "order": spec.order,
        "seed": spec.seed,
    }


def exceptions(state: State, chronicle: Chronicle, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What did not go as planned, in all of the log: nobody need look for it, and nobody can say that it was hidden."""
    kinds = [kind for kind in ("missing", "repeated", "quarantined") if report[kind]]
    found: list[dict[str, Any]] = [{"kind": kind, "ranges": report[kind]} for kind in kinds]
    if chronicle.skipped:
        found.append({"kind": "skippedSteps", "count": state.line.skipped, "newest": chronicle.skipped})
    if report["rolled_back_steps"]:
        files = [one.file for one in chronicle.undone][-LISTED_MAX:]
        found.append({"kind": "rolledBack", "steps": report["rolled_back_steps"], "files": files})
    if report["void_entries"]:
        found.append({"kind": "voidEntries", "count": report["void_entries"], "offsets": report["void_offsets"]})
    if report["stopped"] is not None:
        found.append({"kind": "stopped", **report["stopped"], "notTrained": report["not_trained_samples"]})
    found += [{"kind": "acceptedLoss", **loss} for loss in report["accepted_losses"]]
    return found + [{"kind": "resized", **one} for one in report["batch_sizes"]]


def digests(kept: Kept, folder: Path | None) -> dict[str, str]:
    known = {BLAKE2B: kept.digest.hex()} if kept.digest else {LINEAGE: kept.lineage.hex()}
    if folder is None:
        return known
    sha256, blake2b = hashlib.sha256(), hashlib.blake2b(digest_size=16)
    path = folder / kept.file
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                sha256.update(piece)
                blake2b.update(piece)
    except OSError as error:
        hint = "Files of older checkpoints are removed: leave --checkpoints out, or name a folder that has them."
        raise UsageError(f"{path} cannot be read: {error.strerror}.", hint) from error
    if kept.digest and blake2b.digest() != kept.digest:
        raise LogTampered(f"The digest of {path}", kept.digest.hex(), blake2b.hexdigest())
    return {"sha256": sha256.hexdigest(), **known}


def policies_of(decisions: Iterable[records.Decision]) -> list[dict[str, Any]]:
    """Who decided, under which version: how often, and from which plan to which."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for one in decisions:
        if one.effect is not None or one.action is records.Action.NONE:
            continue
        entry = {"policy": one.policy, "version": one.policy_version, "decisions": 0, "firstPlan": one.plan}
        known = found.setdefault((one.policy, one.policy_version), entry)
        known["decisions"] += 1
        known["lastPlan"] = one.plan
    return list(found.values())
