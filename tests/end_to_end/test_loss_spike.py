"""A run whose loss spikes: the first time that step is skipped; the second time the run ends and keeps its state."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end.manta_process import MantaProcess

pytestmark = pytest.mark.chaos

RECIPE = {
    "run": "spiking",
    "storage": "kept",
    "data": {
        "sources": [{"path": "text"}],
        "tokenizer": {"kind": "bytes"},
        "seq_len": 32,
        "validation_fraction": 0,
    },
    "model": {"n_layers": 1, "d_model": 32, "n_heads": 2},
    "train": {
        "steps": 1000,
        "global_batch_size": 4,
        "micro_batch_size": 4,
        "lr": 1e18,
        "grad_clip": None,
        "optimizer": {"name": "sgd"},
        "schedule": {"name": "constant"},
    },
}


def test_its_data_is_left_out_once_and_then_the_run_ends(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text(Path(__file__).read_text() * 4)
    (tmp_path / "spiking.yaml").write_text(json.dumps(RECIPE))
    with MantaProcess("train", "spiking.yaml", folder=tmp_path, environment={}) as process:
        assert process.wait() == 1, process.output
        output = process.output
    assert "whose data is skipped" in output and "continuing with 1 workers" in output
    assert "Lower train.lr" in output and "Not retried: the run has already skipped the data of 1 step" in output
    assert "Traceback" not in output
    with MantaProcess("show", "spiking.yaml", "--json", folder=tmp_path, environment={}) as process:
        assert process.wait() == 0, process.output
        summary = json.loads(process.output)
    assert summary["status"] == "failed" and "Lower train.lr" in summary["message"]
    [bad] = summary["skipped_steps"]
    assert summary["step"] >= bad, "the step without its data is among those saved"
    assert (summary["samples"]["missing"], summary["samples"]["in_order"]) == (0, True)
    assert [each["cause"] for each in summary["disruptions"]] == ["bad step"]
