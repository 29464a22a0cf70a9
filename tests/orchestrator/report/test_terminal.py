"""The table of a run on the terminal shows what its summary has, and nothing else."""

from __future__ import annotations

from typing import Any

from orchestrator.report.terminal import table_rows
from orchestrator.run.summary import StoredSummary
from tests.orchestrator.report.run_summaries import eventful


def summary(**fields: Any) -> StoredSummary:
    """The summary of an eventful run, without what only its report has."""
    found: dict[str, Any] = eventful() | {"device": "", "world_size": 0, "model_flops_per_s": None, "mfu": None}
    return {name: (found | fields)[name] for name in StoredSummary.__annotations__}  # type: ignore[return-value]


EMPTY: dict[str, Any] = {
    "samples": {},
    "skipped_steps": [],
    "skipped_units": {"count": 0, "reasons": []},
    "loss": {"train": None, "val": None},
    "translations": {},
    "tokens_per_s": None,
    "disruptions": [],
    "decisions": [],
    "outages": [],
    "restarts": 0,
    "world_sizes": [],
    "checkpoints": [],
}


def test_a_run_before_its_first_step_has_few_rows() -> None:
    rows = dict(table_rows(summary(**EMPTY, status="running", phase="waiting", step=0, tokens=0)))
    assert list(rows) == ["status", "step", "workers", "time"]
    assert rows["status"] == "running, waiting" and rows["workers"] == "none yet"


def test_a_run_that_continues_is_shown_before_its_newest_attempt_has_done_a_step() -> None:
    speed = dict(table_rows(summary(first_step_s=None)))["speed"]
    assert speed.endswith("tokens/s")


def test_samples_that_were_too_many_to_audit_are_counted() -> None:
    told = dict(table_rows(summary(samples={"expected": 8000})))["samples"]
    assert told == "8,000 expected; manta show --audit compares them with those seen"


def test_an_eventful_run_has_all_rows() -> None:
    cleaning = {"step": "lowercase", "documents": 12, "documents_removed": 0, "characters": 9, "characters_removed": 0}
    speed = {"model_flops_per_s": 2.5e13, "mfu": 0.08, "device": "NVIDIA A100-SXM4-80GB"}
    rows = dict(table_rows(summary(cleaning_steps=[cleaning], pairs_too_long=7, **speed)))
    assert list(rows) == [
        *("status", "step", "samples", "skipped steps", "skipped units", "cleaning", "too long"),
        *("training loss", "held out", "translations", "speed", "model FLOPs", "restarts", "decisions"),
        *("store", "workers", "time", "checkpoint"),
    ]
    assert rows["skipped steps"] == "the data of step 99, where the loss spiked"
    assert rows["skipped units"] == "1 unreadable units: shard 3 is cut short"
    assert rows["model FLOPs"] == "25 TFLOP/s on NVIDIA A100-SXM4-80GB, 8.0% of its peak"
    assert rows["held out"] == "loss 3.5100, perplexity 33.40, 1.6200 bits per byte; averaged weights"
    assert rows["workers"] == "3 from step 1"
    assert rows["restarts"].splitlines()[0] == (
        "after step 150: node, 3 workers -> 1, 0 steps repeated, 2.4 s to the next new step"
    )
    assert rows["restarts"].splitlines()[-1].endswith("node, 3 workers"), "no group after the last one"
    over, to_the_end = rows["store"].splitlines()
    assert over.startswith("saving checkpoints: failed at ") and over.endswith(" for 1:15 min")
    assert to_the_end.endswith(" until the attempt ended: The store does not answer.")
    assert dict(table_rows(summary(status="running")))["store"].endswith(" and still does: The store does not answer.")
