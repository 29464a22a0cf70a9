"""The folder of a run of weeks, made without training: its record, its ledger and its newest checkpoint."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from data.feed.spec import FeedSpec
from data.order.sample_order import SampleOrder
from data.shards.build import build_manifest
from orchestrator.config.load import load_recipe
from orchestrator.config.recipe import RunConfig
from orchestrator.config.result_fields import resolved, result_fields
from orchestrator.run.checkpoint import PROGRESS, CheckpointName, write_checkpoint
from orchestrator.run.ledger import StepLedger, StepRow
from orchestrator.run.record import DECISIONS, EVALUATIONS, RECORD, Attempt, RunRecord, shortened, versions
from orchestrator.run.run import stores

SHARDS = 200
COUNTS = np.full(SHARDS, 50_000)
"""Shards of the data, and sequences that each is said to have."""

ATTEMPTS = 10
"""Commands that have worked on the run."""

DISRUPTION: dict[str, Any] = {
    "workers": 1024,
    "phases": {
        "teardown": 0.512,
        "placement": 1.218,
        "processes": 3.947,
        "process_group": 1.103,
        "state": 2.284,
        "first_step": 2.871,
    },
    "workers_after": 1023,
    "lost_s": 13.9402,
    "detection_s": 1.2005,
    "replayed_steps": 3,
}
"""The fields of a disruption that are alike."""


@dataclass
class LongRun:
    """A run's folder.

    Attributes:
        recipe: file of its recipe.
        state: state.json of the newest checkpoint.
        save_s: seconds that each save spent on the ledger.
        segments: number of the ledger's segments after each save.
    """

    recipe: Path
    config: RunConfig
    state: dict[str, Any] = field(default_factory=dict)
    save_s: list[float] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)


def make_long_run(
    folder: Path, *, workers: int, steps: int, save_every: int, disruptions: int, is_real: bool
) -> LongRun:
    """Makes the folder of a run that has ended, by the code that writes those of real runs.

    Args:
        workers: size of the worker group; the global batch has a sequence for each.
        is_real: whether the ledger has the ids of the run's samples; else it has zeros, which are made faster.
        disruptions: ends of worker groups in all attempts together.
    """
    (folder / "text").mkdir(parents=True)
    for shard in range(SHARDS):
        (folder / "text" / f"{shard:03d}.txt").write_text("Nothing is read of it.\n")
    recipe = folder / "long.yaml"
    fields = {
        "run": "long",
        "storage": str(folder / "storage"),
        "data": {"sources": [{"path": str(folder / "text")}], "tokenizer": {"kind": "bytes"}, "seq_len": 256},
        "model": {"n_layers": 1, "d_model": 64, "n_heads": 2},
        "train": {"steps": steps, "global_batch_size": workers, "micro_batch_size": 1, "lr": 1e-3},
        "scaling": {"num_workers": workers, "min_workers": 1, "max_workers": workers},
    }
    recipe.write_text(json.dumps(fields))
    run = LongRun(recipe, load_recipe(recipe))
    root, store = stores(run.config)
    manifest = build_manifest(run.config.data.sources, run.config.store)
    root.put(f"manifests/{manifest.digest}.parquet", manifest.to_bytes())
    began = time.time() - steps
    order = FeedSpec.order_of(manifest, run.config.data, run.config.seed) if is_real else None
    ledger = StepLedger(store, ATTEMPTS, 0, [])
    for first in range(1, steps + 1, save_every):
        saved = range(first, min(first + save_every, steps + 1))
        save(run, ledger, [row(step, workers, began) for step in saved], order)
    run.state = {
        "step": steps,
        "tokens": 256 * workers * steps,
        "step_seconds": (1.0 * steps, 1.0 * steps * workers),
        "recent_losses": [2.0] * 64,
        "skipped_steps": [],
        **ledger.fields,
        "metrics": steps,
        "skipped": {},
        "saved_at": time.time(),
        "config": resolved(run.config),
    }
    snapshot = folder / "snapshot"
    snapshot.mkdir()
    save_file({"counts": COUNTS}, snapshot / PROGRESS)
    write_checkpoint(store, CheckpointName(steps, ATTEMPTS), run.state, snapshot, lambda: None)
    attempts = shortened([attempt(number, steps, disruptions, began) for number in range(1, ATTEMPTS + 1)])
    record = RunRecord("long", began, result_fields(run.config), manifest.digest, attempts=attempts)
    store.put(RECORD, record.to_json())
    return run


def row(step: int, workers: int, began: float) -> StepRow:
    """The row of a step, with zeros for its sample ids."""
    size, ids = workers - step // 1000 % 2, np.zeros(workers, np.int64)
    return StepRow(step, 2 + 9 / step, 1e-3, 1.0, 256 * workers * step, size, 1.0, began + step, ids)


def save(run: LongRun, ledger: StepLedger, rows: list[StepRow], order: SampleOrder | None) -> None:
    """Adds rows to the ledger as a save does, with the sample ids of the order, if there is one."""
    if order is not None:
        batch = len(rows[0].sample_ids)
        ids = order.samples((rows[0].step - 1) * batch, len(rows) * batch, COUNTS).ids().reshape(len(rows), batch)
        rows = [replace(each, sample_ids=its) for each, its in zip(rows, ids, strict=True)]
    began = time.perf_counter()
    ledger.write(rows)
    ledger.merge()
    run.save_s.append(time.perf_counter() - began)
    run.segments.append(len(ledger.segments))


def attempt(number: int, steps: int, disruptions: int, began: float) -> Attempt:
    """An attempt with its part of the steps and the disruptions, and with as long lists as it may have."""
    length, own = steps // ATTEMPTS, disruptions // ATTEMPTS
    first = (number - 1) * length
    happened = [
        {**DISRUPTION, "cause": "node", "step": step, "restored_step": step - 3, "at": began + step}
        for step in range(first + 3, first + length, length // own)
    ][:own]
    why = "a node was lost after step 123456: worker 0123456789abcdef on node 0123456789ab died"
    places = range(first, first + length, max(1, length // EVALUATIONS))
    scores = {"val_loss": 2.345678901234, "val_perplexity": 10.4409, "val_bits_per_byte": 0.91234567}
    return Attempt(
        number,
        host="head.cluster.local",
        boot_id="another machine",
        pid=1,
        pid_started="1",
        started_at=began + first,
        heartbeat_at=began + first + length,
        status="stopped" if number < ATTEMPTS else "failed",
        from_step=first,
        step=first + length,
        world_size=1024,
        disruptions=happened,
        restart_counts={"node": len(happened)},
        decisions=[{"at": began + step, "step": step, "what": why} for step in places[:DECISIONS]],
        evaluations=[{"step": step, "at": began + step, **scores} for step in places[:EVALUATIONS]],
        versions=versions(),
        goodput={"training": 0.9 * length, "restart": 0.1 * length},
        device="NVIDIA H100 80GB HBM3",
        flops_per_token=6e9,
        first_step_s=40.0,
    )
