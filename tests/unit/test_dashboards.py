"""Dashboards and alerts: every metric that they name, and every label, is one that a process really serves."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.figures import served

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana").glob("*.json"))
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
STORIES = Path(__file__).with_name("alerts_stories.yml")
NAME = re.compile(r"\b((?:antdt|process)_[a-z0-9_]+)\b(?:\{([^}]*)\})?")
LABEL = re.compile(r"(\w+)\s*=?[=~!]")
BY = re.compile(r"\b(?:by|on|ignoring) \(([^)]*)\)")
WORDS = ("antdt_job", "antdt_service")  # labels that read like metrics
# What Prometheus adds to each series, and to those of a histogram.
ALWAYS = {"antdt_job", "antdt_service", "instance", "job", "le"}


def expressions(file: Path) -> list[str]:
    if file == ALERTS:
        return [rule["expr"] for rule in rules()]
    found = json.loads(file.read_text())
    texts = [target["expr"] for panel in found["panels"] for target in panel.get("targets", [])]
    return [*texts, *(note["expr"] for note in found["annotations"]["list"])]


def rules() -> list[dict[str, Any]]:
    """Read with a library where there is one; the file is as plain as this reader wants it."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("file", [*DASHBOARDS, ALERTS], ids=lambda file: file.name)
def test_every_metric_and_label_that_is_named_is_served(file: Path) -> None:
    known = served()
    for text in expressions(file):
        named = [(name, labels) for name, labels in NAME.findall(text) if name not in WORDS]
        assert named, text
        for name, labels in named:
            assert name in known, f"{file.name}: nobody serves {name}: {text}"
            wrong = set(LABEL.findall(labels)) - known[name] - ALWAYS
            assert not wrong, f"{file.name}: {name} has no label {wrong}: {text}"
        grouped = {label.strip() for group in BY.findall(text) for label in group.split(",") if label.strip()}
        assert grouped <= ALWAYS.union(*(known[name] for name, _ in named)), text


def test_every_metric_that_is_served_is_looked_at_somewhere() -> None:
    """What nobody looks at need not be kept."""
    looked = {name for file in DASHBOARDS for text in expressions(file) for name, _ in NAME.findall(text)}
    bare = {re.sub(r"_(bucket|sum|count)$", "", name) for name in looked}
    missing = {name for name in served() if name.startswith("antdt_") and not re.search(r"_(bucket|sum|count)$", name)}
    assert missing - bare <= {"antdt_input_offset", "antdt_window"}


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.name)
def test_a_dashboard_is_one_that_grafana_imports(file: Path) -> None:
    found = json.loads(file.read_text())
    assert file.stem == found["uid"] and len(found["uid"]) <= 40 and found["id"] is None
    assert [one["name"] for one in found["__inputs"]] == ["DS_PROMETHEUS"]
    ids = [panel["id"] for panel in found["panels"]]
    assert len(set(ids)) == len(ids)
    uids = re.findall(r'"uid": "([^"]*)"', file.read_text())
    assert {uid for uid in uids if uid != found["uid"]} == {"${DS_PROMETHEUS}"}
    taken = set[tuple[int, int]]()
    for panel in found["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"] and panel["targets"] and panel["fieldConfig"]["defaults"]["unit"]
            refs = [target["refId"] for target in panel["targets"]]
            assert len(set(refs)) == len(refs)


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.name)
def test_grafanas_own_model_has_a_place_for_everything(file: Path) -> None:
    """What Grafana generates from its schemas reads each dashboard, and gives back all of it but these."""
    pytest.importorskip("grafana_foundation_sdk", reason="grafana-foundation-sdk is not installed")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    given = json.loads(file.read_text())
    kept = json.loads(JSONEncoder().encode(Dashboard.from_json(given)))
    # Of the file, not of the dashboard; of the data source; and what Grafana writes for people beside a query.
    assert lost(given, kept) <= {"__inputs", "__requires", "titleFormat", "definition"}


def lost(given: Any, kept: Any, name: str = "") -> set[str]:
    """The fields that are not there any more, or are others."""
    if isinstance(given, dict) and isinstance(kept, dict):
        empty: tuple[Any, ...] = (None, [], {}, "", False)
        gone = {key for key, value in given.items() if key not in kept and value not in empty}
        return gone.union(*(lost(value, kept[key], key) for key, value in given.items() if key in kept))
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        return set().union(*(lost(a, b, name) for a, b in zip(given, kept, strict=True)))
    return set() if given == kept else {name}


def test_an_alert_says_what_to_do() -> None:
    found = rules()
    assert len({rule["alert"] for rule in found}) == len(found) > 10
    for rule in found:
        assert rule["labels"]["severity"] in ("critical", "warning"), rule
        assert rule["annotations"]["summary"].endswith("."), rule
        assert len(rule["annotations"]["description"]) > 80, rule
        # "No message" is no alarm: quiet topics are quiet for hours.
        assert "antdt_records_total" not in rule["expr"] and "absent" not in rule["expr"], rule


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian: apt install prometheus)")
    return found


def test_promtool_takes_the_rules(promtool: str) -> None:
    ran(promtool, "check", "rules", "--lint=all", str(ALERTS))


def test_rules_fire_when_they_should(promtool: str, tmp_path: Path) -> None:
    stories = tmp_path / "stories.yml"
    stories.write_text(STORIES.read_text().replace("{{RULES}}", str(ALERTS)))
    ran(promtool, "test", "rules", str(stories))


def ran(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
