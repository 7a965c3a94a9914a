"""The manifests of deploy/kubernetes: what the published schemas say of them, and what they make of an exit status."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import yaml
from antdt_schemas.errors import ExitCode
from antdt_streams.kafka.declared import Declared, strimzi_resources
from antdt_streams.views import avoided

from tests.helpers.manifests import (
    BASE,
    KUBERNETES,
    WORKERS,
    after,
    at,
    document,
    documents,
    faults,
    rules_of,
    settings,
    templates,
)

FILES = [*sorted(KUBERNETES.glob("*.yaml")), *sorted(BASE.glob("*.yaml"))]
RESOURCES = [(file.name, one) for file in FILES for one in documents(file) if one["kind"] != "Kustomization"]
SERVICES = ("ledger", "monitor", "controller")


@pytest.mark.parametrize(("file", "resource"), RESOURCES, ids=[f"{f}-{r['kind']}" for f, r in RESOURCES])
def test_the_schema_of_its_kind_has_nothing_against_it(file: str, resource: dict[str, Any]) -> None:
    assert faults(resource) == []


def test_what_is_printed_for_strimzi_is_as_its_schema_wants_it() -> None:
    for declared in (Declared("my-job"), Declared("a", 1, "other", "tls")):
        assert [fault for one in strimzi_resources(declared) for fault in faults(one)] == []


def test_the_schemas_notice_what_is_wrong() -> None:
    """Unknown fields, wrong types and missing ones, at any depth."""
    for file, kind, path in (
        ("job.yaml", "Job", "spec.template.spec.containers.0"),
        ("jobset.yaml", "JobSet", "spec.replicatedJobs.0.template.spec.podFailurePolicy.rules.2.onExitCodes"),
        ("kubeflow.yaml", "ClusterTrainingRuntime", "spec.template.spec.failurePolicy.rules.0"),
        ("kubeflow.yaml", "TrainJob", "spec.trainer"),
        ("volcano.yaml", "Job", "spec.tasks.0.policies.0"),
        ("base/ledger.yaml", "Deployment", "spec.template.spec.volumes.0"),
        ("base/ledger.yaml", "PodDisruptionBudget", "spec.selector"),
    ):
        whole = document(KUBERNETES / file, kind)
        wrong = deepcopy(whole)
        at(wrong, path)["nameOfNothing"] = 1
        assert "nameOfNothing" in "".join(faults(wrong)), (file, path)
        wrong = deepcopy(whole)
        for name in at(wrong, path):
            at(wrong, path)[name] = {"of another": "type"} if not isinstance(at(wrong, path)[name], dict) else 7
            assert faults(wrong), (file, path, name)
            break
    user = strimzi_resources(Declared("my-job"))[-1]
    user["spec"]["authorization"]["acls"][0]["operations"] = ["Reed"]
    assert faults(user)


# -- exit statuses

AGAIN, COUNTED, FINAL = "Ignore", "Count", "FailJob"
FOLLOWS = {
    ExitCode.BUG: FINAL,
    ExitCode.USAGE: FINAL,
    ExitCode.INCOMPLETE: FINAL,
    ExitCode.NEVER_RETRY: FINAL,
    ExitCode.RESTART_HERE: COUNTED,
    ExitCode.RESTART_ELSEWHERE: AGAIN,
    ExitCode.KILLED: COUNTED,
    ExitCode.DRAINED: AGAIN,
}


def test_every_exit_status_has_a_meaning() -> None:
    assert {*FOLLOWS, ExitCode.DONE} == set(ExitCode)


@pytest.mark.parametrize("file", ["job.yaml", "jobset.yaml", "kubeflow.yaml"])
def test_kubernetes_starts_again_whom_the_launcher_would(file: str) -> None:
    rules = rules_of(file)
    assert {code: after(rules, code) for code in FOLLOWS} == FOLLOWS
    assert after(rules, 139) == FINAL, "what the launcher has given up"
    assert {after(rules, code, disrupted=True) for code in (*FOLLOWS, 139)} == {AGAIN}
    named = {rule["onExitCodes"]["containerName"] for rule in rules if "onExitCodes" in rule}
    kind, path, _ = WORKERS[file]
    assert named == {at(document(KUBERNETES / file, kind), f"{path}.spec.containers.0.name")}


def test_volcano_does_too() -> None:
    rules, means = rules_of("volcano.yaml"), {AGAIN: "RestartPod", COUNTED: "RestartPod", FINAL: "TerminateJob"}
    assert {code: after(rules, code) for code in FOLLOWS} == {code: means[what] for code, what in FOLLOWS.items()}
    assert (after(rules, 139), after(rules, 139, disrupted=True)) == ("TerminateJob", "RestartPod")


def test_a_set_fails_where_one_of_its_jobs_has_failed_for_good() -> None:
    for file, kind, path in (
        ("jobset.yaml", "JobSet", "spec"), ("kubeflow.yaml", "ClusterTrainingRuntime", "spec.template.spec")
    ):  # fmt: skip
        policy = at(document(KUBERNETES / file, kind), path)["failurePolicy"]
        assert (policy["maxRestarts"], [rule["action"] for rule in policy["rules"]]) == (0, ["FailJobSet"])


# -- pods


def test_workers_of_all_manifests_are_the_same_but_for_their_number() -> None:
    found = {}
    for file, _, template in templates():
        if file in WORKERS:
            pod = deepcopy(template["spec"])
            pod["containers"][0]["env"] = [e for e in pod["containers"][0]["env"] if e["name"] != "ANTDT_INDEX"]
            del pod["containers"][0]["name"]
            arguments = pod["containers"][0].pop("args")
            assert (arguments[0], arguments[-3:]) == ("launch", ["--restart-elsewhere", "--take-over", "train.py"])
            found[file] = pod
    assert len(found) == 4
    assert all(pod == found["job.yaml"] for pod in found.values())


@pytest.mark.parametrize(("file", "template"), [(f, t) for f, _, t in templates()], ids=[f for f, _, _ in templates()])
def test_a_pod_has_no_rights_that_it_does_not_need(file: str, template: dict[str, Any]) -> None:
    pod = template["spec"]
    (container,) = pod["containers"]
    assert (pod["securityContext"]["runAsNonRoot"], pod["automountServiceAccountToken"]) == (True, False)
    assert pod["enableServiceLinks"] is False, "ANTDT_KAFKA_PORT=tcp://… would be a setting"
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
    }  # fmt: skip
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys() and container["resources"]["limits"]["memory"]
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_whoever_is_told_to_end_has_the_time_that_it_believes_to_have() -> None:
    for file, _, template in templates():
        environ = {e["name"]: e.get("value") for e in template["spec"]["containers"][0].get("env", ())}
        if file in WORKERS:
            assert float(environ["ANTDT_GRACE_S"]) <= template["spec"]["terminationGracePeriodSeconds"] - 10


def test_the_base_names_its_files_and_a_drain_leaves_one_ledger() -> None:
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    assert sorted(kustomization["resources"]) == sorted(p.name for p in BASE.iterdir() if p.stem != "kustomization")
    assert settings().keys() == {"ANTDT_JOB", "ANTDT_KAFKA_BOOTSTRAP_SERVERS"}
    ledger, budget = documents(BASE / "ledger.yaml")
    assert ledger["spec"]["replicas"] > budget["spec"]["minAvailable"] == 1
    assert budget["spec"]["selector"] == ledger["spec"]["selector"]
    for file in ("job.yaml", "jobset.yaml"):
        budget = document(KUBERNETES / file, "PodDisruptionBudget")
        (labels,) = [t["metadata"]["labels"] for f, _, t in templates() if f == file]
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()


# -- nodes that are avoided


@pytest.mark.parametrize(
    ("kind", "file"), [("job", "job.yaml"), ("jobset", "jobset.yaml"), ("volcano", "volcano.yaml")]
)
def test_a_patch_gives_the_workers_the_affinity_that_they_have_and_the_nodes(kind: str, file: str) -> None:
    (change,) = avoided.patch(["slow-1", "slow-2"], kind)
    resource, path, _ = WORKERS[file]
    assert change["path"] == f"/{path.replace('.', '/')}/spec/affinity"
    whole = document(KUBERNETES / file, resource)
    assert at(whole, path)["spec"]["affinity"] == avoided.affinity([]), "with nobody to avoid it is what stands there"
    at(whole, path)["spec"]["affinity"] = change["value"]
    assert faults(whole) == []


def test_a_patch_of_a_train_job_is_one_of_its_runtime() -> None:
    (change,) = avoided.patch(["slow-1"], "trainjob")
    whole = document(KUBERNETES / "kubeflow.yaml", "TrainJob")
    whole["spec"]["runtimePatches"] = change["value"]
    assert (faults(whole), change["path"]) == ([], "/spec/runtimePatches")
