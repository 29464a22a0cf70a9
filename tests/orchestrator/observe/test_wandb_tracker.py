"""The W&B tracker offline: the file that it writes for a later `wandb sync`, decoded with W&B's own protocol."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.observe import WandbConfig
from orchestrator.observe.tracker import Point, Tracked
from orchestrator.observe.wandb_tracker import WandbTracker
from orchestrator.run.run import Group
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

HEADER_BYTES, BLOCK_BYTES = 7, 32768
"""The file is a LevelDB log behind a header: records in blocks, each with checksum, length and type before it."""


def records(folder: Path) -> list[Any]:
    """Records of the one run below `folder`."""
    from wandb.proto import wandb_internal_pb2

    [path] = folder.glob("wandb/offline-run-*/*.wandb")
    content, place, parts, found = path.read_bytes(), HEADER_BYTES, b"", []
    while place + HEADER_BYTES <= len(content):
        if BLOCK_BYTES - place % BLOCK_BYTES < HEADER_BYTES:  # too little is left of the block
            place += BLOCK_BYTES - place % BLOCK_BYTES
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + HEADER_BYTES : place + HEADER_BYTES + length]
        place += HEADER_BYTES + length
        if kind in (1, 4):  # whole, or the last of several
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    return found


def test_a_run_is_kept_with_its_steps_and_nothing_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("SOME_TOKEN", "hidden-token")
    monkeypatch.setattr(sys, "argv", ["manta", "train", "--set", "store.secret_access_key=hidden-key"])
    tracker = WandbTracker(WandbConfig(project="p", mode="offline"))
    tracker.begin(Tracked("abc123", "made", "s3://here", 0, {"train.lr": 0.1}))
    tracker.log([Point(step, 0.0, {"loss": 1 / step, "grad_norm": None}) for step in range(1, 6)])
    tracker.log_evaluation(
        Point(3, 0.0, {"loss": 0.5}), final=False
    )  # a background evaluation arrives after later steps
    tracker.log([Point(6, 0.0, {"loss": 1 / 6})])
    tracker.log_evaluation(Point(6, 0.0, {"loss": 0.25, "bleu": 9.0}), final=True)
    tracker.finish("finished")

    # W&B's own process writes the file, and may still be writing.
    wait_until(lambda: any(record.HasField("exit") for record in records(tmp_path)), "the run's end in its file")
    found = records(tmp_path)
    [run] = [record.run for record in found if record.HasField("run")]
    assert (run.run_id, run.display_name, run.project) == ("abc123", "made", "p")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (config["train.lr"], config["manta.url"]) == (0.1, "s3://here")
    history = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.HasField("history")
    ]
    losses = [(row["train/step"], row["train/loss"]) for row in history if "train/loss" in row]
    assert losses == [(step, 1 / step) for step in range(1, 7)]
    held_out = [(row["held_out/step"], row["held_out/loss"]) for row in history if "held_out/loss" in row]
    assert held_out == [(3, 0.5), (6, 0.25)]

    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"hidden-token" not in everything
    assert b"hidden-key" not in everything


@pytest.mark.parametrize(("id_", "job"), [("sweep1", "sweep"), ("t1", "trial")])
def test_a_sweep_and_its_trials_are_one_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, id_: str, job: str
) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    tracker = WandbTracker(WandbConfig(project="p", mode="offline"))
    tracker.begin(Tracked(id_, "made", "s3://here", 0, {"lr": 1}, Group("sweep1", "lr"), {"manta.best": "true"}))
    tracker.log([Point(7, 0.0, {"best_loss": 2.0})])
    tracker.finish("finished")
    wait_until(lambda: any(record.HasField("exit") for record in records(tmp_path)), "the run's end in its file")
    found = records(tmp_path)
    [run] = [record.run for record in found if record.HasField("run")]
    assert (run.run_group, run.job_type) == ("lr", job)
    assert {item.key: json.loads(item.value_json) for item in run.config.update}["manta.best"] == "true"
    keys = {item.key or "/".join(item.nested_key) for record in found for item in record.history.item}
    assert ("sweep/best_loss" if job == "sweep" else "train/best_loss") in keys
