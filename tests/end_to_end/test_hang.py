"""Workers that are stopped while training does not go on anyway: in an evaluation, and while a group is formed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from cluster.local.processes import is_alive
from tests.end_to_end.manta_process import MantaProcess
from tests.recipes import tiny_recipe, write_recipe, write_text

pytestmark = [pytest.mark.chaos, pytest.mark.soak]

WORKER = "ray::TrainingWorker"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Recipe of an endless run of three workers that evaluates after every step, which takes most of the time."""
    write_text(tmp_path / "text", documents=24, words=4000)
    fields = tiny_recipe(
        **{
            "data.validation_fraction": 0.5,
            "data.validation_sequences": 4000,
            "train.steps": 1_000_000,
            "train.global_batch_size": 6,
            "train.schedule": {"name": "constant"},
            "eval.every_steps": 1,
            "eval.background": False,
            "scaling.num_workers": 3,
            "checkpoint.every_s": 3600,
        }
    )
    return write_recipe(tmp_path / "recipe.yaml", fields)


def test_stopped_workers_are_found_in_an_evaluation_and_while_a_group_is_formed(recipe: Path, tmp_path: Path) -> None:
    with MantaProcess("train", str(recipe), folder=tmp_path, environment={}) as process:
        process.wait_until(lambda: "step 2: held-out loss" in process.output, "two evaluations")
        evaluating = stop(process.pids_of(WORKER)[1])
        process.wait_until(lambda: process.output.count("continuing with 3 workers") == 1, "a restart")
        assert not is_alive(evaluating)

        before = process.pids_of(WORKER)
        os.kill(before[0], signal.SIGKILL)
        process.wait_until(lambda: not set(process.pids_of(WORKER)) <= set(before), "another worker that starts")
        forming = stop(before[1])
        process.wait_until(lambda: process.output.count("continuing with 3 workers") == 2, "a restart")
        assert not is_alive(forming)
        told = process.output.count("held-out loss")
        process.wait_until(lambda: process.output.count("held-out loss") > told, "another evaluation")
        process.interrupt()
        assert process.wait() == 130, process.output
        assert "Traceback" not in process.output
        output = process.output
    with MantaProcess("show", str(recipe), "--json", folder=tmp_path, environment={}) as process:
        assert process.wait() == 0, process.output
        shown: dict[str, Any] = json.loads(process.output)
    in_evaluation, in_start = [each["what"] for each in shown["decisions"] if "the workers hung" in each["what"]]
    assert "has not answered for" in in_evaluation and "(evaluation)" in in_evaluation, output
    assert "has not answered for" in in_start and "(evaluation)" not in in_start, output
    assert [each["cause"] for each in shown["disruptions"]] == ["hang", "crash"], "the second one was not over yet"
    assert [each["replayed_steps"] for each in shown["disruptions"]] == [0, 0]
    assert (shown["samples"]["duplicated"], shown["samples"]["missing"]) == (0, 0)
    stacks = [path.read_text() for path in (tmp_path / "store/runs/tiny/hangs").iterdir()]
    assert any("orchestrator/train/evaluate.py" in each and "evaluation, no progress" in each for each in stacks)
    assert any("Newest collectives:\n  group 0 default_pg, " in each for each in stacks)


def stop(pid: int) -> int:
    """Stops a process, which stays that way; returns its id."""
    os.kill(pid, signal.SIGSTOP)
    return pid
