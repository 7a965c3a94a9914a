"""The manifests of deploy/ as a cluster reads them: checked against published schemas, and taken apart into the command
lines, environments and folders of their containers, so that tests run these as local processes.

Owns what Kubernetes does between a manifest and a process: `$(NAME)` in arguments, envFrom, the downward API, what
controllers add to the environment, and what follows from an exit status.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

HERE = Path(__file__).parents[2]
KUBERNETES = HERE / "deploy" / "kubernetes"
BASE = KUBERNETES / "base"
LOADER = yaml.CSafeLoader  # ten times as fast as the one in Python
SCHEMAS = Path(__file__).with_name("schemas") / "schemas.json"
# Manifest of workers -> which of its documents has them, where their pods' template is there, what a controller adds to
# the environment of the pod with this number.
WORKERS: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    "job.yaml": ("Job", "spec.template", {"JOB_COMPLETION_INDEX": "{index}"}),
    "jobset.yaml": ("JobSet", "spec.replicatedJobs.0.template.spec.template", {}),
    "volcano.yaml": ("Job", "spec.tasks.0.template", {"VC_TASK_INDEX": "{index}", "VK_TASK_INDEX": "{index}"}),
    "kubeflow.yaml": (
        "ClusterTrainingRuntime",
        "spec.template.spec.replicatedJobs.0.template.spec.template",
        {
            "PET_NNODES": "4",
            "PET_NPROC_PER_NODE": "1",
            "PET_NODE_RANK": "{index}",
            "PET_MASTER_ADDR": "my-job-node-0-0.my-job",
            "PET_MASTER_PORT": "29500",
        },
    ),
}


def documents(file: Path) -> list[dict[str, Any]]:
    """Of one file of manifests."""
    return [one for one in yaml.load_all(file.read_text(encoding="utf-8"), LOADER) if one is not None]


def document(file: Path, kind: str) -> dict[str, Any]:
    """The one of this kind."""
    (found,) = [one for one in documents(file) if one["kind"] == kind]
    return found


def at(value: Any, path: str) -> Any:
    """What lies there: names and numbers, dots between them."""
    for part in path.split("."):
        value = value[int(part)] if part.isdigit() else value[part]
    return value


# -- against the schemas


@cache
def _schemas() -> dict[str, Any]:
    return dict(json.loads(SCHEMAS.read_text(encoding="utf-8")))


@cache
def _validator(name: str) -> Draft202012Validator:
    schemas = _schemas()
    return Draft202012Validator({"$ref": f"#/$defs/{schemas['kinds'][name]}", "$defs": schemas["$defs"]})


def faults(manifest: Mapping[str, Any]) -> list[str]:
    """What its published schema says against a resource, unknown fields included. Empty: nothing."""
    name = f"{manifest['apiVersion']}/{manifest['kind']}"
    found = _validator(name).iter_errors(manifest)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in found]


# -- as processes


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a pod runs, beside what its manifest says. mounts: folder of this machine by volume's name; index: the
    number of the pod; settings: of the ConfigMap; adds: what a controller adds to the environment.
    """

    mounts: Mapping[str, Path]
    settings: Mapping[str, str]
    node: str = "node-0"
    index: int = 0
    adds: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Container:
    """What is started. paths: folder of this machine by where the container sees it."""

    arguments: list[str]
    environ: dict[str, str]
    paths: dict[str, str]
    spec: Mapping[str, Any]

    def here(self, word: str) -> str:
        """A path of the container as one of this machine; any other word as it is."""
        for mounted, folder in sorted(self.paths.items(), reverse=True):
            if word == mounted or word.startswith(f"{mounted}/"):
                return folder + word.removeprefix(mounted)
        return word

    def probe(self, name: str) -> list[str]:
        """The command of one of its probes."""
        return [self.here(word) for word in self.spec[name]["exec"]["command"]]


def settings() -> dict[str, str]:
    """The ConfigMap that the base makes."""
    (generated,) = yaml.safe_load((BASE / "kustomization.yaml").read_text())["configMapGenerator"]
    return dict(literal.split("=", 1) for literal in generated["literals"])


def container(template: Mapping[str, Any], machine: Machine) -> Container:
    """Of a pod's template with one container."""
    (spec,) = template["spec"]["containers"]
    paths = {mount["mountPath"]: str(machine.mounts[mount["name"]]) for mount in spec["volumeMounts"]}
    environ: dict[str, str] = {}
    for source in spec.get("envFrom", ()):
        assert source == {"configMapRef": {"name": "antdt-job"}}, source
        environ |= machine.settings
    for entry in spec.get("env", ()):
        value = entry["value"] if "value" in entry else _from(entry["valueFrom"], machine)
        if value is not None:
            environ[entry["name"]] = expand(value, environ)
    environ |= {name: value.format(index=machine.index) for name, value in machine.adds.items()}
    found = Container([], environ, paths, spec)
    found.arguments.extend(found.here(expand(word, environ)) for word in spec["args"])
    for name, value in environ.items():
        environ[name] = found.here(value)
    return found


def _from(source: Mapping[str, Any], machine: Machine) -> str | None:
    if "secretKeyRef" in source:
        assert source["secretKeyRef"]["optional"] is True
        return None
    path = source["fieldRef"]["fieldPath"]
    known = {"spec.nodeName": machine.node, "metadata.labels['jobset.sigs.k8s.io/job-index']": str(machine.index)}
    return known[path]


def expand(text: str, environ: Mapping[str, str]) -> str:
    """As Kubernetes does it: `$(NAME)`, `$$(NAME)` stays, and so does a name that is not there."""
    return re.sub(
        r"\$\$|\$\(([-._A-Za-z][-._A-Za-z0-9]*)\)",
        lambda found: "$" if found[1] is None else environ.get(found[1], found[0]),
        text,
    )


# -- what follows


def rules_of(file: str) -> Any:
    """What a manifest of workers says of exit statuses: a podFailurePolicy, or Volcano's policies."""
    kind, template, _ = WORKERS[file]
    owner = at(document(KUBERNETES / file, kind), template.rpartition(".")[0])
    return owner["policies"] if "policies" in owner else owner["podFailurePolicy"]["rules"]


def after(rules: Any, code: int, *, disrupted: bool = False) -> str:
    """Ignore: again, uncounted. Count: again, counted. FailJob: never. Of Volcano: what it does, whose every retry
    counts.
    """
    for rule in rules:
        if "exitCode" in rule or "event" in rule:
            if rule.get("exitCode") == code or rule.get("event") == ("PodEvicted" if disrupted else "PodFailed"):
                return str(rule["action"])
            continue
        if disrupted and any(one["type"] == "DisruptionTarget" for one in rule.get("onPodConditions", ())):
            return str(rule["action"])
        codes = rule.get("onExitCodes")
        if codes and (code in codes["values"]) is (codes["operator"] == "In"):
            return str(rule["action"])
    return "Count"


def templates() -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Every pod's template: name of its file, the resource it is in, and the template."""
    for file, (kind, path, _) in WORKERS.items():
        found = document(KUBERNETES / file, kind)
        yield file, found, at(found, path)
    for path in sorted(BASE.glob("*.yaml")):
        if path.stem != "kustomization":
            for found in documents(path):
                if found["kind"] in ("Deployment", "Job"):
                    yield path.name, found, found["spec"]["template"]
