"""`manta report` on runs as their folders are: not begun, alive with a checkpoint, continued, and read-only."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from data.errors import StoreAccessError
from data.stores.local import LocalStore
from orchestrator.cli.main import app
from orchestrator.config.load import load_recipe
from orchestrator.config.result_fields import result_fields
from orchestrator.report.run_data import evaluations_of, report_data, without_passwords
from orchestrator.run.checkpoint import PROGRESS, CheckpointName, write_checkpoint
from orchestrator.run.fence import Fence
from orchestrator.run.ledger import MERGED, StepLedger, StepRow
from orchestrator.run.record import RunRecord
from orchestrator.run.run import open_run, stores
from orchestrator.sweep.records import RECORD as SWEEP_RECORD
from tests.orchestrator.sweep.site import SweepSite
from tests.recipes import tiny_recipe, write_recipe

RECIPE: dict[str, Any] = {
    "run": "made",
    "store": {"endpoint_url": "http://store:9000", "access_key_id": "AKIAME", "secret_access_key": "s3cret"},
    "train.steps": 40,
    "train.micro_batch_size": 1,
    "sample.prompts": ["<script>alert(1)</script>"],
}
"""Overrides of the tiny recipe."""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Path of a recipe; the test works in its folder."""
    monkeypatch.chdir(tmp_path)
    return str(write_recipe(tmp_path / "made.yaml", tiny_recipe(storage=str(tmp_path / "kept"), **RECIPE)))


def begin(recipe: str) -> tuple[Fence, Any]:
    config = load_recipe(recipe)
    store = stores(config)[1]
    fence = Fence.claim(store, config.run, result_fields(config), keep_pins=False)
    fence.update(attempt={"boot_id": "that of another machine"})  # else its process, this one, would be looked for
    return fence, store


def save(fence: Fence, store: Any, folder: Path, steps: range, segments: list[str]) -> list[str]:
    """Write the rows of `steps` and a checkpoint of the last, as an attempt does; returns the ledger's segments."""
    attempt = fence.record.last.number
    ledger = StepLedger(store, attempt, steps[0] - 1, segments)
    ids = np.arange(4, dtype=np.int64)
    ledger.write([StepRow(s, 9 - s / 9, 1e-3, 1.0, 100 * s, 2, 0.5, fence.record.created_at + s, ids) for s in steps])
    ledger.merge()
    snapshot = folder / f"snapshot-{attempt}-{steps[-1]}"
    snapshot.mkdir()
    save_file({"counts": np.zeros(1, np.int64)}, snapshot / PROGRESS)
    state = {"step": steps[-1], "tokens": 100 * steps[-1], "ledger": ledger.segments, "skipped": {}}
    write_checkpoint(store, CheckpointName(steps[-1], attempt), state, snapshot, lambda: None)
    return ledger.segments


def report(recipe: str, *options: str) -> str:
    """What the command prints."""
    done = CliRunner().invoke(app, ["report", recipe, *options])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_run_that_was_never_started_is_said(recipe: str) -> None:
    done = CliRunner().invoke(app, ["report", recipe])
    assert done.exit_code == 2 and "There is no run at" in done.stderr


def test_a_run_before_its_first_checkpoint(recipe: str, tmp_path: Path) -> None:
    begin(recipe)
    assert "report: .manta/reports/made.html" in report(recipe)
    text = (tmp_path / ".manta/reports/made.html").read_text()
    assert "before its first step" in text


def test_it_is_here_and_in_the_run_s_folder_and_has_no_secrets(recipe: str, tmp_path: Path) -> None:
    fence, store = begin(recipe)
    save(fence, store, tmp_path, range(1, 31), [])
    fence.update(attempt={"status": "running", "from_step": 0, "step": 33, "phase": "training", "world_size": 2})
    told = report(recipe, "--to", "out/page.html")
    assert "report: out/page.html" in told and told.count("report: ") == 2
    text = (tmp_path / "out/page.html").read_text()
    assert store.get("report.html").decode() == text
    assert "at step 33 (training). The report goes up to its newest checkpoint: step 30" in text
    assert "alert(1)" in text and text.count("<script") == 1
    for secret in ("w0rd", "AKIAME", "s3cret"):
        assert secret not in text
    assert "http://store:9000" in text


def test_a_folder_is_no_file_to_write_to(recipe: str, tmp_path: Path) -> None:
    begin(recipe)
    done = CliRunner().invoke(app, ["report", recipe, "--to", str(tmp_path)])
    assert done.exit_code == 2 and "Name another file." in done.stderr


def test_whoever_may_only_read_the_run_has_its_report_here(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(recipe)

    def refuse(self: LocalStore, key: str, content: bytes) -> None:
        raise StoreAccessError(f"{key} may not be written.")

    monkeypatch.setattr(LocalStore, "put", refuse)
    assert "the report could not be written to the run's folder: report.html may not be written." in report(recipe)
    assert (tmp_path / ".manta/reports/made.html").exists()


def test_only_what_belongs_to_the_run_is_in_its_story(recipe: str, tmp_path: Path) -> None:
    first, store = begin(recipe)
    kept = save(first, store, tmp_path, range(1, 11), [])
    save(first, store, tmp_path, range(11, 21), kept)
    evaluations = [{"step": step, "at": 1.0, "val_loss": 5.0, "val_bits_per_byte": 2.0} for step in (10, 20)]
    first.update(attempt={"status": "failed", "from_step": 0, "step": 20, "evaluations": evaluations})
    # The second attempt goes on from step 10, as if the checkpoint of step 20 had been damaged.
    second = Fence.claim(store, "made", first.record.result_fields, keep_pins=True)
    save(second, store, tmp_path, range(11, 16), kept)
    again = [{"step": 15, "at": 2.0, "val_loss": 4.5, "val_bits_per_byte": 1.9}]
    second.update(attempt={"status": "stopped", "from_step": 10, "step": 15, "evaluations": again})
    summary = report_data(open_run(load_recipe(recipe)))
    assert summary["step"] == 15
    assert summary["rows"]["step"] == list(range(1, 16))
    assert summary["saves"] == [10, 15]
    assert [(each["step"], each["val_loss"]) for each in summary["evaluations"]] == [(10, 5.0), (15, 4.5)]
    assert summary["lives"][0]["versions"]["torch"].startswith("2.13.0")
    json.dumps(summary)


def test_merged_segments_still_tell_every_save(recipe: str, tmp_path: Path) -> None:
    fence, store = begin(recipe)
    segments: list[str] = []
    for step in range(1, MERGED + 3):
        segments = save(fence, store, tmp_path, range(step, step + 1), segments)
    assert len(segments) == 3
    summary = report_data(open_run(load_recipe(recipe)))
    assert summary["saves"] == summary["rows"]["step"] == list(range(1, MERGED + 3))


def test_the_config_is_that_of_the_run_where_it_decides_the_result(recipe: str) -> None:
    begin(recipe)
    fields = report_data(open_run(load_recipe(recipe, ["train.lr=0.5", "scaling.num_workers=3"])))["config"]
    by_name = {field["name"]: field for field in fields}
    assert by_name["train.lr"] == {"name": "train.lr", "value": 1e-3, "is_default": False}
    assert by_name["scaling.num_workers"]["value"] == 3
    assert by_name["train.optimizer.name"]["is_default"] and by_name["train.optimizer.betas"]["is_default"]
    assert not [name for name in by_name if "key" in name and name.startswith("store")]


def test_the_last_evaluation_is_the_run_s_result(recipe: str) -> None:
    record = begin(recipe)[0].record
    life = dataclasses.replace(record.last, evaluations=[{"step": 20, "at": 1.0, "val_loss": 3.0}])
    ended = dataclasses.replace(record, attempts=(life,), result={"step": 40, "val_loss": 2.0})
    assert [(each["step"], each["val_loss"]) for each in evaluations_of(ended)] == [(20, 3.0), (40, 2.0)]


def test_a_record_of_an_older_version_has_neither_evaluations_nor_versions(recipe: str) -> None:
    fields = json.loads(begin(recipe)[0].record.to_json())
    for attempt in fields["attempts"]:
        del attempt["evaluations"], attempt["versions"]
    record = RunRecord.from_json(json.dumps(fields).encode())
    assert evaluations_of(record) == [] and record.last.versions == {}


def test_users_and_passwords_of_urls_are_not_shown() -> None:
    told = {"a": ["s3://me:pass@host/x and http://u@h/", 1], "b": {"c": "mail@example.org", "d": None}}
    assert without_passwords(told) == {
        "a": ["s3://…@host/x and http://…@h/", 1],
        "b": {"c": "mail@example.org", "d": None},
    }


def test_a_sweep_s_name_gets_its_own_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = SweepSite(tmp_path).recipe()
    store = LocalStore(str(tmp_path / "store")).child("sweeps/small")
    Fence.claim(store, "small", {}, keep_pins=False, key=SWEEP_RECORD)
    assert "report: sweeps/small/report.html" in report(str(recipe))
    assert "report: page.html" in report(str(recipe), "--to", "page.html")
    for text in ((tmp_path / "page.html").read_text(), store.get("report.html").decode()):
        assert "<h1>Sweep small" in text
