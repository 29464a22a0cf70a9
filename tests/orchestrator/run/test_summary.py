"""The summary of a stored run and that of a live one: public names, and the fields that both have."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data.errors import DamagedObjectError
from orchestrator.config.load import load_recipe
from orchestrator.config.result_fields import result_fields
from orchestrator.run.audit import MOST_AUDITED, audit_run
from orchestrator.run.fence import Fence
from orchestrator.run.progress import Progress
from orchestrator.run.record import RECORD
from orchestrator.run.run import Run, stores
from orchestrator.run.state import StepSeconds
from orchestrator.run.stored import world_sizes
from orchestrator.run.summary import (
    LiveSummary,
    RunSummary,
    StoredSummary,
    live_summary,
    status_of,
    summary_of_run,
)
from tests.orchestrator.finished_run import recipe_in
from tests.orchestrator.run.builders import attempt


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose attempts have no checkpoint yet."""
    config = load_recipe(recipe_in(tmp_path), ["observe.peak_flops=1e9"])
    root, store = stores(config)
    fence = Fence.claim(store, config.run, result_fields(config), keep_pins=False)
    fence.update(attempt={"boot_id": "another machine", "status": "failed", "message": "the disk is full"})
    fence = Fence.claim(store, config.run, result_fields(config), keep_pins=False)
    disruption = {"cause": "node", "step": 1}
    outage = {"doing": "saving checkpoints", "since": 1.0, "until": 2.0, "problem": "busy"}
    happened = {"disruptions": [disruption], "outages": [outage], "decisions": [{"step": 0, "what": "start"}]}
    happened["restart_counts"] = {"node": 2, "resize": 1}  # the list has the newest ones
    fence.update(attempt={"status": "finished", **happened})
    return Run(config, root, store, fence.record)


def test_names_are_those_that_manta_show_prints(run: Run) -> None:
    """The names are public: scripts read `manta show --json`."""
    summary = summary_of_run(run)
    assert set(summary) == {
        *("run", "status", "phase", "message", "attempts", "restarts", "disruptions", "decisions", "outages"),
        "restart_counts",
        *("step", "steps", "tokens", "samples", "skipped_steps", "skipped_units", "cleaning_steps", "units_read"),
        *("pairs_too_long", "loss", "val_weights", "val_perplexity", "val_bits_per_byte", "translations", "world_size"),
        *(
            "world_sizes",
            "goodput",
            "tokens_per_s",
            "device",
            "model_flops_per_s",
            "mfu",
            "first_step_s",
            "checkpoints",
        ),
    }
    assert set(summary) == set(StoredSummary.__annotations__)
    json.dumps(summary)


def test_a_run_without_a_checkpoint(run: Run) -> None:
    summary = summary_of_run(run)
    assert (summary["status"], summary["step"], summary["tokens"], summary["attempts"]) == ("finished", 0, 0, 2)
    assert summary["samples"] == {} and summary["checkpoints"] == [] and summary["tokens_per_s"] is None
    assert summary["disruptions"] == [{"attempt": 2, "number": 3, "cause": "node", "step": 1}]
    assert (summary["restarts"], summary["restart_counts"]) == (3, {"node": 2, "resize": 1})
    assert summary["decisions"] == [{"attempt": 2, "step": 0, "what": "start"}]
    assert [(each["attempt"], each["doing"]) for each in summary["outages"]] == [(2, "saving checkpoints")]


def test_the_summary_of_a_live_run_has_the_same_fields_and_its_newest_step(run: Run) -> None:
    row = {"step": 3, "tokens": 600, "loss": 2.5, "lr": 0.1, "grad_norm": 1.0}
    progress = Progress("training", row=row, step_seconds=StepSeconds(2.0, 4.0), saved=(2, 1234.5))
    attempts = (*run.record.attempts[:-1], replace(run.record.last, flops_per_token=1e6))
    summary = live_summary(run.config, attempts, progress, {"training": 2.0, "wall": 3.0})
    assert set(summary) == set(LiveSummary.__annotations__) > set(RunSummary.__annotations__)
    assert (summary["step"], summary["tokens"], summary["tokens_per_s"]) == (3, 600, 300.0)
    assert (summary["model_flops_per_s"], summary["mfu"]) == (3e8, pytest.approx(0.15))
    assert summary["checkpoint"] == {"step": 2, "saved_at": 1234.5}
    assert summary["goodput"] == {"training_s": 2.0, "wall_s": 3.0}
    assert summary["disruptions"] == summary_of_run(run)["disruptions"]


def test_many_samples_are_audited_only_if_asked_for(run: Run) -> None:
    run, batch = replace(run, record=replace(run.record, manifest="0" * 64)), run.config.train.global_batch_size
    state, counts = {"step": MOST_AUDITED // batch + 1, "ledger": []}, np.ones(1, np.int64)
    assert audit_run(run, state, counts) == {"expected": batch * state["step"]}
    for asked in ({"state": state, "audits_all": True}, {"state": state | {"step": 1}}):
        with pytest.raises(DamagedObjectError, match="manifests/0000"):  # it begins with reading the manifest
            audit_run(run, counts=counts, **asked)
    assert audit_run(run, state, None) == {}


def test_an_attempt_without_a_heartbeat_has_died(run: Run) -> None:
    running = attempt(status="running")
    run = replace(run, record=replace(run.record, attempts=(running,)))
    os.utime(run.store.url_of(RECORD), times=(0.0, 0.0))
    assert status_of(run, running) == "died"
    assert status_of(run, replace(running, status="stopped")) == "stopped"


def test_world_sizes_are_listed_where_they_change() -> None:
    rows = pa.table({"step": [1, 2, 3, 4, 5], "world_size": [2, 2, 3, 3, 2]})
    assert world_sizes(rows) == [[1, 2], [3, 3], [5, 2]]
    assert world_sizes(rows[:0]) == []
