"""Ctrl-C and SIGTERM before the first step: the command says that it stopped, with status 130, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from cluster.local.processes import of_session
from tests.end_to_end.manta_process import MantaProcess

pytestmark = pytest.mark.ray

RECIPE = {
    "run": "early",
    "storage": "runs",
    "data": {"sources": [{"path": "text", "document": "line"}], "tokenizer": {"kind": "bytes"}, "seq_len": 32},
    "model": {"n_layers": 1, "n_heads": 2, "d_model": 16},
    "train": {"steps": 2, "global_batch_size": 2, "micro_batch_size": 1, "lr": 1e-3},
}


def test_a_signal_before_the_loop_stops_the_run_at_once_and_the_same_command_goes_on(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text("".join(f"line {number} of some text\n" for number in range(200)))
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE))
    for moment, number in (
        ("manifest:", signal.SIGTERM),
        ("ray: starting", signal.SIGINT),
        ("starting 1 workers", signal.SIGTERM),
    ):
        with MantaProcess("train", "recipe.yaml", folder=tmp_path, environment={}) as process:
            process.wait_until(lambda moment=moment: moment in process.output, moment)
            os.kill(process.pid, number)
            assert process.wait() == 130, process.output
            assert "stopped." in process.output and "Traceback" not in process.output
            left = of_session(process.pid)
            assert left == [], f"{number.name} at {moment!r} leaves processes behind"
        record = json.loads((tmp_path / "runs/runs/early/run.json").read_text())
        assert record["attempts"][-1]["status"] == "stopped", (moment, number.name)
    with MantaProcess("train", "recipe.yaml", folder=tmp_path, environment={}) as process:
        assert process.wait() == 0, process.output
    assert json.loads((tmp_path / "runs/runs/early/run.json").read_text())["attempts"][-1]["status"] == "finished"
