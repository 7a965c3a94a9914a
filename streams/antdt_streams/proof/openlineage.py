"""OpenLineage events of a job, from its log: what it read, which files it wrote, and what proves that.

Run events by the published schemas (openlineage.io/spec, 2-0-2). The job is one run; each generation is another whose
parent it is. What training reads and writes has no facet of its own there yet: samples are told as a subset of the
data set, and the log by a facet of ours.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from antdt_schemas import records
from antdt_schemas.errors import LogTampered

from antdt_streams.proof.chronicle import LISTED_MAX, Generation, Kept, Told, final

SPEC = "https://openlineage.io/spec"
EVENT = f"{SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent"
PROOF = "https://antdt.dev/openlineage/1-0-0/ProofFacet.json"
FACETS = {
    "jobType": "2-0-4/JobTypeJobFacet",
    "parent": "1-2-0/ParentRunFacet",
    "version": "1-0-1/DatasetVersionDatasetFacet",
    "subset": "1-0-0/BaseSubsetDatasetFacet",
    "inputStatistics": "1-0-0/InputStatisticsInputDatasetFacet",
}


def events(told: Told, topic_id: str, namespace: str) -> list[dict[str, Any]]:
    """In the order in which things happened. A job that is not done has no last event.

    Raises:
        LogTampered: the log breaks.
    """
    if told.broken is not None:
        raise LogTampered("The log", "one that proves itself", told.broken.sentence())
    genesis = told.account.fold.genesis
    if genesis is None:
        return []
    document = _Document(genesis, topic_id, namespace)
    chronicle, last = told.chronicle, final(told)
    found = [document.of_job("START", chronicle.begun_ms, None)]
    for generation in chronicle.generations:
        found += document.of_generation(generation)
    found += [document.of_job("RUNNING", kept.time_ms, kept) for kept in chronicle.kept if kept is not last]
    if chronicle.done_ms is not None:
        found.append(document.of_job("COMPLETE", chronicle.done_ms, last))
    return sorted(found, key=lambda event: str(event["eventTime"]))


class _Document:
    """What all events of a job have in common."""

    def __init__(self, genesis: records.Genesis, topic_id: str, namespace: str) -> None:
        self.genesis, self.topic_id, self.namespace = genesis, topic_id, namespace
        self.producer = f"https://antdt.dev/antdt/{metadata.version('antdt')}"
        self.run_id = _uuid(genesis.run_id)

    def of_job(self, kind: str, time_ms: int, kept: Kept | None) -> dict[str, Any]:
        """With the file that it has written by then, and what is in that."""
        outputs = [self._file(kept)] if kept is not None else []
        return self._event(kind, time_ms, self.run_id, self.genesis.job, {}, [self._data(kept)], outputs)

    def of_generation(self, one: Generation) -> list[dict[str, Any]]:
        run_id = str(uuid.uuid5(uuid.UUID(self.run_id), f"generation {one.number}"))
        parent = {"run": {"runId": self.run_id}, "job": {"namespace": self.namespace, "name": self.genesis.job}}
        facets = {"parent": self._facet("parent", parent)}
        name = f"{self.genesis.job}.generation"
        out = [self._event("START", one.begun_ms, run_id, name, facets, [], [])]
        if one.ended_ms is not None:
            numbers = {"generation": one.number, "members": one.members, "samples": one.samples, "ended": one.reason}
            ended = facets | {"antdt_generation": self._own(numbers)}
            out.append(self._event("COMPLETE", one.ended_ms, run_id, name, ended, [], []))
        return out

    def _event(
        self,
        kind: str,
        time_ms: int,
        run_id: str,
        job: str,
        run_facets: Mapping[str, Any],
        inputs: list[dict[str, Any]],
        outputs: list[dict[str, Any]],
    ) -> dict[str, Any]:
        job_type = {"processingType": "BATCH", "integration": "ANTDT", "jobType": "MODEL"}
        at = datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {
            "eventType": kind,
            "eventTime": at,
            "producer": self.producer,
            "schemaURL": EVENT,
            "run": {"runId": run_id, "facets": dict(run_facets)},
            "job": {
                "namespace": self.namespace,
                "name": job,
                "facets": {"jobType": self._facet("jobType", job_type)},
            },
            "inputs": inputs,
            "outputs": outputs,
        }

    def _data(self, kept: Kept | None) -> dict[str, Any]:
        spec = self.genesis.spec
        version = self._facet("version", {"datasetVersion": spec.dataset_digest.hex()})
        read: dict[str, Any] = {}
        if kept is not None:
            parts = [
                {
                    "identifier": f"epoch {epoch}, {start} to {end - 1}",
                    "dimensions": {"epoch": epoch, "start": start, "end": end},
                }
                for epoch, start, end in kept.ranges[:LISTED_MAX]
            ]
            subset = {"inputCondition": {"type": "partition", "partitions": parts}}
            read = {
                "inputStatistics": self._facet("inputStatistics", {"rowCount": kept.samples}),
                "subset": self._facet("subset", subset),
            }
        return {"namespace": self.namespace, "name": spec.dataset, "facets": {"version": version}, "inputFacets": read}

    def _file(self, kept: Kept) -> dict[str, Any]:
        version = self._facet("version", {"datasetVersion": (kept.digest or kept.lineage).hex()})
        proof = {
            "logTopicId": self.topic_id,
            "offset": kept.offset,
            "hash": kept.hash.hex(),
            "step": kept.step,
            "lineage": kept.lineage.hex(),
            "ranges": len(kept.ranges),
        }
        facets = {"version": version, "antdt_proof": self._own(proof)}
        return {
            "namespace": self.namespace,
            "name": f"{self.genesis.job}/{kept.file}",
            "facets": facets,
            "outputFacets": {},
        }

    def _facet(self, name: str, content: Mapping[str, Any]) -> dict[str, Any]:
        return {"_producer": self.producer, "_schemaURL": f"{SPEC}/facets/{FACETS[name]}.json", **content}

    def _own(self, content: Mapping[str, Any]) -> dict[str, Any]:
        return {"_producer": self.producer, "_schemaURL": PROOF, **content}


def _uuid(run_id: str) -> str:
    """That of the run; runs of old may have another name."""
    try:
        return str(uuid.UUID(run_id))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"https://antdt.dev/run/{run_id}"))
