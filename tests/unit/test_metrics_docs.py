"""Metrics as documented and alarmed: each has its row in docs/api.md, alerts.yml names no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.metrics import GAUGES

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
(GROUP,) = yaml.safe_load((DOCS / "alerts.yml").read_text())["groups"]
RULES: list[dict[str, Any]] = GROUP["rules"]
NAME = re.compile(r"[a-z]+(?:_[a-z]+)+")
#: Words of PromQL that look like a metric's name.
OF_PROMQL = {"group_left"}


def alarms_section() -> str:
    text = (DOCS / "operations.md").read_text()
    return text.split("\n## What the alarms mean\n")[1].split("\n## ")[0]


def test_every_metric_has_its_row_in_the_documentation() -> None:
    rows = re.findall(
        r"^\| `(holdfast_\w+)(?:\{([\w, ]+)\})?` \|", (DOCS / "api.md").read_text(), re.M
    )
    assert {name: tuple(labels.split(", ")) if labels else () for name, labels in rows} == {
        name: labels for name, (labels, _) in GAUGES.items()
    }
    assert len(rows) == len(GAUGES)


def test_every_metric_is_named_as_prometheus_would() -> None:
    for name, (labels, text) in GAUGES.items():
        assert name.startswith("holdfast_") and text.endswith(".")
        assert not name.endswith(("_ms", "_total")), name
        assert "partition" in labels or labels == () or name.endswith("_info"), name


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alarm_asks_for_metrics_that_exist_and_names_its_heading(rule: dict[str, Any]) -> None:
    assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
    named = set(NAME.findall(rule["expr"])) - OF_PROMQL
    assert named and named <= set(GAUGES), named - set(GAUGES)
    for by in re.findall(r"\$labels\.(\w+)", str(rule["annotations"])):
        assert any(by in GAUGES[name][0] for name in named), by
    for by in re.findall(r"\{(\w+)", rule["expr"]):
        assert any(by in GAUGES[name][0] for name in named), by
    assert rule["labels"]["severity"] in ("page", "ticket")
    heading = rule["annotations"]["runbook"]
    assert f"\n### {heading}\n" in alarms_section()
    anchor = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
    assert rule["annotations"]["runbook_url"].endswith(f"/docs/operations.md#{anchor}")


def test_only_what_stops_selling_or_loses_something_wakes_somebody() -> None:
    pages = {rule["alert"] for rule in RULES if rule["labels"]["severity"] == "page"}
    assert pages == {
        "HoldfastAway",
        "HoldfastNotSelling",
        "HoldfastRedisAway",
        "HoldfastPartitionClosed",
        "HoldfastRedisBehindLedger",
        "HoldfastDifferences",
    }


def test_alarms_have_names_of_their_own() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names) > 10
