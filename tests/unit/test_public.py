"""The public names: pinned, found, and without the cost of what they do not need. And the tree of the errors."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys

import antdt
import antdt_streams
import pytest
from antdt_schemas import errors
from antdt_schemas.errors import AntdtError, ExitCode, UsageError

TRAINER = [
    "Agent", "AgentOptions", "AllReduce", "AntdtError", "Embedding", "ExitCode", "ForeignState", "GenerationOptions",
    "Group", "JobTaken", "Loader", "LoadingOptions", "LocalSGD", "LogTampered", "LogTruncated", "Mismatch", "NotFinite",
    "Occupied", "ParameterServer", "Record", "RecordsLost", "Refused", "ReplicasDiffer", "SampleFailed",
    "SessionOptions", "Settings", "Superseded", "Topic", "Unavailable", "Undecodable", "UnknownJob", "UnknownSchema",
    "UsageError", "accelerate", "hf", "lightning", "load_model", "torchtitan", "watch",
]  # fmt: skip
POLICIES = [
    "Action", "AdjustBatchSize", "AdjustBatchSizeOptions", "Assignment", "ClusterView", "Dedicated",
    "DedicatedParameters", "Effect", "Memory", "NodeClass", "NodeView", "NonDedicated", "NonDedicatedParameters",
    "Policy", "Proposal", "Verdict",
]  # fmt: skip


def test_the_public_names_are_these() -> None:
    for module, names in ((antdt, TRAINER), (antdt_streams, POLICIES)):
        assert module.__all__ == names
        for name in names:
            assert getattr(module, name) is not None, name
        assert set(names) <= set(dir(module))
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            module.nothing  # noqa: B018


def test_whatever_an_option_of_the_agent_is_made_of_is_public() -> None:
    for name, field in antdt.AgentOptions.__dataclass_fields__.items():
        kind = type(getattr(antdt.AgentOptions(), name))
        assert kind.__module__ == "builtins" or getattr(antdt, kind.__name__) is kind, (name, field.type)


def test_torch_is_imported_with_the_agent_only_and_no_name_costs_what_it_does_not_need() -> None:
    script = """
import sys, antdt, antdt_streams
assert not {"torch", "confluent_kafka", "numpy", "antdt_streams.policies", "antdt_schemas.errors"} & set(sys.modules)
antdt.UsageError, antdt.ExitCode, antdt.SessionOptions, antdt.Settings, antdt_streams.Policy, antdt_streams.Action
assert not {"torch", "faust", "rocksdict", "numpy"} & set(sys.modules)
antdt.Agent
assert "torch" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


POLICY = """
from antdt_streams import Action, ClusterView, Memory, Policy, Proposal

class Nothing:
    name, version = "nothing", 1
    def decide(self, view: ClusterView, memory: Memory) -> tuple[tuple[Proposal, ...], Memory]:
        return (Proposal(Action.NONE, f"{len(view.nodes)} nodes"),), memory

assert isinstance(Nothing(), Policy)
"""


def test_a_policy_is_written_with_public_names_alone(tmp_path: object) -> None:
    from antdt_streams.policies.find import find

    path = f"{tmp_path}/mine.py"
    with open(path, "w", encoding="utf-8") as file:
        file.write(POLICY)
    assert find(f"{path}:Nothing").name == "nothing"


def test_the_drawn_tree_of_errors_is_the_one_there_is() -> None:
    drawn = re.findall(r"^ *[│ ]*[├└]─ (\w+) +(\d+) ", errors.__doc__ or "", re.MULTILINE)
    there = {kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type)}
    assert {name for name, _ in drawn} == set(there) - {"AntdtError", "ExitCode", "IntEnum"}
    for name, code in drawn:
        assert issubclass(there[name], AntdtError) and there[name].exit_code == ExitCode(int(code)), name


def test_a_users_mistake_is_a_fault_of_the_tree_and_a_value_error() -> None:
    wrong = pickle.loads(pickle.dumps(UsageError("Take 1 to 9.")))
    assert isinstance(wrong, AntdtError) and isinstance(wrong, ValueError)
    assert (str(wrong), wrong.hint, wrong.exit_code) == ("Take 1 to 9.", "", ExitCode.USAGE)
