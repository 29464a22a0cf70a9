"""The table of metrics; dashboard and docs agree with it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.load import load_recipe
from orchestrator.observe.metrics import METRICS, Metric
from orchestrator.run.goodput import CAUSES
from orchestrator.run.progress import PHASES, Progress
from orchestrator.run.state import StepSeconds
from orchestrator.run.summary import LiveSummary, live_summary
from orchestrator.sweep.observe.metrics import SWEEP_METRICS
from tests.orchestrator.finished_run import recipe_in
from tests.orchestrator.run.builders import attempt

ROOT = Path(__file__).parents[3]
DASHBOARD = json.loads((ROOT / "docs/grafana-dashboard.json").read_text())
EVERY: tuple[Metric[Any], ...] = (*METRICS, *SWEEP_METRICS)
WIRE_NAMES = {metric.wire_name for metric in EVERY}


@pytest.fixture
def summary(tmp_path: Path) -> LiveSummary:
    config = load_recipe(recipe_in(tmp_path), ["observe.peak_flops=1e9"])
    row = {"step": 3, "tokens": 600, "loss": None, "lr": 0.1, "grad_norm": None}
    progress = Progress(
        "training",
        2,
        row=row,
        step_seconds=StepSeconds(2.0, 4.0),
        saved=(2, 1234.5),
        evaluations=[{"step": 2, "val_loss": 1.5, "at": 0.0}],
    )
    last = attempt(2, phase="training", world_size=2, restart_counts={"node": 1, "resize": 1}, flops_per_token=1e6)
    attempts = (attempt(1, restart_counts={"node": 1}), last)
    return live_summary(config, attempts, progress, {"training": 40.0, "idle": 50.0, "wall": 150.0})


def samples(name: str, summary: LiveSummary) -> dict[str, float]:
    [metric] = [metric for metric in METRICS if metric.name == name]
    return {labels.get(metric.label or "", ""): value for labels, value in metric.samples(summary)}


def test_names_are_prometheus_own() -> None:
    for metric in EVERY:
        assert re.fullmatch(r"manta_[a-z_]+[a-z]", metric.name)
        assert metric.help.endswith(".")
    assert len(WIRE_NAMES) == len(EVERY)


def test_values_follow_from_the_summary(summary: LiveSummary) -> None:
    assert samples("manta_step", summary) == {"": 3}
    assert samples("manta_steps", summary) == {"": 4}
    assert samples("manta_tokens_per_second", summary) == {"": 300}
    assert samples("manta_model_flops_per_second", summary) == {"": 3e8}
    assert samples("manta_mfu", summary) == {"": pytest.approx(0.15)}
    assert samples("manta_held_out_loss", summary) == {"": 1.5}
    assert samples("manta_checkpoint_step", summary) == {"": 2}
    assert samples("manta_checkpoint_timestamp_seconds", summary) == {"": 1234.5}
    assert samples("manta_world_size", summary) == {"": 2}
    assert samples("manta_attempts", summary) == {"": 2}


def test_what_is_not_known_is_not_set(summary: LiveSummary) -> None:
    assert samples("manta_loss", summary) == samples("manta_grad_norm", summary) == {}
    odd = Metric[LiveSummary]("manta_odd", "Odd.", lambda summary: float("nan"))
    assert list(odd.samples(summary)) == []


def test_labels_are_all_there_from_the_beginning(summary: LiveSummary) -> None:
    restarts = samples("manta_restarts", summary)
    assert (restarts["node"], restarts["resize"], sum(restarts.values())) == (2, 1, 3)
    assert restarts["bad step"] == restarts["crash"] == restarts["hang"] == 0
    goodput = samples("manta_goodput_seconds", summary)
    assert goodput.keys() == set(CAUSES) and sum(goodput.values()) == 90
    assert samples("manta_phase", summary) == {phase: float(phase == "training") for phase in PHASES}


def test_a_run_that_has_no_step_yet_has_metrics(tmp_path: Path) -> None:
    config = load_recipe(recipe_in(tmp_path))
    summary = live_summary(config, (attempt(1, phase="starting"),), Progress(), {"startup": 3.0})
    assert (
        samples("manta_step", summary)
        == samples("manta_mfu", summary)
        == samples("manta_checkpoint_step", summary)
        == {}
    )
    assert samples("manta_goodput_seconds", summary)["startup"] == 3.0


def expressions(value: Any) -> list[str]:
    """Every query below `value`."""
    if isinstance(value, dict):
        own = [text for name in ("expr", "query", "definition") if isinstance(text := value.get(name), str)]
        return own + [text for item in value.values() for text in expressions(item)]
    return [text for item in value for text in expressions(item)] if isinstance(value, list) else []


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    asked = {name for text in expressions(DASHBOARD) for name in re.findall(r"\bray_[a-z_]+", text)}
    assert asked == WIRE_NAMES


def test_the_dashboards_queries_use_existing_labels() -> None:
    metrics = {metric.wire_name: metric for metric in EVERY}
    for text in expressions(DASHBOARD["panels"]) + expressions(DASHBOARD["annotations"]):
        for name, selector in re.findall(r"(ray_manta_[a-z_]+)\{([^}]*)\}", text):
            of = metrics[name].of
            assert f'{of}="${of}"' in selector, text
            assert set(re.findall(r"(\w+)=", selector)) <= set(metrics[name].labels), text
        assert text.count("(") == text.count(")")
        assert all(label in {"cause", "phase", "status"} for label in re.findall(r"by \((\w+)\)", text))


def test_panels_have_unique_ids_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    covered: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not covered & cells, panel["title"]
        covered |= cells
        assert panel["title"] and panel["description"] and panel["targets"]


def test_data_source_run_and_sweep_are_variables_of_the_dashboard() -> None:
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "run", "sweep"]
    used = set(re.findall(r'"uid": "([^"]+)"', json.dumps(DASHBOARD["panels"])))
    assert used == {"${datasource}"}


def test_the_docs_list_the_table() -> None:
    text = (ROOT / "docs/observability.md").read_text()
    rows = re.findall(r"^\| `(ray_manta_\w+)` \| (.*) \| (.*) \|$", text, re.MULTILINE)
    assert rows == [
        (metric.wire_name, ", ".join(f"`{label}`" for label in metric.labels), metric.help) for metric in EVERY
    ]
